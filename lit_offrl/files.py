"""Files that are written whole or not at all, and what tells two of them apart."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_offrl.errors import FileError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a place beside ``path`` to write to, and move what is written there to ``path``.

    Missing folders are made, an existing file is replaced. If the block fails, what was there is
    there still, and nothing beside it.

    Raises:
        OSError: of the file system, for callers that have advice of their own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())  # before the rename, lest a crash leave an empty file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """As :func:`replacing`, with an error of one line.

    Raises:
        FileError: it cannot be written.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise _not_written(path, error) from None


def make_folder(path: Path) -> None:
    """Make a folder, if it is not there, before the work whose outcome goes into it.

    Raises:
        FileError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or error
        raise FileError(f"{path}: cannot be made ({why}): choose another place.") from None


def require_writable(path: Path) -> None:
    """See that a file can be written, before the work whose outcome it is to have.

    Missing folders are made.

    Raises:
        FileError: it cannot be written.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _not_written(path, error) from None


def _not_written(path: Path, error: OSError) -> FileError:
    why = error.strerror or error
    return FileError(f"{path}: cannot be written ({why}): choose another place.")


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file, text as UTF-8, whole or not at all; missing folders are made.

    Raises:
        FileError: it cannot be written; what was there is there still.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
