"""Files written whole or not at all, and what damaged archives raise."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

from lit_offrl.errors import DatasetError

UNREADABLE_NPZ = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError),
    *(NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error),
)
"""What numpy and zipfile raise of an ``.npz`` that is damaged, no archive, or holds objects."""


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file in one step; missing folders are made, an existing file is replaced.

    Raises:
        DatasetError: if it cannot be written; what was there is there still.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())  # before the rename, lest a crash leave an empty file
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be written ({error.strerror or error}): choose another place."
        ) from None
