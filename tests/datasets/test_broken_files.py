"""Every broken file is refused in one line that names the file and what is wrong in it."""

from __future__ import annotations

import os
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from lit_offrl.common.errors import DatasetError
from lit_offrl.datasets.cache import ColumnCache
from lit_offrl.datasets.catalog import FileSource, Reading
from lit_offrl.datasets.hdf5 import read_hdf5
from lit_offrl.datasets.hdf5_limits import available_memory

Columns = dict[str, np.ndarray]


def changed(change: Callable[[Columns], object]) -> Callable[[Path, Columns], None]:
    """Return a maker of a file whose columns were changed in place."""

    def make(path: Path, columns: Columns) -> None:
        change(columns)
        with h5py.File(path, "w") as file:
            for name, values in columns.items():
                file[name] = values

    return make


def put(name: str, row: int, value: float) -> Callable[[Path, Columns], None]:
    def change(columns: Columns) -> None:
        columns[name] = columns[name].astype(np.float64)
        columns[name][row, ...] = value

    return changed(change)


def rename(old: str, new: str) -> Callable[[Path, Columns], None]:
    return changed(lambda columns: columns.update({new: columns.pop(old)}))


def replace(name: str, values: object) -> Callable[[Path, Columns], None]:
    return changed(lambda columns: columns.update({name: values}))


def truncated(path: Path, columns: Columns) -> None:
    changed(lambda _: None)(path, columns)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flipped(path: Path, columns: Columns) -> None:
    """Damage the compressed bytes of one column."""
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file.create_dataset(name, data=values, chunks=True, compression="gzip")
        offset = file["observations"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 16] = b"\xff" * 16
    path.write_bytes(bytes(content))


def object_dtype(path: Path, columns: Columns) -> None:
    del columns["rewards"]
    changed(lambda _: None)(path, columns)
    with h5py.File(path, "a") as file:
        rows = len(columns["observations"])
        file.create_dataset("rewards", data=["1.0"] * rows, dtype=h5py.string_dtype())


def linked(link: object) -> Callable[[Path, Columns], None]:
    def make(path: Path, columns: Columns) -> None:
        with h5py.File(path.with_name("other.hdf5"), "w") as other:
            other["rewards"] = columns.pop("rewards")
        changed(lambda _: None)(path, columns)
        with h5py.File(path, "a") as file:
            file["rewards"] = link

    return make


def stored_outside(path: Path, columns: Columns) -> None:
    rewards = columns.pop("rewards")
    outside = path.with_name("rewards.bin")
    outside.write_bytes(rewards.tobytes())
    changed(lambda _: None)(path, columns)
    with h5py.File(path, "a") as file:
        file.create_dataset(
            "rewards", rewards.shape, rewards.dtype, external=[(outside, 0, rewards.nbytes)]
        )


def virtual(path: Path, columns: Columns) -> None:
    rewards = columns.pop("rewards")
    with h5py.File(path.with_name("other.hdf5"), "w") as other:
        other["rewards"] = rewards
    changed(lambda _: None)(path, columns)
    layout = h5py.VirtualLayout(rewards.shape, rewards.dtype)
    layout[:] = h5py.VirtualSource("other.hdf5", "rewards", rewards.shape)
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset("rewards", layout)


def huge(path: Path, columns: Columns) -> None:
    """Promise far more rows than any memory holds, in a file of some kilobytes."""
    rows = 10**13
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            shape = (rows, *values.shape[1:])
            file.create_dataset(name, shape, values.dtype, chunks=(1024, *values.shape[1:]))


def sparse(path: Path, columns: Columns) -> None:
    """Promise 10¹² rows in one piece of which nothing is written: numpy would get the memory."""
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file.create_dataset(name, (10**12, *values.shape[1:]), values.dtype)


def many_rows(rows: int, dtype: str) -> Callable[[Path, Columns], None]:
    """Promise rows of which no column alone is too large, in a file of two kilobytes."""

    def make(path: Path, columns: Columns) -> None:
        with h5py.File(path, "w") as file:
            for name, values in columns.items():
                file.create_dataset(name, (rows, *values.shape[1:]), dtype)

    return make


def compressed(*codes: int, left_out: int = 0) -> Callable[[Path, Columns], None]:
    """Store the rewards through filters that HDF5 does not have.

    ``left_out`` is a bit mask of those that their only piece was stored without.
    """

    def make(path: Path, columns: Columns) -> None:
        rewards = columns.pop("rewards")
        changed(lambda _: None)(path, columns)
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk(rewards.shape)
        for code in codes:
            settings.set_filter(code, h5py.h5z.FLAG_OPTIONAL, (3,))
        with h5py.File(path, "a") as file:
            space = h5py.h5s.create_simple(rewards.shape)
            kind = h5py.h5t.IEEE_F32LE
            column = h5py.h5d.create(file.id, b"rewards", kind, space, dcpl=settings)
            column.write_direct_chunk((0,), rewards.tobytes(), filter_mask=left_out)

    return make


def zipped(path: Path, columns: Columns) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("observations.npy", columns["observations"].tobytes())


def unreadable(path: Path, columns: Columns) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    changed(lambda _: None)(path, columns)
    path.chmod(0)


def looped(path: Path, _: Columns) -> None:
    path.symlink_to(path.name)


def bytes_changed(path: Path, columns: Columns) -> None:
    """Overwrite the start of the tree that lists the columns."""
    changed(lambda _: None)(path, columns)
    content = bytearray(path.read_bytes())
    start = content.index(b"TREE")
    content[start : start + 64] = b"\x00" * 64
    path.write_bytes(bytes(content))


def compound(path: Path, columns: Columns) -> None:
    pairs = np.zeros(len(columns.pop("rewards")), [("paid", "f4"), ("at", "i4")])
    changed(lambda c: c.update(rewards=pairs))(path, columns)


def without_space(path: Path, columns: Columns) -> None:
    del columns["rewards"]
    changed(lambda _: None)(path, columns)
    with h5py.File(path, "a") as file:
        file["rewards"] = h5py.Empty("f4")


def attributes(**values: object) -> Callable[[Path, Columns], None]:
    def make(path: Path, columns: Columns) -> None:
        changed(lambda _: None)(path, columns)
        with h5py.File(path, "a") as file:
            file.attrs.update(values)

    return make


def attribute(name: str, value: object) -> Callable[[Path, Columns], None]:
    return attributes(**{name: value})


def no_ends(columns: Columns) -> None:
    del columns["terminals"], columns["timeouts"]


def shorten(columns: Columns) -> None:
    columns["rewards"] = columns["rewards"][:-1]


def one_row(columns: Columns) -> None:
    columns.update({name: values[:1] for name, values in columns.items()})


def one_step(columns: Columns) -> None:
    del columns["next_observations"]
    columns["timeouts"] = ~columns["terminals"]


def no_rows(columns: Columns) -> None:
    columns.update({name: values[:0] for name, values in columns.items()})


BROKEN = {
    "text": (lambda path, _: path.write_text("observations,actions\n"), "not an HDF5 file"),
    "page": (lambda path, _: path.write_text("<!DOCTYPE html>"), "not an HDF5 file"),
    "empty": (lambda path, _: path.write_bytes(b""), "empty file"),
    "signature": (lambda path, _: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "cannot be opened"),
    "directory": (lambda path, _: path.mkdir(), "directory"),
    "missing": (lambda path, _: path.with_name("brokem.hdf5").touch(), "mean 'brokem.hdf5'"),
    "truncated": (truncated, "truncated, "),
    "damaged": (flipped, "'observations' cannot be read"),
    "no-groups": (lambda path, _: h5py.File(path, "w").close(), "no column 'observations'"),
    "no-rewards": (changed(lambda c: c.pop("rewards")), "no column 'rewards'"),
    "no-actions": (changed(lambda c: c.pop("actions")), "no column 'actions'"),
    "misspelt-observations": (rename("observations", "observation"), "mean 'observations'"),
    "misspelt-rewards": (rename("rewards", "reward"), "mean 'rewards'"),
    "misspelt-timeouts": (rename("timeouts", "timeout"), "mean 'timeouts'"),
    "no-ends": (changed(no_ends), "neither 'terminals' nor 'timeouts'"),
    "nan": (put("observations", 3, np.nan), "'observations' has NaN in row 3"),
    "nan-next": (put("next_observations", 4, np.nan), "'next_observations' has NaN in row 4"),
    "infinite": (put("rewards", 2, -np.inf), "'rewards' has an infinite value in row 2"),
    "too-large": (put("actions", 1, 1e300), "has 1e+300, which is too large for float32, in row 1"),
    "half-terminal": (put("terminals", 2, 0.5), "'terminals' has 0.5 in row 2"),
    "nan-terminal": (put("terminals", 2, np.nan), "'terminals' has nan in row 2"),
    "short": (changed(shorten), "'rewards' has 4 rows but 'observations' has 5"),
    "one-row": (changed(one_row), "'observations' has 1 row:"),
    "no-rows": (changed(no_rows), "'observations' has 0 rows:"),
    "flat": (
        replace("observations", np.zeros(5)),
        "(5,), where (N, d) is needed: write it with shape (5, 1)",
    ),
    "images": (replace("observations", np.zeros((5, 2, 2))), "has shape (5, 2, 2)"),
    "no-dimensions": (replace("observations", np.zeros((5, 0))), "has shape (5, 0)"),
    "wide-rewards": (replace("rewards", np.zeros((5, 3))), "'rewards' has shape (5, 3)"),
    "scalar": (replace("rewards", 1.0), "'rewards' has shape ()"),
    "next-of-other-size": (replace("next_observations", np.zeros((5, 3))), "3 dimensions"),
    "complex": (replace("actions", np.zeros((5, 2), complex)), "dtype complex128"),
    "text-column": (replace("actions", np.full((5, 2), b"x")), "dtype |S1"),
    "objects": (object_dtype, "'rewards' has dtype object"),
    "group": (rename("rewards", "rewards/inner"), "'rewards' is a group"),
    "external-link": (linked(h5py.ExternalLink("other.hdf5", "rewards")), "is a link"),
    "soft-link": (linked(h5py.SoftLink("/actions")), "is a link"),
    "dangling-link": (linked(h5py.SoftLink("/nowhere")), "is a link"),
    "stored-outside": (stored_outside, "in another file"),
    "virtual": (virtual, "in another file"),
    "huge": (huge, "does not fit into memory"),
    "one-step-episodes": (changed(one_step), "'timeouts' end every row"),
    "sparse": (sparse, "does not fit into memory"),
    "columns-together": (
        many_rows(available_memory() // 24, "f4"),  # 9 numbers a row, of 4 bytes
        "does not fit into memory",
    ),
    "never-written": (many_rows(2**26, "f4"), "promises 2.42 GB (observations 0.54 GB, actions"),
    "zstd": (
        compressed(32015),
        "'rewards' is compressed with Zstandard (filter 32015), which is not installed here: run "
        "`pip install hdf5plugin`.",
    ),
    "blosc-and-lz4": (compressed(32001, 32004), "Blosc (filter 32001) and LZ4 (filter 32004)"),
    "lzo": (compressed(305), "LZO (filter 305), which is not installed here: write it again"),
    "own-filter": (compressed(400), "unknown (filter 400)"),
    "zip": (zipped, "not an HDF5 file"),
    "unreadable": (unreadable, "cannot be opened (Permission denied)"),
    "link-to-itself": (looped, "broken.hdf5"),
    "bytes-changed": (bytes_changed, "its columns cannot be listed"),
    "compound": (compound, "'rewards' has dtype [('paid'"),
    "no-dataspace": (without_space, "'rewards' has shape ()"),
    "terminal-of-two": (put("terminals", 2, 2.0), "'terminals' has 2.0 in row 2"),
    "negative-timeout": (put("timeouts", 1, -1.0), "'timeouts' has -1.0 in row 1"),
    "nan-action": (put("actions", 0, np.nan), "'actions' has NaN in row 0"),
    "infinite-observation": (put("observations", 4, np.inf), "infinite value in row 4"),
    "long-terminals": (replace("terminals", np.zeros(6, bool)), "'terminals' has 6 rows but"),
    "no-observations": (changed(lambda c: c.pop("observations")), "no column 'observations'"),
    "timeouts-of-text": (replace("timeouts", np.full(5, b"no")), "'timeouts' has dtype |S2"),
    "goals-flat": (replace("infos/goal", np.zeros(5)), "'goals' has shape (5,)"),
    "negative-limit": (attribute("max_episode_steps", -5), "'max_episode_steps' is -5"),
    "limit-of-nan": (attribute("max_episode_steps", np.nan), "'max_episode_steps' is nan"),
    "bad-limit": (attribute("max_episode_steps", "many"), "'max_episode_steps' is 'many'"),
    "bad-bounds": (attribute("action_low", [-1.0]), "'action_low' is (-1.0,)"),
    "bound-of-nan": (attribute("action_high", [1.0, np.nan]), "'action_high' is (1.0, nan)"),
    "infinite-bound": (attribute("action_low", -np.inf), "'action_low' is -inf"),
    "swapped-bounds": (
        attributes(action_low=[-1.0, 1.0], action_high=[1.0, -1.0]),
        "'action_low' is 1 and 'action_high' -1 in dimension 1",
    ),
    "equal-bounds": (attributes(action_low=0.0, action_high=0.0), "'action_high' 0 in dimension 0"),
    "reference-of-nan": (attribute("ref_min_score", np.nan), "'ref_min_score' is nan"),
    "equal-references": (
        attributes(ref_min_score=2.0, ref_max_score=2.0),
        "'ref_min_score' is 2 and 'ref_max_score' 2: write",
    ),
}


def test_the_file_that_these_are_made_from_is_sound(tmp_path, columns_of):
    changed(lambda _: None)(tmp_path / "x.hdf5", columns_of([3, 2], ["terminal", "timeout"]))
    assert len(read_hdf5(tmp_path / "x.hdf5")) == 5


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_in_one_line(tmp_path, columns_of, case):
    make, expected = BROKEN[case]
    path = tmp_path / "broken.hdf5"
    make(path, columns_of([3, 2], ["terminal", "timeout"]))
    begun = time.perf_counter()
    cache = ColumnCache(tmp_path / "cache")
    cached, columns = FileSource("x", path, reading=Reading(cache=cache)), ("actions", "rewards")
    readers = (read_hdf5, lambda _: cached.read(require=columns))
    for read in (*readers, readers[1]):  # the cached one twice: it knows the file's hash by then
        with pytest.raises(DatasetError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and "\n" not in message
        assert expected in message
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert time.perf_counter() - begun < 2
    assert cache.entries() == [] and not list(cache.folder.glob("*/*.npy"))


def test_pieces_that_were_stored_without_their_filter_are_read(tmp_path, columns_of):
    path, columns = tmp_path / "x.hdf5", columns_of([3, 2], ["terminal", "timeout"])
    rewards = columns["rewards"].copy()
    compressed(32015, left_out=1)(path, columns)
    assert read_hdf5(path).columns["rewards"].tolist() == rewards.tolist()


def test_an_installed_plugin_is_loaded(tmp_path, columns_of, monkeypatch):
    path = tmp_path / "x.hdf5"
    compressed(32015)(path, columns_of([3, 2], ["terminal", "timeout"]))
    plugin = tmp_path / "plugin" / "hdf5plugin.py"
    plugin.parent.mkdir()
    plugin.write_text(f"open({str(tmp_path / 'loaded')!r}, 'w').close()")
    monkeypatch.syspath_prepend(plugin.parent)
    monkeypatch.delitem(sys.modules, "hdf5plugin", raising=False)
    with pytest.raises(DatasetError, match="Zstandard"):
        read_hdf5(path)
    assert (tmp_path / "loaded").exists()


def test_a_jobs_share_of_the_memory_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "unlimited").write_text("max\n")
    limits = [tmp_path / "memory.max", tmp_path / "unlimited", tmp_path / "nowhere"]
    monkeypatch.setattr("lit_offrl.datasets.hdf5_limits._control_group_limits", lambda: limits)
    assert available_memory() == 5000


def test_there_are_enough_of_them():
    assert len(BROKEN) >= 40


@pytest.mark.parametrize(
    ("row", "column"), [(3, "observations"), (6, "rewards"), (7, "actions"), (2, "terminals")]
)
def test_rows_of_the_shifted_layout_are_named_as_the_file_counts_them(
    tmp_path, raw, shifted, row, column
):
    shifted[column][row] = np.nan
    with pytest.raises(DatasetError, match=f"column '{column}' has (NaN|nan) in row {row}"):
        read_hdf5(raw(tmp_path / "x.hdf5", shifted), format="pybullet")


def test_a_shifted_file_of_nothing_but_ends_is_refused(tmp_path, raw, shifted):
    shifted["terminals"][:] = 1
    with pytest.raises(DatasetError, match=r"x.hdf5: column 'terminals' ends nearly every row"):
        read_hdf5(raw(tmp_path / "x.hdf5", shifted), format="pybullet")
