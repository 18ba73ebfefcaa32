"""Large arrays made once for a dataset, kept on disk, and shared by all processes of a host.

FOLDER/NAME-KEY.npy       the array, memory-mapped by whoever reads it
FOLDER/NAME-KEY.json      the facts that the key was made of, for people
FOLDER/NAME-KEY.lock      held while the array is made, so that a second process waits

The key is a hash of all that the array depends on. It is written under another name and moved into
place, so that it is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from lit_offrl.errors import DatasetError
from lit_offrl.files import replacing

_SPARE = 64 * 2**20  # bytes of a disk that are left free


def stored_path(folder: Path, name: str, facts: Mapping[str, Any]) -> Path:
    """Return where the array of a name and of plain facts belongs."""
    text = json.dumps(dict(facts), sort_keys=True)
    return folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npy"


def fetch_array(
    folder: Path,
    name: str,
    facts: Mapping[str, Any],
    shape: tuple[int, ...],
    dtype: np.dtype | type,
    make: Callable[[], Iterable[np.ndarray]],
    advice: str,
) -> np.ndarray:
    """Return an array, memory-mapped and read-only, made where it is missing or damaged.

    Args:
        folder: made when it is first written to.
        name: what the file's name begins with.
        facts: all that the array depends on; plain types.
        shape: of the array.
        dtype: of the array.
        make: gives its rows in order, in pieces of any size.
        advice: what to do where the disk cannot hold it.

    Raises:
        DatasetError: the disk cannot hold the array, or the folder cannot be written.
    """
    path = stored_path(folder, name, facts)
    found = _load(path, shape, dtype)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            found = _load(path, shape, dtype)  # another process may have made it meanwhile
            if found is None:
                for left in folder.glob(f".{path.name}.*.part"):  # by processes that were killed
                    left.unlink(missing_ok=True)
                _require_room(path, shape, dtype, advice)
                _write(path, shape, np.dtype(dtype), make())
                note = json.dumps(dict(facts), indent=1, sort_keys=True) + "\n"
                path.with_suffix(".json").write_text(note, encoding="utf-8")
                found = _load(path, shape, dtype)
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be written ({error.strerror or error}): {advice}"
        ) from None
    if found is None:
        raise DatasetError(f"{path}: was removed or damaged while it was made: try again.")
    return found


def _load(path: Path, shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray | None:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = mapped.shape == shape and mapped.dtype == np.dtype(dtype)
    return np.asarray(mapped) if fits else None


def _require_room(path: Path, shape: tuple[int, ...], dtype: np.dtype | type, advice: str) -> None:
    needed = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    free = shutil.disk_usage(path.parent).free - _SPARE
    if needed > free:
        raise DatasetError(
            f"{path}: would take {needed / 1e9:.2f} GB ({' × '.join(map(str, shape))} numbers of "
            f"{np.dtype(dtype)}), and the disk has {max(free, 0) / 1e9:.2f} GB left: {advice}"
        )


def _write(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, pieces: Iterable[np.ndarray]
) -> None:
    rows = 0
    # Written rather than mapped: a full disk is then an error and not a signal.
    with replacing(path) as temporary, temporary.open("wb") as stream:
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for piece in pieces:
            if piece.shape[1:] != shape[1:]:
                raise ValueError(f"rows of shape {piece.shape[1:]} for {shape}")
            stream.write(np.ascontiguousarray(piece, dtype).data)
            rows += len(piece)
        if rows != shape[0]:
            raise ValueError(f"{rows} rows for {shape}")
