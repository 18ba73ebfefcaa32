"""Ends of episodes that no column states, and that others imply: counters, numbers, lengths.

    step        0   1   2 | 0   1 | 0   1   2      a counter starts again with each episode
    demo_id     4   4   4 | 9   9 | 2   2   2      a number stands for each
    ep_len      3   3   3 | 2   2 | 3   3   3      each row has its episode's length

Such columns are of many kinds, so they count only where nothing else tells which episodes end
without a terminal, and only if they are what their names suggest, row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np


def implied_ends(kind: str, values: np.ndarray, terminals: np.ndarray) -> np.ndarray | None:
    """Return the ends (N,) that a column implies; None where it is no such column.

    Args:
        kind: ``counts``, ``numbers`` or ``lengths``.
        values: Values of the column (N,).
        terminals: Known terminals (N,). A counter that continues past one of them counts something
            else.
    """
    if not np.isfinite(values).all():
        return None
    ends = _READERS[kind](values)
    if ends is None or (ends[:-1].all() and len(ends) > 1):
        return None
    if kind != "numbers" and (terminals[:-1] & ~ends[:-1]).any():
        return None
    return ends


def _counted(values: np.ndarray) -> np.ndarray | None:
    ends = np.append(values[1:] <= values[:-1], True)
    return ends if (values[1:][ends[:-1]] == values.min()).all() else None


def _numbered(values: np.ndarray) -> np.ndarray | None:
    ends, again = runs(values)
    return ends if again is None else None


def runs(values: np.ndarray) -> tuple[np.ndarray, int | None]:
    """Return the last rows (N,) of runs of equal values, and the first row where one comes back."""
    ends = np.append(values[1:] != values[:-1], True)
    starts = np.flatnonzero(np.append(True, ends[:-1]))
    _, firsts = np.unique(values[starts], return_index=True)
    again = np.setdiff1d(np.arange(len(starts)), firsts)
    return ends, int(starts[again[0]]) if len(again) else None


def _measured(values: np.ndarray) -> np.ndarray | None:
    ends = np.zeros(len(values), dtype=np.bool_)
    start = 0
    while start < len(values):
        stop = start + int(values[start])
        if not start < stop <= len(values) or (values[start:stop] != values[start]).any():
            return None
        ends[stop - 1] = True
        start = stop
    return ends


_READERS: Mapping[str, Callable[[np.ndarray], np.ndarray | None]] = {
    "counts": _counted,
    "numbers": _numbered,
    "lengths": _measured,
}
