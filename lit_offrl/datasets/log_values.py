"""Columns of a log as numbers, flags and the ends of episodes.

Each fault is a DatasetError that names the column and the first wrong row.

Columns are pandas' Series, and ``where`` is the log, for messages. Row 0 is the first below the
names.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lit_offrl.common.errors import DatasetError
from lit_offrl.datasets.ends_implied import runs


def numbers(column: Any, where: str) -> np.ndarray:
    """Return a pandas column as float64 (N,), or (N, k) where its rows are lists of k numbers."""
    import pandas

    if column.dtype.kind in "mM":
        raise DatasetError(
            f"{where}: column '{column.name}' holds dates, where numbers are needed: write seconds."
        )
    if column.dtype == object and isinstance(column.iloc[0], list | tuple | np.ndarray):
        return _lists(column, where)
    if isinstance(column.dtype, pandas.CategoricalDtype):
        column = column.astype(object)
    try:
        found = pandas.to_numeric(column, errors="coerce")
        values = found.to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        raise DatasetError(
            f"{where}: column '{column.name}' holds {column.dtype}, where numbers are needed."
        ) from None
    _require_finite(values, column, where)
    return values


def flags(column: Any, where: str) -> np.ndarray:
    """Return a pandas column of 0 and 1, or of False and True, as bool (N,)."""
    if column.dtype.kind not in "biuf":  # text, in whatever letters
        truth = {"true": 1, "false": 0}
        column = column.astype(object).map(lambda v: truth.get(str(v).strip().lower(), v))
    values = numbers(column, where)
    bad = ((values != 0) & (values != 1)).reshape(len(values), -1).any(axis=1)
    if bad.any() or values.ndim > 1:
        row = int(np.argmax(bad))
        raise DatasetError(
            f"{where}: column '{column.name}' has {column.iloc[row]} in row {row:,}, where only 0 "
            "and 1 (or False and True) may stand: name a column that says whether the row ends "
            "its episode."
        )
    return values.astype(np.bool_)


def episode_ends(column: Any, where: str) -> np.ndarray:
    """Return on which rows (N,) an episode ends, by the pandas column that tells them apart."""
    import pandas

    name = column.name
    try:
        codes, values = pandas.factorize(column)
    except TypeError:  # of lists
        raise DatasetError(
            f"{where}: column '{name}' holds {column.dtype}, where one number or word a row is "
            "needed to tell episodes apart."
        ) from None
    if (codes < 0).any():
        row = int(np.argmax(codes < 0))
        raise DatasetError(
            f"{where}: column '{name}' is empty in row {row:,}: write the episode's number there."
        )
    ends, again = runs(codes)
    if again is not None:
        raise DatasetError(
            f"{where}: episode {values[codes[again]]} of column '{name}' goes on in row {again:,} "
            "after rows of other episodes: put the rows of each episode together, in their order."
        )
    return ends


def require_rising(column: Any, ends: np.ndarray, where: str) -> None:
    """Refuse rows of an episode that are not in the order of time: a pandas column, (N,) ends."""
    import pandas

    if column.dtype.kind not in "biufmM":  # as text in CSV
        dates = pandas.to_datetime(column, errors="coerce", format="ISO8601", utc=True)
        column = column if dates.isna().any() else dates.rename(column.name)
    if column.dtype.kind in "mM" and not column.isna().any():
        values = column.astype("int64").to_numpy()
    else:
        values = numbers(column, where)
    late = np.flatnonzero((values[1:] <= values[:-1]) & ~ends[:-1])
    if len(late):
        row = int(late[0]) + 1
        raise DatasetError(
            f"{where}: column '{column.name}' is {column.iloc[row]} in row {row:,} and "
            f"{column.iloc[row - 1]} in the row before, of the same episode: sort each episode's "
            "rows by time."
        )


def _require_finite(values: np.ndarray, column: Any, where: str) -> None:
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not bad.any():
        return
    row, count = int(np.argmax(bad)), int(bad.sum())
    what = f"'{column.iloc[row]}'"
    if not np.isnan(values[row]).any():
        what = "an infinite value"
    elif values.ndim > 1:
        what = "NaN in a list"
    elif bool(column.isna().iloc[row]):
        what = "no number (it is empty, or NaN)"
    raise DatasetError(
        f"{where}: column '{column.name}' has {what[:80]} in row {row:,}, where a number is needed "
        f"({count:,} such row{'s' * (count != 1)}): correct the log, or leave out the episodes "
        "with such rows."
    )


def _lists(column: Any, where: str) -> np.ndarray:
    sizes = np.array([np.size(row) if row is not None else -1 for row in column])
    odd = np.flatnonzero(sizes != sizes[0])
    if len(odd) or sizes[0] < 1:
        row = int(odd[0]) if len(odd) else 0
        raise DatasetError(
            f"{where}: column '{column.name}' has {max(int(sizes[row]), 0)} numbers in row {row:,} "
            f"and {max(int(sizes[0]), 0)} in row 0: write lists of one length."
        )
    try:
        values = np.stack([np.asarray(row, dtype=np.float64).reshape(-1) for row in column])
    except (TypeError, ValueError):
        raise DatasetError(
            f"{where}: column '{column.name}' has lists that hold something else than numbers: "
            "write lists of numbers."
        ) from None
    _require_finite(values, column, where)
    return values
