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

from lit_offrl.common.errors import DatasetError, nearest, reason
from lit_offrl.datasets.columns import listed
from lit_offrl.datasets.hdf5_limits import require_memory

TEXT_SUFFIXES = (".csv", ".tsv")
PARQUET_SUFFIXES = (".parquet", ".pq")
_BEYOND = "\0beyond"  # the column of cells for which there is no name
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True)
class Log:
    """A log on disk.

    Attributes:
        path: Path of the file.
        columns: Names of its columns, in the order of the file.
        separator: Separator of columns in text; None for Parquet.

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
            self._require_memory(wanted)
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

    def _require_memory(self, wanted: list[str]) -> None:
        """Refuse what the memory cannot hold, by the file's size or its own metadata."""
        if self.separator is None:
            from pyarrow import parquet

            rows = int(parquet.read_metadata(self.path).num_rows)
            sizes = {name: 16 * rows for name in wanted}  # as read, and as float64
        else:
            sizes = {"text and cells": 2 * self.path.stat().st_size}  # more if compressed
        require_memory(sizes, str(self.path))

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
        beside = [place.name for place in path.parent.glob("*")]
        hint = nearest(path.name, beside) or " Check the path."
        raise DatasetError(f"{path}: no such file.{hint}")
    if path.is_dir():
        raise DatasetError(f"{path}: is a folder: name one CSV or Parquet file.")
    if not is_log(path):
        known = ", ".join((*TEXT_SUFFIXES, *PARQUET_SUFFIXES))
        raise DatasetError(f"{path}: is no log by its name: convert takes {known} files.")
    try:
        parquet = _suffix(path) in PARQUET_SUFFIXES
        names, separator = _parquet_names(path) if parquet else _text_names(path)
    except DatasetError:
        raise
    except Exception as error:  # Arrow's, those of codecs, of archives and of the file system
        raise DatasetError(
            f"{path}: its columns' names cannot be read ({reason(error)}): write it again, text "
            "as UTF-8."
        ) from None
    return Log(path, tuple(names), separator)


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _parquet_names(path: Path) -> tuple[list[str], None]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return list(file.schema_arrow.names), None


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
