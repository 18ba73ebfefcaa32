"""Scores of training runs without their episodes: what a claim is judged by.

``lit-offrl compare --output`` writes them as ``results.csv``, a line for each run, which people can
read, write and keep beside their code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from lit_offrl.common.errors import EvaluationError, nearest, reason
from lit_offrl.evaluation import protocol
from lit_offrl.evaluation.comparison import run_mean
from lit_offrl.evaluation.offline import OfflineRun
from lit_offrl.evaluation.run_files import matching_files
from lit_offrl.evaluation.runs import Run, SeededRun

_NEEDED = ("method", "dataset", "seed")
_PROTOCOL = ("env_id", "episodes", "evaluation_seed", "dataset_sha256", "checkpoint_rule")
_KNOWN = (
    *_NEEDED, "options", "score", "return", *_PROTOCOL, "training_steps", "checkpoint", "date",
    "source",
)  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ScoredRun(SeededRun):
    """One trained policy with the score of one evaluation of it.

    Attributes:
        module: Class of the module, another name of the method.
        score: Mean normalised score, or mean return where the environment has no references.
        protocol: Pairs of a name and a text, which are equal for scores that can be compared.
        steps: Optimiser steps that the weights have had, if they are known.
        weights: What tells these weights from others, the checkpoint's sha256 as a rule, if known.
        date: When it was evaluated, in a form that sorts.
    """

    module: str
    score: float
    protocol: tuple[tuple[str, str], ...]
    steps: int | None = None
    weights: str | None = None
    date: str = ""


def scored(run: Run) -> ScoredRun:
    """Return the score of an evaluated run."""
    record = run.record
    return ScoredRun(
        method=run.method,
        dataset=run.dataset,
        options=run.options,
        seed=run.seed,
        source=run.source,
        module=record.method,
        score=run_mean(run, "return" if record.scores is None else "score"),
        protocol=tuple(sorted(protocol.protocol(record).items())),
        steps=record.training_steps,
        weights=record.checkpoint_sha256,
        date=record.date,
    )


@dataclass(frozen=True)
class Results:
    """Lines of files such as ``results.csv``.

    Attributes:
        runs: Runs with a score or a return.
        metrics: Runs by the metrics that have a column, such as figures/mountain-car/spearman.
    """

    runs: tuple[ScoredRun, ...] = ()
    metrics: Mapping[str, tuple[OfflineRun, ...]] = field(default_factory=dict)


def read_results(patterns: Sequence[str]) -> Results:
    """Read the lines of files, of folders and of glob patterns.

    A line needs a method, a dataset and a seed. Columns whose name has a '/' are metrics.

    Raises:
        EvaluationError: a pattern matches nothing, or a file is none of these; the line names the
            file, the row and the column.
    """
    runs: list[ScoredRun] = []
    metrics: dict[str, list[OfflineRun]] = {}
    for file, _ in matching_files(patterns, (".csv",), "--results"):
        for line in _lines(file):
            run = line.run()
            if run is not None:
                runs.append(run)
            for metric in line.metrics():
                metrics.setdefault(metric, []).append(line.measured(metric))
    return Results(tuple(runs), {name: tuple(found) for name, found in metrics.items()})


@dataclass(frozen=True)
class _Line:
    """One line of a file, and where it stands."""

    values: Mapping[str, str]
    where: str

    def metrics(self) -> list[str]:
        return [name for name, text in self.values.items() if "/" in name and text]

    def run(self) -> ScoredRun | None:
        unit = next((name for name in ("score", "return") if self.values.get(name)), None)
        if unit is None:
            return None
        method = self._text("method")
        facts = [(name, self.values.get(name, "")) for name in _PROTOCOL]
        return ScoredRun(
            method=method,
            dataset=self._text("dataset"),
            options=self._options(),
            seed=self._number("seed", int),
            source=self.where,
            module=method,
            score=self._number(unit, float),
            protocol=tuple(facts),
            steps=self._steps(),
            weights=self.values.get("checkpoint") or None,
            date=self.values.get("date", ""),
        )

    def measured(self, metric: str) -> OfflineRun:
        return OfflineRun(
            method=self._text("method"),
            dataset=self._text("dataset"),
            options=self._options(),
            seed=self._number("seed", int),
            source=self.where,
            value=self._number(metric, float),
            date=self.values.get("date", ""),
            steps=self._steps(),
        )

    def _steps(self) -> int | None:
        return self._number("training_steps", int) if self.values.get("training_steps") else None

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
        except ValueError:
            raise self._wrong(name, "a whole number" if kind is int else "a number") from None
        return number

    def _wrong(self, name: str, needed: str) -> EvaluationError:
        return EvaluationError(
            f"{self.where}: '{name}' is '{self.values[name]}', but has to be {needed}."
        )


def _lines(file: Path) -> Iterator[_Line]:
    import pandas as pd  # seconds to import

    try:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' own errors are of the latter kind
        raise EvaluationError(f"{file}: cannot be read as CSV: {reason(error)}") from error
    for name in frame.columns:
        if name not in _KNOWN and "/" not in name:
            raise EvaluationError(f"{file}: unknown column '{name}'.{nearest(name, _KNOWN)}")
    for name in _NEEDED:
        if name not in frame.columns:
            raise EvaluationError(f"{file}: has no column '{name}'.")
    for number, values in enumerate(frame.to_dict("records"), 2):  # the first line has the names
        yield _Line(
            {str(name): str(value) for name, value in values.items()}, f"{file}, row {number}"
        )
