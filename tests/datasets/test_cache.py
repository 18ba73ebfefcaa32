"""What the column cache promises: read once, shared, never stale, never half."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

from lit_offrl.common.errors import DatasetError
from lit_offrl.common.files import part_path
from lit_offrl.datasets import cache as caching
from lit_offrl.datasets.cache import ColumnCache
from lit_offrl.datasets.catalog import FileSource, Reading, default_cache_dir
from lit_offrl.datasets.hdf5 import read_hdf5, write_hdf5
from lit_offrl.datasets.sidecar import write_sidecar


@pytest.fixture
def columns(columns_of):
    return columns_of([3, 2, 4], ["terminal", "timeout", ""])


@pytest.fixture
def path(tmp_path, columns):
    return write_hdf5(tmp_path / "x.hdf5", columns, {"env_id": "Pendulum-v1", "seed": 7})


@pytest.fixture
def cache(tmp_path):
    return ColumnCache(tmp_path / "cache")


def read(path: Path, cache: ColumnCache, require=(), **options):
    reading = Reading(cache=cache, **options)
    return FileSource("x", path, reading=reading).read(require=require)


def test_what_is_cached_is_what_was_read(path, cache):
    plain = read_hdf5(path, name="x")
    for _ in range(2):
        found = read(path, cache)
        assert found.spec == plain.spec and found.provenance == plain.provenance
        assert list(found.columns) == list(plain.columns) and found.cut_off
        for name, values in plain.columns.items():
            np.testing.assert_array_equal(found.columns[name], values)
            assert found.columns[name].dtype == values.dtype
        np.testing.assert_array_equal(found.episodes, plain.episodes)


def test_columns_are_memory_mapped_and_read_only(path, cache):
    found = read(path, cache)
    for values in (*found.columns.values(), found.episodes):
        assert isinstance(values.base, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 0


def test_the_second_start_reads_no_hdf5_and_hashes_nothing(path, cache, monkeypatch):
    first = read(path, cache)

    def never(*_, **__):
        raise AssertionError("read again")

    monkeypatch.setattr(h5py, "File", never)
    monkeypatch.setattr(caching.hashlib, "file_digest", never)
    monkeypatch.setattr(caching.OfflineDataset, "__post_init__", never)  # nor are values checked
    assert FileSource("x", path, reading=Reading(cache=cache)).header() == first.spec
    again = read(path, cache)
    assert again.spec == first.spec and len(again) == 9


def test_a_changed_file_is_noticed(path, cache, columns):
    read(path, cache)
    stat = path.stat()
    write_hdf5(path, columns | {"rewards": columns["rewards"] + 1})
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a copy that keeps times would
    np.testing.assert_array_equal(read(path, cache).columns["rewards"], columns["rewards"] + 1)
    assert len(cache.entries()) == 2


def test_a_file_broken_after_caching_is_refused_and_leaves_no_further_entry(path, cache):
    read(path, cache)
    with h5py.File(path, "a") as file:
        file["rewards"][4] = np.nan
    with pytest.raises(DatasetError, match=r"x.hdf5: column 'rewards' has NaN in row 4"):
        read(path, cache)
    assert len(cache.entries()) == 1


def test_a_downloaded_file_that_changed_after_caching_is_refused(tmp_path, raw, columns_of, cache):
    columns = columns_of([3, 2], ["terminal", "timeout"], following=False)
    columns |= {"observations": np.zeros((5, 4)), "actions": np.zeros((5, 2))}
    path = raw(tmp_path / "maze2d-large-v1.hdf5", columns)
    from lit_offrl.datasets.catalog import resolve

    source = resolve("maze2d-large-v1", tmp_path, Reading(cache=cache))
    write_sidecar(path, {"sha256": source.read().spec.sha256})
    source.read()
    raw(path, columns | {"rewards": np.ones(5)})
    with pytest.raises(DatasetError, match="has changed since it was downloaded"):
        source.read()
    assert len(cache.entries()) == 1


def test_a_copy_of_a_file_shares_its_entry(path, cache, tmp_path):
    read(path, cache)
    copy = tmp_path / "copy.hdf5"
    copy.write_bytes(path.read_bytes())
    found = FileSource("other", copy, reading=Reading(cache=cache)).read()
    assert found.spec.name == "other" and found.spec.origin == str(copy)
    assert len(cache.entries()) == 1


def test_options_that_change_columns_have_entries_of_their_own(tmp_path, raw, cache):
    count = 6
    columns = {
        "observations": np.zeros((count, 4)),
        "rewards": np.array([0, 1, 0, 0, 0, 1.0]),
        "terminals": np.zeros(count, bool),
        "timeouts": np.arange(count) % 3 == 2,
    }
    path = raw(tmp_path / "maze2d-umaze-v1-mine.hdf5", columns)
    options = {"require": ("rewards",)}
    assert len(read(path, cache, **options)) == 6
    assert len(read(path, cache, sparse_windows=True, **options)) == 5
    assert len(read(path, cache, **options)) == 6
    assert len(cache.entries()) == 2


def cut(entry: Path) -> None:
    file = entry / "observations.npy"
    file.write_bytes(file.read_bytes()[:-8])


def flip(entry: Path) -> None:
    content = bytearray((entry / "rewards.npy").read_bytes())
    content[-1] ^= 0xFF
    (entry / "rewards.npy").write_bytes(bytes(content))


DAMAGE = {
    "cut": cut,
    "flipped": flip,
    "column-gone": lambda entry: (entry / "actions.npy").unlink(),
    "no-record": lambda entry: (entry / "entry.json").unlink(),
    "half-a-record": lambda entry: (entry / "entry.json").write_text('{"spec": '),
    "another-record": lambda entry: (entry / "entry.json").write_text("[]"),
    "record-of-nothing": lambda entry: (entry / "entry.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_anew(path, cache, columns, damage):
    read(path, cache)
    entry = cache.entries()[0]["path"]
    DAMAGE[damage](entry)
    for _ in range(2):
        found = read(path, cache)
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(found.columns[name], columns[name])
    assert [one["path"] for one in cache.entries()] == [entry]
    assert json.loads((entry / "entry.json").read_text())["rows"] == 9


def test_a_column_that_is_asked_for_must_be_there_also_when_cached(tmp_path, raw, columns, cache):
    del columns["rewards"]
    path = raw(tmp_path / "x.hdf5", columns)
    read(path, cache)
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"x.hdf5: has no column 'rewards' \(it has"):
            read(path, cache, require=("actions", "rewards"))


def start(path: Path, folder: Path, barrier, results) -> None:
    barrier.wait()
    data = read(path, ColumnCache(folder))
    results.put(float(data.columns["rewards"].sum()))


def test_processes_that_start_at_once_are_safe(path, cache, columns):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    arguments = (path, cache.folder, barrier, results)
    workers = [context.Process(target=start, args=arguments) for _ in range(4)]
    for worker in workers:
        worker.start()
    sums = [results.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join()
    assert sums == [float(columns["rewards"].sum())] * 4
    assert len(cache.entries()) == 1 and not list(cache.folder.glob(".*"))


def test_a_folder_that_cannot_be_written_is_one_line(path, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DatasetError, match=r"cache: the column cache cannot be written .*: name"):
        read(path, ColumnCache(tmp_path / "cache"))


def test_clearing_removes_what_was_put_there_and_no_more(path, cache):
    (cache.folder / "other").mkdir(parents=True)
    data = read(path, cache)
    killed(cache.folder / "entry")
    assert cache.clear() == 1
    assert [file.name for file in cache.folder.iterdir()] == ["other"]
    assert data.columns["rewards"].sum() > 0  # who has it open keeps it
    assert cache.clear() == 0 and ColumnCache("/nowhere").clear() == 0


def killed(entry: Path) -> Path:
    """Leave what a process leaves that is killed while it makes an entry."""
    process = subprocess.Popen(["true"])
    process.wait()
    part = part_path(entry)
    part = part.with_name(part.name.replace(f".{os.getpid()}.", f".{process.pid}."))
    part.mkdir()
    (part / "observations.npy").write_bytes(b"half")
    return part


def test_what_killed_processes_left_goes_when_the_cache_is_next_used(path, cache):
    read(path, cache)
    part = killed(cache.folder / "entry")
    mine = part_path(cache.folder / "being-made")
    mine.mkdir()
    read(path, cache)
    assert not part.exists() and mine.exists()


def test_columns_that_the_disk_cannot_hold_are_refused_before_one_is_written(
    path, cache, monkeypatch
):
    monkeypatch.setattr("lit_offrl.common.files.SPARE_BYTES", 10**18)
    with pytest.raises(DatasetError, match=r"cached columns would take 0\.00 GB.*cache_dir"):
        read(path, cache)
    assert cache.entries() == [] and not list(cache.folder.rglob("*.npy"))


def test_it_lies_in_the_data_directory(tmp_path, monkeypatch):
    assert default_cache_dir(tmp_path) == tmp_path / "cache"
    monkeypatch.setenv("LIT_OFFRL_DATA", str(tmp_path / "other"))
    assert default_cache_dir() == tmp_path / "other" / "cache"
