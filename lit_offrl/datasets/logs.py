"""Logs in CSV or Parquet, one row a step, made into HDF5 files in D4RL's layout.

The rows of an episode stand together, in their order. Its last row is a timeout unless a column
says that the task ended there:

    id   x0    x1    u     r     done         episodes   terminals  timeouts
    7    0.0   0.1   0.5   0     0            [0         .          .
    7    0.1   0.1   0.4   1     1               2)      T          .
    8    0.0   0.2   0.5   0     0            [2         .          .
    8    0.1   0.3   0.2   0     0               4)      .          T
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_offrl.datasets.hdf5_limits import require_memory
from lit_offrl.datasets.log_columns import listed
from lit_offrl.errors import DatasetError, nearest, reason

TEXT_SUFFIXES = (".csv", ".tsv")
PARQUET_SUFFIXES = (".parquet", ".pq")
_BEYOND = "\0beyond"  # the column of cells for which there is no name
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True)
class Log:
    """A log on disk.

    Attributes:
        path: of the file.
        columns: the names of its columns, in its order.
        separator: what stands between the columns of text; None in Parquet.

    Raises:
        DatasetError: on ``open_log``, if it is missing, no log, or damaged.
    """

    path: Path
    columns: tuple[str, ...]
    separator: str | None

    def read(self, names: Sequence[str]) -> Any:
        """Return the pandas frame of some columns.

        Raises:
            DatasetError: the file is damaged, a row has too many cells, or there are no rows.
        """
        import pandas  # late: it takes half a second

        wanted = list(dict.fromkeys(names))
        twice = next((name for name in wanted if self.columns.count(name) > 1), None)
        if twice is not None:
            raise DatasetError(
                f"{self.path}: has several columns of the name '{twice}': rename them in the file."
            )
        try:
            if self.separator is None:
                frame = pandas.read_parquet(self.path, columns=wanted)
            else:
                frame = self._read_text(wanted)
        except DatasetError:
            raise
        except MemoryError:
            raise DatasetError(
                f"{self.path}: does not fit into memory: use a machine with more, or split it."
            ) from None
        except Exception as error:  # of many kinds: pandas', Arrow's, those of codecs and archives
            said = reason(error).removeprefix("Error tokenizing data. C error: ")
            raise DatasetError(
                f"{self.path}: cannot be read ({said}): write it again, text as UTF-8."
            ) from None
        if len(frame) < 2:
            raise DatasetError(
                f"{self.path}: has {len(frame)} row{'s' * (len(frame) != 1)} below its names: at "
                "least 2 are needed."
            )
        return frame[wanted]

    def _read_text(self, wanted: list[str]) -> Any:
        from pandas.errors import ParserError

        try:
            frame = self._parse([*wanted, _BEYOND])
        except ParserError as error:
            if "Too many columns specified" not in str(error):
                raise
            return self._parse(wanted)  # no row has more cells than there are names
        beyond = frame[_BEYOND].notna().to_numpy()
        if beyond.any():
            raise DatasetError(
                f"{self.path}: row {int(np.argmax(beyond)):,} has more cells than the first line "
                f"has names ({len(self.columns)}): put cells with a separator in them into quotes."
            )
        return frame

    def _parse(self, wanted: list[str]) -> Any:
        import pandas

        unique = [
            name if self.columns.index(name) == place else f"{name}\0{place}"
            for place, name in enumerate(self.columns)
        ]
        return pandas.read_csv(
            self.path,
            sep=self.separator,
            names=unique + [_BEYOND] * (_BEYOND in wanted),
            header=0,
            usecols=wanted,
            index_col=False,  # else a comma at the end of each row shifts all columns by one
            skipinitialspace=True,
            encoding="utf-8-sig",
            decimal="," if self.separator == ";" else ".",  # as spreadsheets write them together
            low_memory=False,
        )


def is_log(path: Path) -> bool:
    """Say by its name whether a file is a log in CSV or Parquet."""
    return _suffix(path) in (*TEXT_SUFFIXES, *PARQUET_SUFFIXES)


def open_log(path: Path) -> Log:
    """Read the names of a log's columns.

    Raises:
        DatasetError: there is no such file, it is no log, or its names cannot be read.
    """
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, beside) or " Check the path."
        raise DatasetError(f"{path}: no such file.{hint}")
    if path.is_dir():
        raise DatasetError(f"{path}: is a folder: name one CSV or Parquet file.")
    if not is_log(path):
        known = ", ".join((*TEXT_SUFFIXES, *PARQUET_SUFFIXES))
        raise DatasetError(f"{path}: is no log by its name: convert takes {known} files.")
    try:
        names, separator = _parquet_names(path) if _is_parquet(path) else _text_names(path)
    except DatasetError:
        raise
    except Exception as error:  # Arrow's, those of codecs, of archives and of the file system
        raise DatasetError(
            f"{path}: its columns' names cannot be read ({reason(error)}): write it again, text "
            "as UTF-8."
        ) from None
    return Log(path, tuple(names), separator)


def numbers(column: Any, where: str) -> np.ndarray:
    """Return a pandas column as float64 (N,), or (N, k) where its rows are lists of k numbers.

    Raises:
        DatasetError: naming the column and the first row without a finite number.
    """
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
    """Return a pandas column of 0 and 1, or of False and True, as bool (N,).

    Raises:
        DatasetError: naming the column and the first row that holds something else.
    """
    if column.dtype.kind not in "biuf":  # text, in whatever letters
        words = {"true": 1, "false": 0}
        column = column.astype(object).map(lambda v: words.get(str(v).strip().lower(), v))
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
    """Return on which rows (N,) an episode ends, by the pandas column that tells them apart.

    Raises:
        DatasetError: a row tells no episode, or an episode goes on after another one.
    """
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
    starts = np.flatnonzero(np.append(True, codes[1:] != codes[:-1]))
    _, firsts = np.unique(codes[starts], return_index=True)
    again = np.setdiff1d(np.arange(len(starts)), firsts)
    if len(again):
        row = int(starts[again[0]])
        raise DatasetError(
            f"{where}: episode {values[codes[row]]} of column '{name}' goes on in row {row:,} "
            "after rows of other episodes: put the rows of each episode together, in their order."
        )
    ends = np.zeros(len(codes), dtype=np.bool_)
    ends[np.append(starts[1:], len(codes)) - 1] = True
    return ends


def require_rising(column: Any, ends: np.ndarray, where: str) -> None:
    """Refuse rows of an episode that are not in the order of time: a pandas column, (N,) ends.

    Raises:
        DatasetError: naming the first row that is not later than the row before it.
    """
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
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    row = int(np.argmax(bad))
    found, count = column.iloc[row], int(bad.sum())
    what = f"'{found}'"
    if not np.isnan(values[row]):
        what = "an infinite value"
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
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise DatasetError(
            f"{where}: column '{column.name}' has NaN or an infinite value in row "
            f"{int(np.argmax(bad)):,}: correct the log, or leave out the episodes with such rows."
        )
    return values


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _is_parquet(path: Path) -> bool:
    return _suffix(path) in PARQUET_SUFFIXES


def _parquet_names(path: Path) -> tuple[list[str], None]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        names = list(file.schema_arrow.names)
        rows = int(file.metadata.num_rows)
    require_memory({f"{rows:,} rows": 16 * rows}, str(path))  # of one column, read and converted
    return names, None


def _text_names(path: Path) -> tuple[list[str], str]:
    from pandas.io.common import get_handle

    with get_handle(path, "r", encoding="utf-8-sig", compression="infer") as handles:
        stream: Any = handles.handle
        line = stream.readline(1 << 20)
    if not line.strip():
        raise DatasetError(f"{path}: is empty, or its first line is: write the columns' names.")
    counts: Mapping[str, int] = {mark: line.count(mark) for mark in (",", ";", "\t", "|")}
    separator = max(counts, key=lambda mark: counts[mark])
    if not counts[separator] and len(line.split()) > 1:
        separator = r"\s+"
        names = line.split()
    else:
        names = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
    names = [name.strip() for name in names]
    names[0] = names[0].removeprefix("#").lstrip()  # as numpy.savetxt writes it
    if all(_is_number(name) for name in names):
        raise DatasetError(
            f"{path}: its first line holds numbers ({listed(names)}): write the columns' names "
            "above it."
        )
    return names, separator


def _is_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        float(text)
        return True
    return False
