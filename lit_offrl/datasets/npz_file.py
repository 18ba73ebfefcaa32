"""Arrays of an ``.npz`` in blocks of rows, each looked at before memory or disk is given to it.

An ``.npz`` is a zip file with a ``.npy`` file for each array. Its members are found by name in the
archive and never written under their names; nothing is unpickled. A member may promise any number
of bytes, be cut short or damaged: what it holds is compared with what its headers say.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_offrl.common.errors import DatasetError, first_line
from lit_offrl.datasets import hdf5_limits
from lit_offrl.datasets.columns import listed
from lit_offrl.datasets.npz import FAULTS

_BLOCK = 1 << 22  # bytes of a block of rows
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those that NumPy writes
_ENCRYPTED = 0x1
_AGAIN = "make or download the file again"


class Array(NamedTuple):
    """What an array's header says."""

    shape: tuple[int, ...]
    dtype: np.dtype


class NpzFile:
    """An open ``.npz``, of which chosen arrays can be read.

    Args:
        path: The file.
        names: Arrays that are looked at; others may be anything.

    Attributes:
        arrays: Shape and dtype of those that are there; all have a first dimension.

    Raises:
        DatasetError: The file is no zip file, or one of the arrays cannot be read in blocks.
    """

    def __init__(self, path: Path, names: Collection[str]) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (*FAULTS, struct.error) as error:
            raise DatasetError(
                f"{path}: is no readable .npz file ({first_line(error)}): {_AGAIN}."
            ) from None
        self.arrays: dict[str, Array] = {}
        self._starts: dict[str, int] = {}
        try:
            self._look(names)
        except DatasetError:
            self._zip.close()
            raise

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._zip.close()

    def need(self, name: str) -> Array:
        """Return what an array's header says, or raise DatasetError where there is none."""
        if name not in self.arrays:
            has = sorted(member.removesuffix(".npy") for member in self._zip.namelist())
            raise DatasetError(f"{self.path}: has no array '{name}' (it has {listed(has)}).")
        return self.arrays[name]

    def rows(self, name: str) -> Iterator[np.ndarray]:
        """Yield an array's rows in blocks.

        Raises:
            DatasetError: The array is cut short, damaged, or has a number that is not finite; the
                line names its row.
        """
        shape, dtype = self.arrays[name]
        row = dtype.itemsize * math.prod(shape[1:])
        at_once = max(1, _BLOCK // max(1, row))
        try:
            with self._zip.open(f"{name}.npy") as stream:
                stream.read(self._starts[name])
                for start in range(0, shape[0], at_once):
                    count = min(at_once, shape[0] - start)
                    data = stream.read(count * row)
                    if len(data) < count * row:
                        raise self._wrong(name, f"ends in row {start + len(data) // row:,}")
                    yield self._finite(
                        name, np.frombuffer(data, dtype).reshape(count, *shape[1:]), start
                    )
                stream.read(1)  # at its end the sum over its bytes is compared
        except (*FAULTS, struct.error) as error:
            if isinstance(error, DatasetError):
                raise
            raise self._wrong(name, f"cannot be read ({first_line(error)})") from None

    def _look(self, names: Collection[str]) -> None:
        members = self._zip.infolist()
        sizes = {}
        for name in names:
            found = [member for member in members if member.filename == f"{name}.npy"]
            if len(found) > 1:
                raise self._wrong(name, f"is in it {len(found)} times")
            if found:
                self._look_at(name, found[0])
                sizes[name] = found[0].file_size
        hdf5_limits.refuse_unwritten(sizes, self.path.stat().st_size, str(self.path))

    def _look_at(self, name: str, member: zipfile.ZipInfo) -> None:
        if member.flag_bits & _ENCRYPTED or member.compress_type not in _METHODS:
            raise self._wrong(name, "is encrypted, or compressed in a way that NumPy does not use")
        try:
            with self._zip.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                if version not in ((1, 0), (2, 0)):
                    raise ValueError(f"version {version} of NumPy's format")
                read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
                shape, in_columns, dtype = read(stream)
                self._starts[name] = stream.tell()
        except (*FAULTS, struct.error, SyntaxError, RecursionError) as error:
            raise self._wrong(name, f"has no readable header ({first_line(error)})") from None
        if dtype.kind not in "fiub":
            raise self._wrong(name, f"has dtype {dtype}, not numbers")
        if not shape or any(size < 0 for size in shape):
            raise self._wrong(name, f"has shape {shape}, without rows")
        if in_columns and len(shape) > 1:
            raise self._wrong(name, "is stored by columns (Fortran's order), not by rows")
        held, said = member.file_size - self._starts[name], dtype.itemsize * math.prod(shape)
        if held != said:
            raise self._wrong(name, f"has {held:,} bytes, where its shape {shape} needs {said:,}")
        self.arrays[name] = Array(shape, dtype)

    def _finite(self, name: str, values: np.ndarray, start: int) -> np.ndarray:
        if values.dtype.kind == "f":
            bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if bad.any():
                row = int(np.argmax(bad))
                what = "NaN" if np.isnan(values[row]).any() else "an infinite value"
                raise self._wrong(name, f"has {what} in row {start + row:,}")
        return values

    def _wrong(self, name: str, what: str) -> DatasetError:
        return DatasetError(f"{self.path}: array '{name}' {what}: {_AGAIN}.")
