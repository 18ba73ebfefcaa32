"""What damaged archives raise."""

from __future__ import annotations

import zipfile
import zlib

UNREADABLE_NPZ = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError),
    *(NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error),
)
"""What numpy and zipfile raise of an ``.npz`` that is damaged, no archive, or holds objects."""
