"""What a column of a dataset may be: one place that checks, converts and complains.

A complaint names the file, the column and, where there is one, the first bad row.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import numpy as np

from lit_offrl.common.errors import DatasetError

# What each known column is: "vectors" float32 (N, d), "numbers" float32 (N,), "flags" bool (N,).
KINDS: Mapping[str, str] = {
    "observations": "vectors",
    "actions": "vectors",
    "rewards": "numbers",
    "terminals": "flags",
    "timeouts": "flags",
    "next_observations": "vectors",
    "goals": "vectors",
    "policy": "numbers",
    "reward_mask": "flags",
    "next_unknown": "flags",
    "validation": "flags",
    "interventions": "flags",
}
ALIASES: Mapping[str, str] = {"labelled": "reward_mask"}
_SHOWN = 24  # names that a message lists at most
_BLOCK = 1 << 16  # rows that are looked at together
NUMERIC = "fiub"  # dtype kinds: floats, signed and unsigned integers, booleans


def check_layout(
    name: str, shape: tuple[int, ...], dtype: np.dtype, rows: int | None, where: str
) -> tuple[int, ...]:
    """Check what can be checked of a column without its values, and return its final shape.

    Args:
        name: Name of the column.
        shape: Shape that was found. (N, 1) is read as (N,) for numbers and flags.
        dtype: Dtype that was found.
        rows: N, the length of ``observations``, or None to leave the length unchecked.
        where: The file, for messages.

    Raises:
        DatasetError: if the dtype is not numeric, the shape is wrong or the length is not N.
    """
    if dtype.kind not in NUMERIC:
        raise DatasetError(
            f"{where}: column '{name}' has dtype {dtype}, not numbers: "
            "write it again as float32 (flags as bool)."
        )
    kind = KINDS.get(name)
    if kind in ("numbers", "flags") and len(shape) == 2 and shape[1] == 1:
        shape = shape[:1]
    wanted = {"vectors": (2,), "numbers": (1,), "flags": (1,), None: (1, 2)}[kind]
    if len(shape) not in wanted or (len(shape) == 2 and shape[1] == 0):
        form = "(N, d)" if kind == "vectors" else "(N,)" if kind else "(N,) or (N, d)"
        todo = "one row per environment step"
        if kind == "vectors" and len(shape) == 1:
            todo = f"shape ({shape[0]}, 1)"
        raise DatasetError(
            f"{where}: column '{name}' has shape {shape}, where {form} is needed: "
            f"write it with {todo}."
        )
    if rows is not None and shape[0] != rows:
        raise DatasetError(
            f"{where}: column '{name}' has {shape[0]:,} rows but 'observations' has {rows:,}: "
            "columns must be of equal length; collect or download the file again."
        )
    return shape


def clean_column(name: str, values: np.ndarray, rows: int | None, where: str) -> np.ndarray:
    """Return a column as contiguous float32 (N, d) or (N,), or as bool (N,), with finite values.

    Nothing is copied where the column already has that form.

    Raises:
        DatasetError: naming the column and, for a bad value, its row.
    """
    values = np.asarray(values)
    shape = check_layout(name, values.shape, values.dtype, rows, where)
    values = values.reshape(shape)
    if KINDS.get(name) == "flags":
        return _flags(name, values, where)
    stored = values
    with np.errstate(over="ignore"):  # a float64 too large for float32 shows up as infinite below
        values = np.ascontiguousarray(values, dtype=np.float32)
    finite = _finite_rows(values)
    if not finite.all():
        row = int(np.argmin(finite))
        what = "NaN" if np.isnan(values[row]).any() else "an infinite value"
        if np.isfinite(stored[row]).all():
            what = f"{np.abs(stored[row]).max():.3g}, which is too large for float32,"
        raise DatasetError(
            f"{where}: column '{name}' has {what} in row {row:,} "
            f"({int((~np.isfinite(values)).sum()):,} bad values in all): "
            "drop the episodes with such rows, or collect or download the file again."
        )
    return values


def _finite_rows(values: np.ndarray) -> np.ndarray:
    """Return which rows (N,) are finite, without a flag for each value of a large column."""
    finite = np.empty(len(values), dtype=np.bool_)
    for start in range(0, len(values), _BLOCK):
        part = values[start : start + _BLOCK]
        finite[start : start + _BLOCK] = np.isfinite(part).reshape(len(part), -1).all(axis=1)
    return finite


def need_ends(names: Container[str], where: str) -> None:
    """Raise DatasetError unless a column says where episodes end."""
    if "terminals" not in names and "timeouts" not in names:
        raise DatasetError(
            f"{where}: has neither 'terminals' nor 'timeouts', so nothing says where its episodes "
            "end: add a bool column 'timeouts' that is True on each episode's last row."
        )


def listed(names: Sequence[str]) -> str:
    """Return names for a message, the first few of many."""
    shown = [*names[:_SHOWN], f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else names
    return ", ".join(shown) or "nothing"


def _flags(name: str, values: np.ndarray, where: str) -> np.ndarray:
    if values.dtype != np.bool_:
        bad = (values != 0) & (values != 1)  # NaN is neither
        if bad.any():
            row = int(np.argmax(bad))
            raise DatasetError(
                f"{where}: column '{name}' has {values[row]} in row {row:,}, "
                "where only 0 and 1 (or False and True) may stand: write it as bool."
            )
    return np.ascontiguousarray(values, dtype=np.bool_)


def clean_columns(columns: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Check and convert every column against ``observations``; known columns come first.

    Raises:
        DatasetError: if observations are missing or short, or any column is wrong.
    """
    named = {ALIASES.get(name, name): values for name, values in columns.items()}
    if len(named) < len(columns):
        raise DatasetError(f"{where}: has both 'labelled' and 'reward_mask': keep one of them.")
    if "observations" not in named:
        raise DatasetError(f"{where}: has no column 'observations': every dataset needs one.")
    observations = clean_column("observations", named["observations"], None, where)
    rows = len(observations)
    if rows < 2:
        raise DatasetError(
            f"{where}: column 'observations' has {rows} row{'s' * (rows != 1)}: at least 2 are "
            "needed to make a transition; collect or download the file again."
        )
    cleaned = {"observations": observations}
    for name in [*KINDS, *sorted(set(named) - set(KINDS))]:
        if name in named and name != "observations":
            cleaned[name] = clean_column(name, named[name], rows, where)
    following = cleaned.get("next_observations", observations)
    if following.shape != observations.shape:
        raise DatasetError(
            f"{where}: column 'next_observations' has {following.shape[1]} dimensions but "
            f"'observations' has {observations.shape[1]}: both must describe the same states."
        )
    return cleaned
