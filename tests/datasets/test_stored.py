import json
import shutil
from collections import namedtuple

import numpy as np
import pytest

from lit_offrl.datasets.stored import fetch_array, stored_path
from lit_offrl.errors import DatasetError

FACTS = {"dataset": "ab", "number": 3}


@pytest.fixture
def fetch(tmp_path):
    made = []

    def run(pieces=(np.arange(6), np.arange(6, 8)), facts=FACTS, shape=(8,), dtype=np.float16):
        def make():
            made.append(1)
            yield from (np.asarray(piece) for piece in pieces)

        return fetch_array(tmp_path / "latents", "some", facts, shape, dtype, make, "take fewer.")

    run.made, run.path = made, stored_path(tmp_path / "latents", "some", FACTS)
    return run


def test_an_array_is_made_once_and_read_only(fetch):
    first, again = fetch(), fetch()
    np.testing.assert_array_equal(first, np.arange(8))
    np.testing.assert_array_equal(again, first)
    assert again.dtype == np.float16 and not again.flags.writeable and len(fetch.made) == 1
    assert json.loads(fetch.path.with_suffix(".json").read_text()) == FACTS
    assert isinstance(again.base, np.memmap)


def test_other_facts_are_another_array(fetch):
    fetch()
    other = fetch(facts=FACTS | {"number": 4}, pieces=[np.ones(8)])
    assert other.tolist() == [1] * 8 and fetch().tolist() == list(range(8))


def test_what_breaks_off_leaves_nothing(fetch):
    def broken():
        yield np.arange(6)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(pieces=broken())
    assert {path.suffix for path in fetch.path.parent.iterdir()} <= {".lock"}
    with pytest.raises(ValueError, match="6 rows"):
        fetch(pieces=[np.arange(6)])
    assert not fetch.path.exists()
    assert fetch().tolist() == list(range(8))


def test_what_a_killed_process_left_is_removed(fetch):
    fetch.path.parent.mkdir()
    left = fetch.path.with_name(f".{fetch.path.name}.4711.part")
    other = fetch.path.with_name(".some-0123.npy.4711.part")  # one in the making
    for path in (left, other):
        path.write_bytes(b"half")
    assert fetch().tolist() == list(range(8))
    assert not left.exists() and other.exists()


def test_a_damaged_or_shorter_file_is_made_anew(fetch):
    fetch()
    fetch.path.write_bytes(fetch.path.read_bytes()[:-3])
    assert fetch().tolist() == list(range(8)) and len(fetch.made) == 2
    np.save(fetch.path, np.zeros(5, np.float16))
    assert fetch().tolist() == list(range(8)) and len(fetch.made) == 3


def test_a_disk_without_room_is_said_before_anything_is_made(fetch, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 10**9))
    with pytest.raises(DatasetError, match=r"2\.00 GB \(1000000000 numbers.*0\.93 GB left: take"):
        fetch(shape=(10**9,))
    assert not fetch.made


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, fetch):
    (tmp_path / "latents").write_text("a file")
    with pytest.raises(DatasetError, match="cannot be written"):
        fetch()
