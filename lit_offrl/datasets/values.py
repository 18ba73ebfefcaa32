"""What reading does to values, or finds in them, that training would not forgive without a word.

Columns become float32. Where a dimension lies far from zero (a northing in metres, Unix time), its
digits do not fit; and one 1e30 among values of order 1 makes every scale that is taken from the
data useless. Neither is wrong, so neither is refused: each is a line.

Digits and scales are judged on blocks of rows spread over the column, at most 100,000 in all, so
that it costs little for any number of rows; outliers are then counted in all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from lit_offrl.datasets.columns import KINDS, NUMERIC

_SAMPLE, _BLOCKS = 100_000, 10
_KEPT = 0.99  # of the distinct values: so many are no news
_OF_SPREAD, _OF_STEP = 1e-4, 1e-2  # an error that matters, beside the values' spread or their steps
_NOISE = 1e-11  # of the largest value: a spread below it is rounding itself
_FAR = 1e5  # times the scale of nine in ten values
_RARE = 1e7  # times the one value that nine in ten rows have, or times 1
_FEW, _LARGE = 1e-3, 1e3  # as many and as small are no outliers, however still the others lie
_SQUARE = 1e19  # beyond it float32 cannot hold a square
_LINES = 5  # a column and kind of remark


def remarks(columns: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Return a line for each dimension, as stored, that loses digits in float32 or has outliers."""
    said: list[str] = []
    for name, values in columns.items():
        values = np.asarray(values)
        if KINDS.get(name) == "flags" or values.dtype.kind not in NUMERIC or not len(values):
            continue
        rows = values.reshape(len(values), -1)
        sample = _sample(rows)
        if name != "next_observations":  # of the same quantities as the observations
            said += _short(name, values.ndim, _lost_digits(sample, len(rows)))
        said += _short(name, values.ndim, _outliers(rows, sample))
    return tuple(said)


def _short(name: str, ndim: int, found: Iterator[tuple[int, str]]) -> Iterator[str]:
    """Yield a line a dimension, and of many dimensions how many more there are."""
    lines = [
        f"column '{name}'{f', dimension {dimension}' * (ndim > 1)}: {text}"
        for dimension, text in found
    ]
    yield from lines[:_LINES]
    if (more := len(lines) - _LINES) > 0:
        yield f"column '{name}': the same of {more:,} more dimensions"


def _sample(rows: np.ndarray) -> np.ndarray:
    """Return blocks of rows that lie together, so that they have steps from one to the next."""
    if len(rows) <= _SAMPLE:
        return rows
    size = _SAMPLE // _BLOCKS
    starts = np.linspace(0, len(rows) - size, _BLOCKS).astype(np.int64)
    return np.concatenate([rows[start : start + size] for start in starts])


def _lost_digits(sample: np.ndarray, rows: int) -> Iterator[tuple[int, str]]:
    whole = sample.dtype.kind in "iu"
    if sample.dtype.kind == "b" or sample.dtype.itemsize <= (2 if whole else 4):
        return  # float32 holds these as they are
    narrow, wide = sample.astype(np.float32), sample.astype(np.float64)
    error = np.abs(wide - narrow)
    largest, spread = np.abs(wide).max(0), wide.std(0)
    step = np.abs(np.diff(wide, axis=0)).mean(0) if len(wide) > 1 else spread
    matters = (error.max(0) > _OF_SPREAD * spread) | (error.mean(0) > _OF_STEP * step)
    matters = (error.max(0) > 0) & (whole | (matters & (spread > _NOISE * largest)))
    for dimension in np.flatnonzero(matters):
        before = len(np.unique(sample[:, dimension]))
        kept = len(np.unique(narrow[:, dimension]))
        if kept >= _KEPT * before:
            continue
        among = "" if len(sample) == rows else f" (among {len(sample):,} of {rows:,} rows)"
        far = abs(wide[:, dimension].mean()) > 10 * spread[dimension]
        todo = "subtract an offset" if far else "write it in other units"
        yield (
            int(dimension),
            f"float32 keeps {kept:,} of {before:,} distinct values{among}: {todo}",
        )


def _outliers(rows: np.ndarray, sample: np.ndarray) -> Iterator[tuple[int, str]]:
    if rows.dtype.kind == "b":
        return
    sample = sample.astype(np.float64)
    middle = np.median(sample, axis=0)
    away = np.abs(sample - middle)
    usual = np.quantile(away, 0.9, axis=0)
    scale = usual.copy()
    for dimension in np.flatnonzero(scale == 0):  # most rows have one value: see the others
        others = away[:, dimension][away[:, dimension] > 0]
        scale[dimension] = np.median(others) if len(others) else 0.0
    scale = np.maximum(scale, np.abs(middle))
    limit = np.minimum(np.where(scale > 0, _FAR * scale, _SQUARE), _SQUARE)
    rare = np.minimum(limit, _RARE * np.maximum(np.abs(middle), 1.0))
    limit = np.where(usual == 0, rare, limit)  # of few others there is no scale
    low, high = rows.min(0).astype(np.float64), rows.max(0).astype(np.float64)
    for dimension in np.flatnonzero(np.maximum(high - middle, middle - low) > limit):
        column, count, first = rows[:, dimension], 0, -1
        for start in range(0, len(column), _SAMPLE):
            block = column[start : start + _SAMPLE].astype(np.float64)
            far = np.abs(block - middle[dimension]) > limit[dimension]
            if first < 0 and far.any():
                first = start + int(np.argmax(far))
            count += int(far.sum())
        reach = max(high[dimension] - middle[dimension], middle[dimension] - low[dimension])
        if count > _FEW * len(column) and reach < _LARGE:
            continue  # a quantity that mostly rests, with noise of the simulator's around zero
        worst = max(low[dimension], high[dimension], key=lambda end: abs(end - middle[dimension]))
        yield (
            int(dimension),
            f"{count:,} of {len(column):,} values {'is' if count == 1 else 'are'} as far off as "
            f"{worst:.3g}, first in row {first:,}, where most lie within {usual[dimension]:.3g} of "
            f"{middle[dimension]:.3g}: correct them, or drop their episodes",
        )
