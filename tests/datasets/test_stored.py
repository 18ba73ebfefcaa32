import contextlib
import json
import multiprocessing
import shutil
import time
from collections import namedtuple

import numpy as np
import pytest
from filelock import FileLock

from lit_offrl.common import files
from lit_offrl.common.errors import DatasetError
from lit_offrl.datasets import stored
from lit_offrl.datasets.stored import fetch_array, stored_path

FACTS = {"dataset": "ab", "number": 3}


@pytest.fixture
def fetch(tmp_path):
    made = []

    def run(pieces=(np.arange(6), np.arange(6, 8)), facts=FACTS, shape=(8,), dtype=np.float16):
        def make(first):
            made.append(1)
            yield from (np.asarray(piece) for piece in pieces[first:])

        place = (tmp_path / "latents", "some", facts, shape, dtype)
        return fetch_array(*place, 6, make, "take fewer.")

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
    other = fetch(facts=FACTS | {"number": 4}, pieces=[np.ones(6), np.ones(2)])
    assert other.tolist() == [1] * 8 and fetch().tolist() == list(range(8))


def test_too_few_chunks_or_rows_are_refused(fetch):
    with pytest.raises(ValueError, match="shorter"):
        fetch(pieces=[np.arange(6)])
    with pytest.raises(ValueError, match=r"shape \(1,\) for 2 rows"):
        fetch(pieces=[np.arange(6), np.arange(1)])
    assert not fetch.path.exists()
    assert fetch().tolist() == list(range(8))


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


# ---- going on ------------------------------------------------------------------------------

CHUNKS, ROWS, CHUNK = 5, 14, 3  # the last chunk has two rows


class Killed(Exception):
    """Stands for the end of a process."""


class Making:
    """Makes one array, chunk by chunk, and notes which chunks."""

    def __init__(self, folder, facts=FACTS, chunk=CHUNK):
        self.folder, self.facts, self.chunk = folder, facts, chunk
        self.path = stored_path(folder, "some", facts)
        self.part = self.path.with_name(f"{self.path.name}.part")
        self.sums = self.path.with_name(f"{self.path.name}.part.sums")
        self.made = []
        self.values = np.random.default_rng(facts["number"]).normal(size=(ROWS, 2, 4))

    def before(self, place):
        """What happens before a chunk is made."""

    def chunks(self, first):
        for place, start in enumerate(range(0, ROWS, self.chunk)):
            if place >= first:
                self.before(place)
                self.made.append(place)
                yield self.values[start : start + self.chunk]

    def fetch(self, stop=lambda: False):
        self.made = []
        what = (self.folder, "some", self.facts, (ROWS, 2, 4), np.float16)
        return fetch_array(*what, self.chunk, self.chunks, "", stop)

    def killed(self, at):
        def die(place):
            if place == at:
                raise Killed

        self.before = die
        with pytest.raises(Killed):
            self.fetch()
        del self.before


@pytest.fixture
def whole(tmp_path):
    """The bytes of an array that nothing interrupted."""
    making = Making(tmp_path / "whole")
    making.fetch()
    assert sorted(path.suffix for path in making.folder.iterdir()) == [".json", ".lock", ".npy"]
    return making.path.read_bytes()


@pytest.mark.parametrize("at", range(CHUNKS))
def test_what_is_killed_at_any_chunk_goes_on_there_and_ends_as_the_unbroken(tmp_path, whole, at):
    making = Making(tmp_path)
    making.killed(at)
    assert not making.path.exists()
    making.fetch()
    assert making.made == list(range(at, CHUNKS)) and making.path.read_bytes() == whole
    assert not making.part.exists() and not making.sums.exists()


@pytest.mark.parametrize("at", range(1, CHUNKS + 1))
def test_what_is_stopped_after_any_chunk_too(tmp_path, whole, at):
    making = Making(tmp_path)
    assert making.fetch(stop=lambda: len(making.made) == at) is None
    assert making.made == list(range(at)) and not making.path.exists()
    making.fetch()
    assert making.made == list(range(at, CHUNKS)) and making.path.read_bytes() == whole


def cut(path, number=1):
    path.write_bytes(path.read_bytes()[:-number])


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "whole_ones"),
    [
        (lambda making: cut(making.part), 2),
        (lambda making: cut(making.part, 2 * 4 * 2 * CHUNK), 2),  # a chunk, of which the sum stays
        (lambda making: cut(making.sums), 2),
        (lambda making: flip(making.part, -1), 2),
        (lambda making: flip(making.part, 128 + 2 * 4 * 2 * CHUNK), 1),  # behind the header
        (lambda making: making.part.write_bytes(making.part.read_bytes() + b"torn"), 3),
        (lambda making: making.sums.write_bytes(making.sums.read_bytes() + b"to"), 3),
        (lambda making: making.part.write_bytes(b"torn"), 0),
        (lambda making: making.part.unlink(), 0),
        (lambda making: making.sums.unlink(), 0),
    ],
)
def test_a_torn_chunk_is_made_again(tmp_path, whole, damage, whole_ones):
    making = Making(tmp_path)
    making.killed(3)
    damage(making)
    making.fetch()
    assert making.made == list(range(whole_ones, CHUNKS)) and making.path.read_bytes() == whole


def test_chunks_of_another_key_or_size_are_not_used(tmp_path, whole):
    making, other = Making(tmp_path), Making(tmp_path, FACTS | {"number": 4})
    making.killed(3)
    np.testing.assert_array_equal(other.fetch(), other.values.astype(np.float16))
    assert len(other.made) == CHUNKS
    making.fetch()
    assert making.made == [3, 4] and making.path.read_bytes() == whole

    making.path.unlink()
    making.killed(3)
    larger = Making(tmp_path, chunk=4)
    larger.fetch()
    assert larger.made == list(range(4)) and larger.path.read_bytes() == whole


def test_what_is_there_counts_as_room(tmp_path, monkeypatch):
    making = Making(tmp_path)
    making.killed(4)
    usage = namedtuple("usage", "total used free")
    left = files.SPARE_BYTES + 2 * 2 * 4 * 2  # of the last chunk
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, left))
    assert making.fetch() is not None


# ---- two at once ---------------------------------------------------------------------------


def make_slowly(folder, answers):
    making = Making(folder)
    making.before = lambda place: time.sleep(0.1)
    answers.put((making.fetch().tobytes(), making.made))


def test_of_two_processes_one_makes_it(tmp_path, whole):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    workers = [context.Process(target=make_slowly, args=(tmp_path, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=600) for _ in workers]
    for worker in workers:
        worker.join()
    assert found[0][0] == found[1][0] == whole[128:]
    assert sorted(made for _, made in found) == [[], list(range(CHUNKS))]


def test_where_locks_do_not_hold_two_write_the_same(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(stored, "_acquire", lambda lock, stop: contextlib.nullcontext())
    one, other = Making(tmp_path), Making(tmp_path)
    one.before = lambda place: other.fetch() if place == 2 else None
    one.fetch()
    assert one.made == list(range(CHUNKS)) and other.made == [2, 3, 4]
    assert one.path.read_bytes() == whole


def test_whose_file_was_removed_moves_no_other_into_place(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "_acquire", lambda lock, stop: contextlib.nullcontext())
    one, other = Making(tmp_path), Making(tmp_path)

    def begin_anew(place):
        if place == 3:
            one.part.unlink()
            other.killed(2)

    one.before = begin_anew
    with pytest.raises(DatasetError, match="was removed or damaged while it was made"):
        one.fetch()
    assert not one.path.exists() and other.fetch() is not None and other.made == [2, 3, 4]


def test_who_waits_for_another_can_be_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "_LOOK", 0.01)
    making, asked = Making(tmp_path), []
    with FileLock(making.path.with_suffix(".lock")):
        assert making.fetch(stop=lambda: asked.append(1) or len(asked) == 3) is None
    assert not making.made
