"""Large arrays made once for a dataset, kept on disk, and shared by all processes of a host.

FOLDER/NAME-KEY.npy            the array, memory-mapped by whoever reads it
FOLDER/NAME-KEY.npy.part       while it is made: its chunks so far
FOLDER/NAME-KEY.npy.part.sums  the CRC-32 of each of them, 4 bytes
FOLDER/NAME-KEY.json           the facts that the key was made of, for people
FOLDER/NAME-KEY.lock           held while the array is made, so that a second process waits

The key is a hash of all that the array depends on, and a chunk depends only on its place. So
whoever finds chunks goes on after the last whole one, however the process that made them ended:
what does not agree with its sum is made again. The array is moved into place once it is whole.

Chunks are written where they belong and nothing is cut off, so that where a file system's locks
do not hold, two processes write the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import AcquireReturnProxy, FileLock, Timeout

from lit_offrl.common.errors import DatasetError
from lit_offrl.common.files import free_bytes

_LOOK = 1.0  # seconds after which whoever waits for the lock looks whether to stop


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
    chunk: int,
    make: Callable[[int], Iterable[np.ndarray]],
    advice: str,
    stop: Callable[[], bool] = lambda: False,
) -> np.ndarray | None:
    """Return an array, memory-mapped and read-only, made where it is missing or damaged.

    Args:
        folder: Folder of the array, which is made at the first write.
        name: Beginning of the file's name.
        facts: All that the array depends on, in plain types.
        shape: Shape of the array.
        dtype: Type of its numbers.
        chunk: Number of rows in a chunk; the last chunk may have fewer.
        make: Yields the chunks in order, from the one of a given number on.
        advice: What to do if the disk cannot hold the array, for the message.
        stop: Whether to leave the array unfinished; called after each chunk and while another
            process has the lock.

    Returns:
        The array, or None if ``stop`` returned true; finished chunks stay for the next time.

    Raises:
        DatasetError: The disk cannot hold the array, or the folder cannot be written.
    """
    path = stored_path(folder, name, facts)
    found = _load(path, shape, dtype)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = _acquire(FileLock(path.with_suffix(".lock")), stop)
        if held is None:
            return None
        with held:
            found = _load(path, shape, dtype)  # another process may have made it meanwhile
            if found is None:
                _require_room(path, shape, dtype, advice)
                if not _write(path, shape, np.dtype(dtype), chunk, make, stop):
                    return None
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


def _acquire(lock: FileLock, stop: Callable[[], bool]) -> AcquireReturnProxy | None:
    while not stop():
        with contextlib.suppress(Timeout):
            return lock.acquire(timeout=_LOOK)
    return None


def _require_room(path: Path, shape: tuple[int, ...], dtype: np.dtype | type, advice: str) -> None:
    needed = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    free = free_bytes(path.parent)
    with contextlib.suppress(FileNotFoundError):
        free += path.with_name(path.name + ".part").stat().st_size
    if needed > free:
        raise DatasetError(
            f"{path}: would take {needed / 1e9:.2f} GB ({' × '.join(map(str, shape))} numbers of "
            f"{np.dtype(dtype)}), and the disk has {free / 1e9:.2f} GB left: {advice}"
        )


def _write(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype,
    chunk: int,
    make: Callable[[int], Iterable[np.ndarray]],
    stop: Callable[[], bool],
) -> bool:
    """Make the missing chunks and move the array into place; return False if ``stop`` says so."""
    part = path.with_name(path.name + ".part")
    sizes = [min(chunk, shape[0] - start) for start in range(0, shape[0], chunk)]
    row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    # Written rather than mapped: a full disk is then an error and not a signal.
    with _opened(part) as stream, _opened(part.with_name(part.name + ".sums")) as sums:
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        begun = _whole_chunks(stream, sums, [size * row for size in sizes])
        for size, piece in zip(sizes[begun:], make(begun), strict=True):
            if piece.shape != (size, *shape[1:]):
                raise ValueError(f"a chunk of shape {piece.shape} for {size} rows of {shape}")
            data = np.ascontiguousarray(piece, dtype).data.cast("B")
            for file, content in ((stream, data), (sums, _sum(data))):
                file.write(content)
                file.flush()  # the chunk before its sum
            if stop():
                return False
        os.fsync(stream.fileno())  # before the rename, lest a crash leave an empty file
        with contextlib.suppress(FileNotFoundError):  # removed, perhaps begun anew by another
            if os.path.samestat(os.fstat(stream.fileno()), part.stat()):
                part.replace(path)
                Path(sums.name).unlink()
    return True


def _opened(path: Path) -> BinaryIO:
    """Open a file to read and write what it has, empty where it is not there."""
    path.touch()
    return path.open("r+b")


def _whole_chunks(stream: BinaryIO, sums: BinaryIO, sizes: list[int]) -> int:
    """Count the chunks of these bytes that agree with their sums, and go to where they end."""
    for place, size in enumerate(sizes):
        start, data = stream.tell(), stream.read(size)
        if len(data) < size or _sum(data) != sums.read(4):
            stream.seek(start)
            sums.seek(4 * place)
            return place
    return len(sizes)


def _sum(data: bytes | memoryview) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")
