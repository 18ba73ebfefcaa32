"""An HDF5 file from anywhere, opened so that every fault is one line and nothing leads out of it.

Links to other files, arrays stored in other files and objects that would need unpickling are
refused; symbolic links within the file too, since they may lead on to such a link.
"""

from __future__ import annotations

import difflib
import os
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lit_offrl.common.errors import DatasetError, nearest
from lit_offrl.datasets import ends
from lit_offrl.datasets.columns import ALIASES, KINDS, NUMERIC, check_layout, need_ends
from lit_offrl.datasets.hdf5_limits import (
    is_elsewhere,
    refuse_unwritten,
    require_memory,
    say_missing,
)

_DEEPEST = 3  # groups one in another in which episodes' ends are looked for
_MOST = 10_000  # objects that are looked at for it
_ITEM_SIZES = {"flags": 1}  # bytes in memory; all else is float32
# Where a column may stand in a file, beside under its own name.
_OTHER_KEYS = {"goals": "infos/goal", **{column: alias for alias, column in ALIASES.items()}}


class Hdf5File:
    """A context manager over one file.

    Attributes:
        path: The file.
        attributes: Attributes of the file, as str, numbers or tuples of numbers.
        columns: Known columns that the file has.
        ends: Other arrays that may say where episodes end, see ``ends``, by their paths.

    Raises:
        DatasetError: on entering, if the file is missing, no file, not HDF5, truncated or damaged;
            if a column is a group, leads out of the file, or is misspelt.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.attributes: dict[str, Any] = {}
        self.columns: dict[str, h5py.Dataset] = {}
        self.ends: dict[str, h5py.Dataset] = {}
        self._fits = False

    def __enter__(self) -> Hdf5File:
        self._file = open_hdf5(self.path)
        try:
            self.attributes = _plain_attributes(self._file)
            for name in KINDS:
                for key in (name, _OTHER_KEYS.get(name)):
                    found = self._find(key) if key else None
                    if found is not None:
                        self.columns.setdefault(name, found)
            self._refuse_misspelt()
            self.ends = {key: found for key in self._ends() if (found := self._find(key))}
        except BaseException as error:
            self._file.close()
            if isinstance(error, OSError | RuntimeError | KeyError):  # h5py's, of broken trees
                raise self._damaged("its columns cannot be listed", error) from None
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def check_columns(self, require: tuple[str, ...]) -> None:
        """Check names, shapes and dtypes without reading a value.

        Raises:
            DatasetError: if one of ``require`` or ``observations``, or the episodes' ends,
                is absent, or if a column is wrong.
        """
        for name in ("observations", *require):
            if name not in self.columns:
                keys = list(self._file)
                raise DatasetError(
                    f"{self.path}: has no column '{name}' (it has {', '.join(keys) or 'nothing'})."
                    f"{nearest(name, keys) or ' Choose a file that has it.'}"
                )
        if not ends.decisive(self.ends):
            if not {"terminals", "timeouts"} & self.columns.keys():
                ends.refuse_undecided(self.ends, str(self.path))
            need_ends(self.columns, str(self.path))
        rows = None
        for name, column in self.columns.items():  # observations come first and set the length
            shape = check_layout(name, column.shape or (), column.dtype, rows, str(self.path))
            rows = shape[0] if rows is None else rows
        refuse_unwritten(self._sizes(), self.path.stat().st_size, str(self.path))

    def read(self, name: str) -> np.ndarray:
        """Read a column, or one of ``ends``, as it is stored.

        Raises:
            DatasetError: if its bytes are damaged, in a compression that is not installed, or do
                not fit into memory.
        """
        column = (self.columns | self.ends)[name]
        self.require_memory()
        # Known beforehand and said afterwards: pieces may be stored without their compression.
        uncompressed = say_missing(column, name, str(self.path))
        try:
            return column[()]
        except MemoryError:
            raise DatasetError(
                f"{self.path}: column '{name}' of shape {column.shape} does not fit into "
                "memory: use a machine with more, or a smaller file."
            ) from None
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            if uncompressed is not None:
                raise DatasetError(uncompressed) from None
            raise self._damaged(f"column '{name}' cannot be read", error) from None

    def read_ends(self) -> dict[str, np.ndarray]:
        """Read what may say where episodes end, ``terminals`` and ``timeouts`` among it."""
        rows = self.columns["observations"].shape[0]
        own = self.columns.keys() & {"terminals", "timeouts"}
        found = {name: self.read(name) for name in own}
        settled = ends.settled(found)
        for key, column in self.ends.items():
            shape = column.shape or ()
            if not ends.may_claim(key, shape, column.dtype, rows):
                continue
            if key.count("/") > 1 and shape[:1] != (rows,):
                continue  # of what else the file holds, as of single demonstrations
            if column.shape is None or column.size > rows:
                if settled:
                    continue
                what = f"has shape {shape} where 'observations' has {rows:,} rows"
                ends.refuse(key, what, str(self.path))
            found[key] = self.read(key)
        return found

    def _damaged(self, what: str, error: BaseException) -> DatasetError:
        said = f"{self.path}: {what} ({_reason(error)}): the file is damaged; collect or download"
        return DatasetError(f"{said} it again.")

    def require_memory(self) -> None:
        """Raise DatasetError if the columns, as stored and as they become, do not fit into memory.

        Whoever reads a column asks for this first, so that a file is refused at once or not.
        """
        if not self._fits:
            require_memory(self._sizes(converted=True), str(self.path))
            self._fits = True

    def _sizes(self, converted: bool = False) -> dict[str, int]:
        """Return the bytes of each column before compression, with those of what is made of it."""
        rows = self.columns["observations"].shape[0]
        few = {key: found for key, found in self.ends.items() if (found.size or 0) <= rows}
        sizes = {}
        for key, found in (self.columns | few).items():
            sizes[key] = (found.size or 0) * found.dtype.itemsize
            if converted and found.dtype not in (np.float32, np.bool_):
                sizes[key] += (found.size or 0) * _ITEM_SIZES.get(KINDS.get(key, "flags"), 4)
        return sizes

    def _find(self, key: str) -> h5py.Dataset | None:
        """Return the array under a key such as ``infos/goal``, following only hard links."""
        node: h5py.Group | h5py.Dataset = self._file
        for part in key.split("/"):
            if not isinstance(node, h5py.Group) or part not in node.keys():
                return None
            if not isinstance(node.get(part, getlink=True), h5py.HardLink):
                raise DatasetError(
                    f"{self.path}: '{key}' is a link, which is not followed: "
                    "write a file that holds the column itself."
                )
            try:
                node = node[part]
            except (KeyError, OSError, RuntimeError) as error:
                raise self._damaged(f"'{key}' cannot be opened", error) from None
        if not isinstance(node, h5py.Dataset):
            raise DatasetError(
                f"{self.path}: '{key}' is a group, where an array is needed: "
                "write the column itself under that name."
            )
        if is_elsewhere(node):
            raise DatasetError(
                f"{self.path}: column '{key}' keeps its values in another file, which is not "
                "followed: write a file that holds the column itself."
            )
        return node

    def _refuse_misspelt(self) -> None:
        """Refuse ``timeout`` for ``timeouts``: read as absent, it would silently join episodes."""
        known = {*KINDS, *ALIASES}
        unknown = {key.lower(): key for key in self._file if key not in known}
        for name in KINDS:
            if name not in self.columns:
                near = difflib.get_close_matches(name, unknown, n=1, cutoff=0.85)
                if near:
                    raise DatasetError(
                        f"{self.path}: has a column '{unknown[near[0]]}', which is none of ours. "
                        f"Did you mean '{name}'? Rename it in the file."
                    )

    def _ends(self) -> Iterator[str]:
        """Yield the paths of unknown arrays, down to three groups deep, that may claim ends."""
        waiting = deque(key for key in self._file if key not in KINDS and key not in ALIASES)
        visited = len(waiting)
        while waiting:
            key = waiting.popleft()
            kind, depth = ends.kind_of(key), key.count("/")
            if not isinstance(self._file.get(key, getlink=True), h5py.HardLink):
                if kind:
                    yield key  # which is refused as a link
                continue
            try:
                node = self._file[key]
            except (KeyError, OSError, RuntimeError):
                continue  # damaged, and nothing that is read
            flag = kind in ("terminals", "timeouts", "ends") and not depth  # refused as a group
            if isinstance(node, h5py.Group) and not flag:
                if depth < _DEEPEST and visited + len(node) <= _MOST:
                    waiting.extend(f"{key}/{below}" for below in node)
                    visited += len(node)
            elif kind and (flag or isinstance(node, h5py.Dataset)):
                yield key


def open_hdf5(path: Path) -> h5py.File:
    """Open a file to read, or raise DatasetError where it is none or cannot be opened."""
    if path.is_dir():
        raise DatasetError(f"{path}: is a directory: name an HDF5 file in it.")
    if not path.exists():
        beside = [place.name for place in path.parent.glob("*")]
        raise DatasetError(f"{path}: no such file: check the path.{nearest(path.name, beside)}")
    try:
        if path.stat().st_size == 0:
            raise DatasetError(f"{path}: is an empty file: collect or download it again.")
        with path.open("rb"):  # for a plain message where it may not be read
            pass
        if not h5py.is_hdf5(path):
            raise DatasetError(f"{path}: is not an HDF5 file: choose a dataset in HDF5 format.")
        return h5py.File(path, "r")
    except OSError as error:
        reason = _reason(error)
        sizes = re.search(r"truncated file: eof = (\d+).*stored_eof = (\d+)", reason)
        if sizes:
            has, needs = (f"{int(size):,}" for size in sizes.groups())
            reason = f"truncated, {has} of {needs} bytes"
        raise DatasetError(
            f"{path}: cannot be opened ({reason}): copy, collect or download it again."
        ) from None


def _plain_attributes(file: h5py.File) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key in file.attrs:
        try:
            value = file.attrs[key]
        except (OSError, TypeError, ValueError, RuntimeError):
            continue  # of a type that has no counterpart here: nothing that the readers use
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, np.ndarray) and value.ndim > 1 and value.size == max(value.shape):
            value = value.reshape(-1)  # a row or a column of a matrix
        if isinstance(value, np.ndarray) and value.ndim <= 1 and value.dtype.kind in NUMERIC:
            value = value.item() if value.size == 1 and value.ndim == 0 else tuple(value.tolist())
        elif isinstance(value, np.generic) and value.dtype.kind in NUMERIC:
            value = value.item()
        if isinstance(value, str | int | float | tuple):
            plain[key] = value
    return plain


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).strip("'\"") or type(error).__name__
