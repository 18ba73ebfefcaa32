"""Training runs with their scores and metrics alone: what a claim is judged by.

``lit-offrl compare --output`` writes them as ``results.csv``, a line for each run, which people can
read, write and keep beside their code.
"""

from __future__ import annotations

import csv
import datetime
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO, TypeVar

from lit_offrl.common.errors import EvaluationError, nearest, reason
from lit_offrl.evaluation import offline, protocol
from lit_offrl.evaluation.comparison import Metric, run_mean
from lit_offrl.evaluation.run_files import matching_files
from lit_offrl.evaluation.runs import Run, SeededRun

FILE = "results.csv"
"""The file that is read of a folder."""

UNITS: tuple[Metric, ...] = ("score", "return")
"""Numbers that evaluations have; all others are metrics."""

_NEEDED = ("method", "dataset", "seed")
_PROTOCOL = (
    "env_id", "episodes", "evaluation_seed", "dataset_sha256", "checkpoint_rule", "protocol",
)  # fmt: skip
_KNOWN = (
    *_NEEDED, "module", "options", *UNITS, *_PROTOCOL, "training_steps", "checkpoint", "date",
    "source",
)  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ScoredRun(SeededRun):
    """One trained policy with the numbers of one evaluation of it.

    Attributes:
        module: Class of the module, another name of the method.
        numbers: What is known of the mean normalised ``score``, the mean ``return``, and metrics,
            such as figures/mountain-car/spearman_return_value.
        protocol: Pairs of a name and a text, which are equal for numbers that can be compared; an
            empty text is what is unknown.
        steps: Optimiser steps that the weights have had, if they are known.
        weights: What tells these weights from others, the checkpoint's sha256 as a rule, if known.
        date: When it was evaluated, UTC in ISO 8601, or "".
    """

    module: str
    numbers: Mapping[str, float]
    protocol: tuple[tuple[str, str], ...]
    steps: int | None = None
    weights: str | None = None
    date: str = ""

    @property
    def is_evaluated(self) -> bool:
        """Whether it has a score or a return."""
        return any(unit in self.numbers for unit in UNITS)


def scored(run: Run) -> ScoredRun:
    """Return the score and the return of an evaluated run."""
    record = run.record
    units = UNITS if record.scores is not None else UNITS[1:]
    return ScoredRun(
        method=run.method,
        dataset=run.dataset,
        options=run.options,
        seed=run.seed,
        source=run.source,
        module=record.method,
        numbers={unit: run_mean(run, unit) for unit in units},
        protocol=_protocol(protocol.columns(record)),
        steps=record.training_steps,
        weights=record.checkpoint_sha256,
        date=record.date,
    )


def measured(run: offline.OfflineRun, metric: str) -> ScoredRun:
    """Return the run of one number of a metric."""
    return ScoredRun(
        method=run.method,
        dataset=run.dataset,
        options=run.options,
        seed=run.seed,
        source=run.source,
        module=run.method,
        numbers={metric: run.value},
        protocol=_protocol(offline.protocol_columns(run)),
        steps=run.steps,
        date=run.date,
    )


def without_repeats(runs: Iterable[ScoredRun]) -> list[ScoredRun]:
    """Return each evaluation once, with all numbers that several sources have of it.

    Runs are one evaluation if all that is known of them is the same, but for their sources, and no
    number of one contradicts the other's.
    """
    found: dict[tuple[object, ...], list[ScoredRun]] = defaultdict(list)
    for run in runs:
        key = (run.method, run.dataset, run.options, run.seed)
        same = found[*key, run.protocol, run.steps, run.weights, run.date]
        for place, other in enumerate(same):
            if all(other.numbers.get(name, value) == value for name, value in run.numbers.items()):
                same[place] = replace(other, numbers={**run.numbers, **other.numbers})
                break
        else:
            same.append(run)
    return [run for same in found.values() for run in same]


def read_results(patterns: Sequence[str]) -> list[ScoredRun]:
    """Read the lines of files, of ``results.csv`` in folders, and of glob patterns.

    A line needs a method, a dataset and a seed. Columns whose name has a '/' are metrics.

    Raises:
        EvaluationError: a pattern matches nothing, or a file is none of these; the line names the
            file, the row and the column.
    """
    runs: list[ScoredRun] = []
    for pattern in patterns:
        found = matching_files([pattern], (FILE,), "--results")
        files = [file for file, is_named in found if is_named or file.name == FILE]
        if not files:
            raise EvaluationError(
                f"--results {pattern}: has no file {FILE}, as `lit-offrl compare --output` writes"
                " it; name other CSV files themselves."
            )
        lines = (line for file in files for line in _lines(file))
        runs += (run for run in (line.run() for line in lines) if run.numbers)
    return runs


@dataclass(frozen=True)
class _Line:
    """One line of a file, and where it stands."""

    values: Mapping[str, str]
    where: str

    def run(self) -> ScoredRun:
        method = self._text("method")
        given = [name for name, text in self.values.items() if text]
        return ScoredRun(
            method=method,
            dataset=self._text("dataset"),
            options=self._options(),
            seed=self._number("seed", int),
            source=self.where,
            module=self.values.get("module") or method,
            numbers={
                name: self._number(name, float) for name in given if name in UNITS or "/" in name
            },
            protocol=_protocol(self.values),
            steps=self._number("training_steps", int) if "training_steps" in given else None,
            weights=self.values.get("checkpoint") or None,
            date=self._date(),
        )

    def _date(self) -> str:
        try:
            return _utc(self.values.get("date", ""))
        except ValueError:
            raise self._wrong("date", "such as 2026-01-31 or 2026-01-31T18:00:00+00:00") from None

    def _options(self) -> tuple[tuple[str, str], ...]:
        pairs = [part.strip() for part in self.values.get("options", "").split(";")]
        split = [part.partition("=") for part in pairs if part]
        for name, equals, _ in split:
            if not name or not equals:
                raise self._wrong("options", "NAME=VALUE, with '; ' between several")
        return tuple(sorted((name.strip(), value.strip()) for name, _, value in split))

    def _text(self, name: str) -> str:
        if not self.values[name]:
            raise self._wrong(name, "a name")
        return self.values[name]

    def _number(self, name: str, kind: Callable[[str], T]) -> T:
        try:
            number = kind(self.values[name])
            if not math.isfinite(number):  # type: ignore[arg-type]
                raise ValueError
        except (ValueError, OverflowError):
            raise self._wrong(name, "a whole number" if kind is int else "a number") from None
        return number

    def _wrong(self, name: str, needed: str) -> EvaluationError:
        return EvaluationError(
            f"{self.where}: '{name}' is '{self.values[name]}', but has to be {needed}."
        )


def _lines(file: Path) -> Iterator[_Line]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = [*_rows(stream)]
    except (OSError, ValueError, csv.Error) as error:
        raise EvaluationError(f"{file}: cannot be read as CSV: {reason(error)}") from error
    if not rows:
        raise EvaluationError(f"{file}: cannot be read as CSV: it is empty.")
    (_, names), *rest = rows
    for name in names:
        if name not in _KNOWN and "/" not in name:
            raise EvaluationError(f"{file}: unknown column '{name}'.{nearest(name, _KNOWN)}")
        if names.count(name) > 1:
            raise EvaluationError(f"{file}: has the column '{name}' twice: leave one out.")
    for name in _NEEDED:
        if name not in names:
            raise EvaluationError(f"{file}: has no column '{name}'.")
    for number, cells in rest:
        where = f"{file}, row {number}"
        if len(cells) != len(names):
            raise EvaluationError(
                f"{where}: has {len(cells)} cells where the first line has {len(names)} names: give"
                " numbers a decimal point, put text that has a comma into double quotes, and leave"
                " the cell of an unknown value empty."
            )
        yield _Line(dict(zip(names, cells, strict=True)), where)


def _rows(stream: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of the rows that have any, with the number of the line that each begins."""
    reader = csv.reader(stream, strict=True)
    begins = 1
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield begins, cells
        begins = reader.line_num + 1


def _protocol(facts: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, facts.get(name, "")) for name in _PROTOCOL)


def _utc(date: str) -> str:
    """Return a date of ISO 8601 in UTC, so that dates sort; "" stays.

    Raises:
        ValueError: It is no date.
    """
    if not date:
        return ""
    known = datetime.datetime.fromisoformat(date)
    known = known if known.tzinfo else known.replace(tzinfo=datetime.UTC)
    return known.astimezone(datetime.UTC).isoformat()
