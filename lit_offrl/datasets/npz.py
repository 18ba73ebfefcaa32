"""Archives of arrays from anywhere, damaged ones among them."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from lit_offrl.common.errors import first_line

FAULTS = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError),
    *(NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error),
)


class UnreadableError(Exception):
    """An archive that is damaged, is none, or holds objects; the text says which part and why."""


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of an ``.npz``; nothing is unpickled.

    Raises:
        UnreadableError: it cannot be read whole.
    """
    key, arrays = "its list of arrays", {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                arrays[key] = file[key]
    except FAULTS as error:
        raise UnreadableError(f"{key} cannot be read ({first_line(error)})") from error
    return arrays
