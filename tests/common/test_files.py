"""Files are written whole or not at all."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lit_offrl.common.errors import FileError
from lit_offrl.common.files import (
    begins,
    is_json_with,
    part_path,
    replacing,
    require_replaceable,
    require_writable,
    sweep,
    write_whole,
)
from lit_offrl.figures import save_figure, training_curves


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_folders_are_made_and_files_replaced(tmp_path):
    path = tmp_path / "new" / "note.txt"
    for content in ("γ", b"bytes", memoryview(b"views")):
        write_whole(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(path.parent) == ["note.txt"]


def test_what_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "note.txt"
    write_whole(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        1 / 0
    assert path.read_text() == "old" and names(tmp_path) == ["note.txt"]


def test_whoever_may_read_other_new_files_may_read_this_one(tmp_path):
    path, usual = tmp_path / "policy.safetensors", tmp_path / "usual"
    usual.touch()
    with replacing(path) as temporary:  # as safetensors does: a file of its owner's, moved there
        made = tmp_path / "made"
        os.close(os.open(made, os.O_CREAT | os.O_WRONLY, 0o600))
        made.replace(temporary)
    assert path.stat().st_mode == usual.stat().st_mode


@pytest.mark.parametrize("path", [Path(""), Path(".")])
def test_the_working_folder_is_no_place_for_a_file(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for write in (require_writable, lambda path: write_whole(path, "text")):
        with pytest.raises(FileError, match=r"^\.: cannot be written \(Is a directory\)"):
            write(path)
    assert names(tmp_path) == []


def test_only_an_earlier_output_of_the_kind_is_replaced(tmp_path):
    path, is_page = tmp_path / "page.md", lambda path: begins(path, b"# Page")
    for content in (None, b"", b"# Page of last week"):
        if content is not None:
            path.write_bytes(content)
        require_replaceable(path, "page", is_page)
    with pytest.raises(FileError, match=r"page\.md: is another file of this command"):
        require_replaceable(path, "page", is_page, [None, tmp_path / "x" / ".." / "page.md"])
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(FileError, match=r"page\.md: is there already and is no earlier page:"):
        require_replaceable(path, "page", is_page)
    assert path.read_bytes() == b"PK\x03\x04"


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"other": 1}', b"{\xff", b"\x89HDF"])
def test_a_json_mapping_is_known_by_its_names(tmp_path, content):
    path = tmp_path / "file"
    assert not is_json_with(path, ["name"])
    path.write_bytes(content)
    assert not is_json_with(path, ["name"])
    path.write_bytes(b'{"name": 1, "more": 2}')
    assert is_json_with(path, ["name"])


@pytest.mark.parametrize("write", [
    require_writable,
    lambda path: write_whole(path, "text"),
    lambda path: save_figure(training_curves({"loss": [(1, 3.0), (2, 4.0)]}), path),
])  # fmt: skip
def test_a_folder_in_the_place_is_one_line(tmp_path, write):
    place = tmp_path / "picture.png"
    place.mkdir()
    with pytest.raises(FileError, match=r"picture\.png: cannot be written \(Is a directory\)"):
        write(place)
    assert names(tmp_path) == ["picture.png"]


def test_a_file_in_the_folders_place_is_one_line(tmp_path):
    write_whole(tmp_path / "file", "old")
    for write in (require_writable, lambda path: write_whole(path, "text")):
        with pytest.raises(FileError, match=r"note\.txt: cannot be written \(.+\): choose"):
            write(tmp_path / "file" / "note.txt")


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path):
    write_whole(tmp_path / "note.txt", "old")
    require_writable(tmp_path / "note.txt")
    require_writable(tmp_path / "new" / "note.txt")
    assert names(tmp_path) == ["new", "note.txt"] and names(tmp_path / "new") == []
    assert (tmp_path / "note.txt").read_text() == "old"


WRITE_AND_BE_KILLED = """
import os, signal, sys, types
from pathlib import Path
sys.path.insert(0, sys.argv[2])
sys.modules["lit_offrl"] = package = types.ModuleType("lit_offrl")  # without its imports
package.__path__ = [sys.argv[2] + "/lit_offrl"]
from lit_offrl.common.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_when_the_folder_is_next_written(tmp_path, request):
    path, root = tmp_path / "last.ckpt", str(request.config.rootpath)
    write_whole(path, "whole")
    run = [sys.executable, "-c", WRITE_AND_BE_KILLED, str(path), root]
    assert subprocess.run(run, check=False).returncode == -9
    assert len(names(tmp_path)) == 2 and path.read_text() == "whole"
    write_whole(tmp_path / "another.json", "{}")
    assert names(tmp_path) == ["another.json", "last.ckpt"]


def named(path, pid=None, machine=None):
    """Return the part that another process, or another machine, would write."""
    name = part_path(path).name
    _, mine, number, _ = name.rsplit(".", 3)
    name = name.replace(f".{number}.part", f".{pid or number}.part")
    return path.with_name(name.replace(mine, mine if machine is None else machine))


def test_parts_that_may_still_be_written_stay(tmp_path):
    alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    dead = subprocess.Popen(["true"])
    dead.wait()
    path, day = tmp_path / "last.ckpt", 24 * 3600
    kept = {
        named(path): 0,  # of this process
        named(path, alive.pid): 0,
        named(path, dead.pid, "0" * 12): day - 60,  # another machine's, on a shared disk
        tmp_path / f".last.ckpt.{dead.pid}.part": 0,  # of an unknown machine
        tmp_path / "download.hdf5.part": 9 * day,  # goes on where it broke off
        tmp_path / "notes.part": 9 * day,
    }
    swept = {
        named(path, dead.pid): 0,
        named(tmp_path / "again.ckpt", alive.pid): day,  # a number that is used again
        named(tmp_path / "other.ckpt", machine="f" * 12): day + 60,
        tmp_path / f".old.ckpt.{alive.pid}.part": day + 60,
    }
    for part, age in {**kept, **swept}.items():
        part.write_text("half")
        os.utime(part, (time.time() - age,) * 2)
    sweep(tmp_path)
    assert names(tmp_path) == sorted(part.name for part in kept)
    alive.communicate(b"\n")
    sweep(tmp_path)
    assert not named(path, alive.pid).exists()
    sweep(tmp_path / "nowhere")


def test_two_threads_that_write_one_file_do_not_share_the_part(tmp_path):
    path, both = tmp_path / "last.ckpt", threading.Barrier(2, timeout=60)

    def write(text):
        with replacing(path) as part:
            part.write_text(text)
            both.wait()
            assert part.read_text() == text
        return part

    with ThreadPoolExecutor(2) as threads:
        parts = [*threads.map(write, ["one", "other"])]
    assert parts[0] != parts[1] and path.read_text() in ("one", "other")
    assert names(tmp_path) == ["last.ckpt"]

    dead = subprocess.Popen(["true"])
    dead.wait()
    left = parts[0].with_name(parts[0].name.replace(f".{os.getpid()}-", f".{dead.pid}-"))
    for part in (left, parts[1]):
        part.write_text("half")
    sweep(tmp_path)
    assert names(tmp_path) == sorted([parts[1].name, "last.ckpt"])
