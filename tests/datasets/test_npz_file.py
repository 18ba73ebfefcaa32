"""NpzFile: rows of archives that may have been made by anybody."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from lit_offrl.common.errors import DatasetError
from lit_offrl.datasets import hdf5_limits, npz_file
from lit_offrl.datasets.npz_file import NpzFile


def npy(values, **options):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, values, **options)
    return stream.getvalue()


def member(path, data, name="x.npy", method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr(name, data)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.npz"


def read(path, name="x"):
    with NpzFile(path, [name]) as file:
        file.need(name)
        return np.concatenate(list(file.rows(name)))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "values",
    [
        np.arange(21, dtype=np.float32).reshape(7, 3),
        np.arange(7) % 2 == 0,
        np.arange(168, dtype=np.uint8).reshape(7, 2, 4, 3),
        np.arange(14, dtype=np.int64).reshape(7, 2),
        np.arange(7, dtype=">f8"),
        np.zeros((7, 0), np.float32),
    ],
)
def test_blocks_of_rows_make_up_the_array(path, monkeypatch, save, values):
    save(path, x=values, other=np.zeros(3))
    row = values.nbytes // 7
    for block in (1, 2 * row, 3 * row + 1, 1000 * row + 1):
        monkeypatch.setattr(npz_file, "_BLOCK", block)
        with NpzFile(path, ["x", "absent"]) as file:
            assert file.arrays == {"x": (values.shape, values.dtype)}
            blocks = list(file.rows("x"))
        assert max(len(each) for each in blocks) <= max(1, block // max(row, 1))
        np.testing.assert_array_equal(np.concatenate(blocks), values)


def test_an_array_that_is_not_there_is_named(path):
    np.savez(path, y=np.zeros(3), z=np.zeros(3))
    with pytest.raises(DatasetError, match=r"data.npz: has no array 'x' \(it has y, z\)"):
        read(path)


class Runs:
    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


def header(shape, descr="<f4", order="False"):
    text = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


BROKEN = {
    "objects": (npy(np.array([Runs()], object), allow_pickle=True), "dtype object, not numbers"),
    "a pickle": (pickle.dumps(Runs()), "no readable header"),
    "text": (npy(np.array(["a", "b"])), "dtype <U1, not numbers"),
    "a structure": (npy(np.zeros(3, [("a", "f4")])), "not numbers"),
    "complex": (npy(np.zeros(3, complex)), "dtype complex128, not numbers"),
    "a single number": (npy(np.float32(3)), r"shape \(\), without rows"),
    "by columns": (npy(np.asfortranarray(np.ones((3, 2)))), "stored by columns"),
    "empty": (b"", "no readable header"),
    "another version": (b"\x93NUMPY\x09\x00" + bytes(80), "no readable header"),
    "a header that is code": (
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 20) + b"__import__('os')    ",
        "no readable header",
    ),
    "more rows than bytes": (header((10**12, 28)) + bytes(64), "has 64 bytes, where its shape"),
    "fewer rows than bytes": (header((2,)) + bytes(64), "has 64 bytes, where its shape"),
    "minus two rows": (header((-2, -2)) + bytes(16), "without rows"),
    "a NaN": (npy(np.float32([[0, 1], [2, np.nan]])), "has NaN in row 1"),
    "infinity": (npy(np.float32([0, 1, -np.inf])), "an infinite value in row 2"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_array_is_one_line(path, what):
    data, said = BROKEN[what]
    with pytest.raises(DatasetError, match=rf"data.npz: array 'x' .*{said}") as caught:
        read(member(path, data))
    assert "\n" not in str(caught.value)


def test_the_row_of_a_nan_is_that_of_the_array_and_not_of_the_block(path, monkeypatch):
    monkeypatch.setattr(npz_file, "_BLOCK", 8)
    np.savez(path, x=np.float32([0, 1, 2, 3, 4, np.nan, 6]))
    with pytest.raises(DatasetError, match="NaN in row 5"):
        read(path)


def test_archives_cut_off_anywhere_are_one_line(path):
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(50, 3)))
    whole = path.read_bytes()
    for size in range(0, len(whole), 17):
        path.write_bytes(whole[:size])
        with pytest.raises(DatasetError, match=r"data\.npz") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_a_changed_byte_never_goes_unnoticed(path):
    values = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    np.savez_compressed(path, x=values)
    whole = path.read_bytes()
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        try:
            found = read(path)
        except DatasetError as error:
            assert "\n" not in str(error)
        else:  # a byte that says nothing of the values, such as the member's date
            np.testing.assert_array_equal(found, values)


def test_a_bomb_is_refused_by_its_header(path, monkeypatch):
    monkeypatch.setattr(hdf5_limits, "_SMALL", 1000)
    monkeypatch.setattr(hdf5_limits, "_RATIO", 20)
    member(path, npy(np.zeros((100_000, 4), np.float32)))
    with pytest.raises(DatasetError, match=r"promises 0\.00 GB"):
        read(path)


def test_what_may_not_be_in_an_archive(path):
    data = npy(np.zeros(3))
    with zipfile.ZipFile(path, "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("x.npy", data)
        file.writestr("x.npy", data)
    with pytest.raises(DatasetError, match="'x' is in it 2 times"):
        read(path)
    member(path, data, method=zipfile.ZIP_LZMA)
    with pytest.raises(DatasetError, match="compressed in a way that NumPy does not use"):
        read(path)
    for name in ("../x.npy", "/x.npy", "x.npy/", "./x.npy"):  # names are compared, not followed
        with pytest.raises(DatasetError, match="has no array 'x'"):
            read(member(path, data, name=name))
    assert [each.name for each in path.parent.iterdir()] == ["data.npz"]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_archive(path, content):
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"data\.npz: (is no readable|has no array 'x')"):
        read(path)
