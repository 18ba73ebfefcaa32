"""Scores of methods on datasets, with intervals: what ``lit-offrl compare`` shows.

The unit is a run: its score is the mean over its episodes, one number, and intervals resample the
runs (training seeds) of each dataset. Episodes are never pooled, since those of one run share its
training.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lit_offrl.common.errors import EvaluationError
from lit_offrl.evaluation import protocol
from lit_offrl.evaluation.runs import Run, SeededRun, one_a_seed
from lit_offrl.evaluation.statistics import (
    MANY,
    Statistic,
    interquartile_mean,
    mean,
    stratified_interval,
)

Metric = Literal["score", "return"]
ALL = "all datasets"
_STATISTICS: Mapping[str, Statistic] = {"mean": mean, "iqm": interquartile_mean}


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % interval, whose ends are NaN where a dataset has a single run."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """A method on a dataset, or on all of them together.

    Attributes:
        strata: Scores of the runs, by dataset.
        runs: The runs, by dataset and then by seed.
        mean: Mean of the datasets' means.
        iqm: Interquartile mean of all runs.
        marks: Numbers of the footnotes on runs that differ from the others.
    """

    strata: tuple[np.ndarray, ...]
    runs: tuple[Run, ...]
    mean: Estimate
    iqm: Estimate
    marks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """All of a table.

    Attributes:
        units: ``score`` or ``return`` by dataset, in the table's order.
        methods: Names of the methods, in the table's order.
        cells: Cells by (dataset, method); those without runs are absent.
        aggregates: Cells over all datasets with scores, of the methods that have runs on each.
        data: Mean score or return of each dataset's own episodes, where runs know it.
        unequal: Footnotes on runs that differ from the others, numbered from 1 by the marks.
        protocols: A sentence on each dataset.
        steps: Text on the training steps of each method.
        options: Text on the options that each method's name leaves out.
        versions: Text on the versions of the packages.
    """

    units: Mapping[str, Metric]
    methods: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]
    aggregates: Mapping[str, Cell]
    data: Mapping[str, float]
    unequal: tuple[str, ...]
    protocols: tuple[str, ...]
    steps: Mapping[str, str]
    options: Mapping[str, str]
    versions: str

    @property
    def scored(self) -> tuple[str, ...]:
        """The datasets that aggregates are over."""
        return tuple(dataset for dataset, unit in self.units.items() if unit == "score")


def compare(
    runs: Sequence[Run],
    *,
    metric: Metric = "score",
    allow_unequal: bool = False,
    latest: bool = False,
) -> Comparison:
    """Put runs into a table of methods on datasets.

    Args:
        runs: Runs, at least one.
        metric: ``return`` for returns throughout; otherwise datasets whose environment has no
            references have returns, and stand outside the aggregate.
        allow_unequal: Whether to mark runs whose protocol differs instead of refusing them.
        latest: Whether to take the newest of several evaluations of one seed instead of refusing
            them.

    Raises:
        EvaluationError: There is no run, a seed is there twice, or protocols differ.
    """
    if not runs:
        raise EvaluationError("There is no evaluated run to compare.")
    runs = one_a_seed(runs, lambda run: run.record.date, latest)
    found = protocol.differences(runs)
    if not allow_unequal:
        protocol.refuse(found)
    labels, left_out = method_labels(runs)
    members: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.seed):
        members[run.dataset, labels[run.method, run.options]].append(run)
    datasets = sorted({run.dataset for run in runs})
    methods = tuple(sorted(set(labels.values())))
    units = {name: _unit(name, runs, metric) for name in datasets}
    marks = {
        run.source: tuple(n for n, each in enumerate(found, 1) if run in each.runs) for run in runs
    }
    ranges = {name: _range(name, runs, units[name]) for name in datasets}
    cells = {
        (dataset, method): _cell([members[dataset, method]], [units[dataset]], marks, ranges)
        for dataset in datasets
        for method in methods
        if (dataset, method) in members
    }
    scored = [dataset for dataset in datasets if units[dataset] == "score"]
    whole = [m for m in methods if all((dataset, m) in members for dataset in scored)]
    aggregates = {
        method: _cell(
            [members[name, method] for name in scored], ["score"] * len(scored), marks, ranges
        )
        for method in whole
        if len(scored) > 1
    }
    return Comparison(
        units=units,
        methods=methods,
        cells=cells,
        aggregates=aggregates,
        data=_data_means(runs, units),
        unequal=tuple(_footnote(each, labels) for each in found),
        protocols=tuple(_describe(name, runs) for name in datasets),
        steps={method: _steps(method, members) for method in methods},
        options=left_out,
        versions=protocol.versions([run.record for run in runs]),
    )


def run_mean(run: Run, unit: Metric) -> float:
    """Return a run's mean over its episodes."""
    return float(np.mean(_episodes(run, unit)))


def _episodes(run: Run, unit: Metric) -> tuple[float, ...]:
    values = run.record.scores if unit == "score" else run.record.returns
    assert values is not None  # _unit saw to it
    return values


def method_labels(
    runs: Sequence[SeededRun],
) -> tuple[dict[tuple[str, tuple[tuple[str, str], ...]], str], dict[str, str]]:
    """Name each method with those of its options that are needed to tell its rows apart.

    Returns:
        The names by method and options, and by name the options that it leaves out, in words.
    """
    options: dict[str, set[tuple[tuple[str, str], ...]]] = defaultdict(set)
    for run in runs:
        options[run.method].add(run.options)
    labels, left_out = {}, {}
    for method, found in sorted(options.items()):
        telling = _telling(found)
        for each in sorted(found):
            own = ", ".join(f"{k}={v}" for k, v in each if k in telling)
            labels[method, each] = label = f"{method} ({own})" if own else method
            others = ", ".join(f"{k}={v}" for k, v in each if k not in telling)
            if others:
                left_out[label] = others
    return labels, left_out


def _telling(found: Collection[tuple[tuple[str, str], ...]]) -> list[str]:
    """Return options, by name, each of which tells settings apart that those before it do not."""
    telling: list[str] = []
    apart = 1
    for key in sorted({key for each in found for key, _ in each}):
        values = {tuple(dict(each).get(name) for name in (*telling, key)) for each in found}
        if len(values) > apart:
            telling.append(key)
            apart = len(values)
    return telling


def _unit(dataset: str, runs: Sequence[Run], metric: Metric) -> Metric:
    scores = [run.record.scores for run in runs if run.dataset == dataset]
    return "score" if metric == "score" and None not in scores else "return"


def _cell(
    members: Sequence[Sequence[Run]],
    units: Sequence[Metric],
    marks: Mapping[str, tuple[int, ...]],
    ranges: Mapping[str, tuple[float, float]],
) -> Cell:
    strata = tuple(
        np.array([run_mean(run, unit) for run in runs])
        for runs, unit in zip(members, units, strict=True)
    )
    runs = tuple(run for group in members for run in group)
    lows, highs = np.array([ranges[group[0].dataset] for group in members]).T
    limits = {"mean": (lows.mean(), highs.mean()), "iqm": (lows.min(), highs.max())}
    estimates = {}
    for name, statistic in _STATISTICS.items():
        ends = np.clip(stratified_interval(strata, statistic), *limits[name])
        estimates[name] = Estimate(float(statistic(*strata)), *map(float, ends))
    marked = sorted({number for run in runs for number in marks[run.source]})
    return Cell(strata, runs, estimates["mean"], estimates["iqm"], tuple(marked))


def _range(dataset: str, runs: Sequence[Run], unit: Metric) -> tuple[float, float]:
    """Return the least and the most that an episode of any run has earned on a dataset.

    No policy's mean lies outside of what episodes earn, and of many their range is that. Of few,
    infinities.
    """
    values = np.concatenate([_episodes(run, unit) for run in runs if run.dataset == dataset])
    if len(values) < MANY:
        return -math.inf, math.inf
    return float(values.min()), float(values.max())


def _data_means(runs: Sequence[Run], units: Mapping[str, Metric]) -> dict[str, float]:
    """Take what most runs say; those on another file are marked or refused elsewhere."""
    means = {}
    for dataset, unit in units.items():
        said = [run.data.get(f"{unit}_mean", math.nan) for run in runs if run.dataset == dataset]
        counts = Counter(value for value in said if math.isfinite(value))
        if counts:
            means[dataset] = max(counts, key=lambda value: (counts[value], value))
    return means


def _describe(dataset: str, runs: Sequence[Run]) -> str:
    records = [run.record for run in runs if run.dataset == dataset]
    counts = Counter(protocol.describe(dataset, record) for record in records)
    return max(counts, key=lambda text: (counts[text], text))


def _steps(method: str, members: Mapping[tuple[str, str], Sequence[Run]]) -> str:
    found = {
        protocol.settings(run)["training steps"]
        for (_, name), runs in members.items()
        for run in runs
        if name == method
    }
    return " or ".join(sorted(found))


def _footnote(
    difference: protocol.Difference,
    labels: Mapping[tuple[str, tuple[tuple[str, str], ...]], str],
) -> str:
    first = difference.runs[0]
    seeds = ", ".join(str(run.seed) for run in difference.runs)
    label = labels[first.method, first.options]
    return f"{label} on {difference.dataset}, seed {seeds}: {difference.how}"
