"""Columns of a LeRobot folder's data files in blocks of rows, each value looked at on the way.

Parquet is read a few thousand rows at a time and only the columns that are asked for, so memory
does not grow with the data. Lists must have the length that ``info.json`` says in every row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_offrl.common.errors import DatasetError, nearest, reason
from lit_offrl.datasets import hdf5_limits
from lit_offrl.datasets.columns import listed
from lit_offrl.datasets.lerobot_folder import AGAIN, Episodes, Feature

_BLOCK = 1 << 21  # bytes of a block of rows
_BUFFER = 1 << 20  # bytes of a file that are read at once


class Columns:
    """The data files of a folder.

    Args:
        episodes: Where their rows are.
        where: The folder, for messages.

    Attributes:
        rows: Number of rows of all files.
    """

    def __init__(self, episodes: Episodes, where: str) -> None:
        self._files, self._where = episodes.files, where
        self.rows = sum(rows for _, rows in self._files)
        self._offsets = np.cumsum([0, *(rows for _, rows in self._files)])

    def check(self, features: Sequence[Feature]) -> None:
        """Compare files with their metadata before a value is read.

        Raises:
            DatasetError: A file has another number of rows than its episodes, lacks a column, has
                one of another type, or promises far more than it can hold.
        """
        for path, rows in self._files:
            with _opened(path) as file:
                found = file.metadata.num_rows
                if found != rows:
                    raise DatasetError(
                        f"{path}: has {found:,} rows, and by 'length' of meta/episodes its "
                        f"episodes have {rows:,}: {AGAIN}."
                    )
                schema = file.schema_arrow
                for feature in features:
                    self._check_type(feature, schema, path)
            sizes = {each.name: 8 * rows * (each.size or 0) for each in features}
            hdf5_limits.refuse_unwritten(sizes, path.stat().st_size, str(path))

    def blocks(self, features: Sequence[Feature]) -> Iterator[list[np.ndarray]]:
        """Yield blocks of rows: of each feature its numbers (n, size), in the type stored.

        Raises:
            DatasetError: A value is missing, not finite, or a list of another length; the line
                names file, feature and row.
        """
        for (path, _), offset in zip(self._files, self._offsets, strict=False):
            done = int(offset)
            for batch in self._batches(path, features):
                found = []
                for feature in features:
                    column = batch.column(batch.schema.get_field_index(feature.name))
                    found.append(_numbers(column, feature, path, done))
                yield found
                done += batch.num_rows

    def raw(self, name: str, at_once: int) -> Iterator[Any]:
        """Yield a column's rows as Arrow has them, ``at_once`` or fewer at a time."""
        for path, _ in self._files:
            for batch in self._batches(path, [Feature(name, "image", ())], at_once):
                yield batch.column(batch.schema.get_field_index(name))

    def _batches(
        self, path: Path, features: Sequence[Feature], at_once: int | None = None
    ) -> Iterator[Any]:
        row = 8 * sum(feature.size or 1 for feature in features)
        at_once = at_once or max(1, min(_BLOCK // row, 1 << 16))
        names = [feature.name for feature in features]
        with _opened(path) as file:
            batches = file.iter_batches(at_once, columns=names, use_threads=False)
            while True:
                try:
                    batch = next(batches, None)
                except Exception as error:  # Arrow's, of damaged pages
                    said = reason(error, 120)
                    raise DatasetError(f"{path}: cannot be read ({said}): {AGAIN}.") from None
                if batch is None:
                    return
                yield batch

    def _check_type(self, feature: Feature, schema: Any, path: Path) -> None:
        from pyarrow import types

        place = schema.get_field_index(feature.name)
        if place < 0:
            twice = schema.names.count(feature.name) > 1
            what = "has several columns" if twice else "has no column"
            raise DatasetError(
                f"{path}: {what} '{feature.name}' (it has {listed(schema.names)})."
                f"{nearest(feature.name, schema.names)}"
            )
        stored = schema.field(place).type
        inner = _innermost(stored)
        if not (types.is_integer(inner) or types.is_floating(inner) or types.is_boolean(inner)):
            raise DatasetError(
                f"{path}: column '{feature.name}' holds {stored}, where meta/info.json says "
                f"{feature.dtype}: {AGAIN}."
            )


def _opened(path: Path) -> Any:
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except Exception as error:  # Arrow's, of what is no Parquet
        raise DatasetError(f"{path}: cannot be read ({reason(error, 120)}): {AGAIN}.") from None


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _innermost(kind: Any) -> Any:
    kind = getattr(kind, "storage_type", kind)  # of Arrow's extensions, as datasets' Array2D
    while _is_list(kind):
        kind = kind.value_type
    return kind


def _numbers(column: Any, feature: Feature, path: Path, start: int) -> np.ndarray:
    """Return an Arrow column's numbers (n, size); ``start`` is the number of its first row."""
    from pyarrow import compute

    def wrong(row: int, what: str) -> DatasetError:
        return DatasetError(
            f"{path}: column '{feature.name}' {what} in row {start + row:,}: leave out the "
            "episodes with such rows, or record them again."
        )

    rows, size, left = len(column), feature.size or 1, feature.size or 1
    column = getattr(column, "storage", column)
    per_row = 1  # lists of this depth in a row
    while True:
        if column.null_count:
            row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))) // per_row
            raise wrong(row, "is empty")
        if not _is_list(column.type):
            break
        lengths = compute.list_value_length(column).to_numpy(zero_copy_only=False)
        odd = np.flatnonzero(lengths != lengths[0])
        if not len(odd) and left % max(int(lengths[0]), 1) == 0 and lengths[0] > 0:
            left //= int(lengths[0])
            per_row *= int(lengths[0])
            column = column.flatten()
            continue
        place = int(odd[0]) if len(odd) else 0
        raise wrong(place // max(per_row, 1), _lengths_said(int(lengths[place]), feature))
    if per_row != size:
        raise wrong(0, _lengths_said(per_row, feature))
    values = column.to_numpy(zero_copy_only=False).reshape(rows, size)
    if values.dtype.kind == "f":
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            row = int(np.argmax(bad))
            raise wrong(row, f"has {'NaN' if np.isnan(values[row]).any() else 'an infinite value'}")
    return values


def _lengths_said(found: int, feature: Feature) -> str:
    shape = " × ".join(map(str, feature.shape))
    return f"has {found} numbers, where meta/info.json says {shape},"
