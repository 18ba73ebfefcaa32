"""Files are written whole or not at all."""

import pytest

from lit_offrl.errors import FileError
from lit_offrl.figures import save_figure, training_curves
from lit_offrl.files import replacing, require_writable, write_whole


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
