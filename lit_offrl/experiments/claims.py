"""What holds: claims of papers, judged by evaluated runs. A claim is a line of a YAML file.

The unit is a training seed, as in a comparison. A claim is judged on each dataset by itself, among
runs that were evaluated by one protocol: it *holds* where the whole 95 % interval is on its side,
it *does not hold* where the whole interval is on the other, and is *not decidable* in between.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from lit_offrl.common.configs import read_yaml
from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.evaluation.scored import UNITS, ScoredRun
from lit_offrl.experiments.config import FileReader, Section

OF_THE_PAPERS = Path(__file__).with_name("claims.yaml")
"""The claims of the papers that this library is about."""

Verdict = Literal["holds", "does not hold", "not decidable"]
_KINDS = ("above", "rises", "metric")


class Rows(Section):
    """Runs by their method's name and some of their options."""

    method: str = Field(description="the name of a method")
    options: dict[str, str | None] = Field(
        default={}, description="values of options as text, null for an option that is not given"
    )

    def take(self, run: ScoredRun) -> bool:
        """Whether a run is one of these."""
        options = dict(run.options)
        named = {_plain(run.method), _plain(run.module)}
        return _plain(self.method) in named and all(
            options.get(name) == value for name, value in self.options.items()
        )


class Above(Section):
    """A row whose score is above those of each of its rivals."""

    row: str = Field(description="the name of a row")
    rivals: list[str] = Field(min_length=1, description="names of rows")


class Rises(Section):
    """A row whose score rises with an option, from its lowest value to its highest."""

    row: str = Field(description="the name of a row")
    along: str = Field(description="an option of a sweep or of the policy, policy.num_samples")


class Metric(Section):
    """A metric of training runs, or its excess over another one, that is above a number."""

    name: str = Field(
        description="a metric of MLflow's, figures/mountain-car/spearman_return_value"
    )
    minus: str | None = Field(default=None, description="another metric")
    above: float = Field(description="a number")


class Claim(Section):
    """One claim; exactly one of ``above``, ``rises`` and ``metric`` says how it is judged."""

    paper: str = Field(description="a short name of the paper")
    where: str = Field(description="a table, a figure or a section")
    says: str = Field(description="a sentence")
    published: str = Field(default="", description="the paper's own numbers, as text")
    steps: int | None = Field(
        default=None, ge=1, description="the paper's number of optimiser steps"
    )
    datasets: list[str] = Field(default=["*"], description="patterns of datasets' names")
    above: Above | None = Field(default=None, description="a mapping with row and rivals")
    rises: Rises | None = Field(default=None, description="a mapping with row and along")
    metric: Metric | None = Field(default=None, description="a mapping with name, minus and above")


@dataclass(frozen=True)
class Claims:
    """The claims of a file, and its rows: by name, the alternatives that make one up."""

    claims: tuple[Claim, ...]
    rows: Mapping[str, tuple[Rows, ...]]

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that claims are about."""
        found = [claim.metric for claim in self.claims if claim.metric is not None]
        names = [name for each in found for name in (each.name, each.minus) if name is not None]
        return [*dict.fromkeys(names)]

    def alike(
        self, row: str, own: Sequence[ScoredRun], rival: str, other: Sequence[ScoredRun]
    ) -> bool:
        """Whether two settings agree in every option that both have and neither row describes."""
        described = {
            name
            for each in (row, rival)
            for rows in self.rows.get(each, ())
            for name in rows.options
        }
        first, second = dict(own[0].options), dict(other[0].options)
        shared = first.keys() & second.keys() - described
        return all(first[name] == second[name] for name in shared)

    def select(self, row: str, runs: Iterable[ScoredRun]) -> list[ScoredRun]:
        """Return the runs of a row; one that the file does not describe is a method by its name."""
        alternatives = self.rows.get(row, (Rows(method=row),))
        return [run for run in runs if any(each.take(run) for each in alternatives)]


@dataclass(frozen=True)
class Finding:
    """What the runs on one dataset say of a claim.

    Attributes:
        dataset: Name of the dataset.
        numbers: Means of both sides, or along an option, with the score of each seed.
        excess: How far the claim's side is ahead, with its 95 % interval; NaN without one.
        budget: The runs' optimiser steps as a share of the paper's, NaN where either is unknown.
        verdict: What follows from the interval.
    """

    dataset: str
    numbers: str
    excess: tuple[float, float, float]
    budget: float
    verdict: Verdict


def read_claims(path: Path) -> Claims:
    """Read a file of claims.

    Raises:
        ConfigError: The file, or a key of it, cannot be; the line names both.
    """
    reader = FileReader(path)
    given = reader.known(read_yaml(path), "the file", ("rows", "claims"))
    rows = {}
    for name, alternatives in reader.mapping("rows", given.get("rows")).items():
        if not isinstance(alternatives, list):
            raise reader.wrong(f"rows.{name}", alternatives, "a list of methods and options")
        rows[name] = tuple(reader.read(f"rows.{name}", Rows, each) for each in alternatives)
    listed = given.get("claims")
    if not isinstance(listed, list) or not listed:
        raise reader.wrong("claims", listed, "a list of claims")
    claims = []
    for number, each in enumerate(listed, 1):
        claim = reader.read(f"claims.{number}", Claim, each)
        if sum(getattr(claim, kind) is not None for kind in _KINDS) != 1:
            raise reader.wrong(f"claims.{number}", claim.says, f"one of {', '.join(_KINDS)}")
        claims.append(claim)
    return Claims(tuple(claims), rows)


def judge(
    claim: Claim,
    claims: Claims,
    runs: Sequence[ScoredRun],
) -> list[Finding]:
    """Judge a claim on every dataset on which there are runs for it.

    Args:
        claim: One of the claims.
        claims: The file that it stands in.
        runs: Runs with their scores, and with the metrics that claims are about.

    Raises:
        ConfigError: A score is to rise along an option that has values which are no numbers.
        EvaluationError: A seed has several evaluations and none is the latest, or some runs have
            a score alone and others a return alone. The line names two of the runs.
    """
    if claim.metric is not None:
        runs = list(_measured(claim.metric, runs))
    else:
        runs = [run for run in runs if run.is_evaluated]
    findings: list[Finding] = []
    groups: dict[tuple[Any, ...], list[ScoredRun]] = defaultdict(list)
    for run in runs:
        if any(fnmatch(run.dataset, pattern) for pattern in claim.datasets):
            groups[run.dataset, run.protocol].append(run)
    for (dataset, _), members in sorted(groups.items()):
        if claim.metric is not None:
            findings += _of_metric(claim, claim.metric, dataset, members)
        elif claim.above is not None:
            findings += _of_rivals(claim, claim.above, claims, dataset, members)
        elif claim.rises is not None:
            findings += _of_rise(claim, claim.rises, claims, dataset, members)
    return findings


def _unit(runs: Sequence[ScoredRun]) -> str:
    """Return what the runs of a dataset are compared by: scores, or returns if a score is missing.

    Raises:
        EvaluationError: Neither do all of them have.
    """
    lacking = {unit: next((run for run in runs if unit not in run.numbers), None) for unit in UNITS}
    found = next((unit for unit, run in lacking.items() if run is None), None)
    if found is None:
        said = " and ".join(f"{run.source} has no '{unit}'" for unit, run in lacking.items() if run)
        raise EvaluationError(
            f"{said}: give all runs on '{runs[0].dataset}' a score, or all of them a return."
        )
    return found


def _of_rivals(
    claim: Claim, above: Above, claims: Claims, dataset: str, runs: list[ScoredRun]
) -> Iterator[Finding]:
    unit = _unit(runs)
    for own in _settings(claims.select(above.row, runs)):
        for rival in above.rivals:
            for other in _settings(claims.select(rival, runs)):
                if not claims.alike(above.row, own, rival, other):
                    continue
                first, second = (_by_seed(side, unit) for side in (own, other))
                numbers = "; ".join(
                    f"{_named(side[0].method, side[0].options)}: {_listed(scores)}"
                    for side, scores in ((own, first), (other, second))
                )
                # evaluations of the same weights differ seed by seed
                weights = {run.seed: run.weights for run in own}
                same = weights == {run.seed: run.weights for run in other}
                if same and None not in weights.values():
                    excess = _excess([first[seed] - second[seed] for seed in first])
                else:
                    excess = _excess([*first.values()], [*second.values()])
                yield _finding(claim, dataset, _shown(numbers, unit), excess, [*own, *other])


def _of_rise(
    claim: Claim, rises: Rises, claims: Claims, dataset: str, runs: list[ScoredRun]
) -> Iterator[Finding]:
    unit = _unit(runs)
    taken = [run for run in claims.select(rises.row, runs) if rises.along in dict(run.options)]
    for members in _settings(taken, along=rises.along):
        by_value: dict[float, dict[int, float]] = defaultdict(dict)
        for run in members:
            by_value[_number(run, rises.along)][run.seed] = run.numbers[unit]
        seeds = set.intersection(*(set(scores) for scores in by_value.values()))
        if len(by_value) < 2 or not seeds:
            continue
        values = sorted(by_value)
        numbers = "; ".join(f"{value:g}: {_listed(by_value[value])}" for value in values)
        lines = np.array([[by_value[value][seed] for value in values] for seed in sorted(seeds)])
        ranks = np.linspace(-0.5, 0.5, len(values))
        slopes = lines @ ranks / (ranks @ ranks)
        excess = _excess([*slopes])
        numbers = _shown(f"{rises.along} {numbers}", unit)
        yield _finding(claim, dataset, numbers, excess, members)


def _measured(metric: Metric, runs: Sequence[ScoredRun]) -> Iterator[ScoredRun]:
    """Yield the runs that have a metric, or its excess over another one, with this number alone."""
    subtracted = {run.source: run.numbers.get(metric.minus or "") for run in runs}
    for run in runs:
        less = subtracted[run.source] if metric.minus else 0.0
        if metric.name in run.numbers and less is not None:
            yield replace(run, numbers={metric.name: run.numbers[metric.name] - less})


def _of_metric(
    claim: Claim, metric: Metric, dataset: str, runs: list[ScoredRun]
) -> Iterator[Finding]:
    for members in _settings(runs):
        by_seed = _by_seed(members, metric.name)
        numbers = f"{_named(members[0].method, members[0].options)}: {_listed(by_seed, digits=3)}"
        if metric.above:
            numbers += f", to be above {metric.above:g}"
        ahead = _excess([*by_seed.values()], above=metric.above)
        yield _finding(claim, dataset, numbers, ahead, members)


def _finding(
    claim: Claim,
    dataset: str,
    numbers: str,
    excess: tuple[float, float, float],
    runs: Iterable[ScoredRun],
) -> Finding:
    known = [run.steps for run in runs if run.steps is not None]
    budget = min(known) / claim.steps if known and claim.steps else math.nan
    _, low, high = excess
    verdict: Verdict = "holds" if low > 0 else "does not hold" if high < 0 else "not decidable"
    return Finding(dataset, numbers, excess, budget, verdict)


def _settings(runs: Sequence[ScoredRun], along: str | None = None) -> Iterator[list[ScoredRun]]:
    """Yield the runs that differ by their seed alone, but for one option; the latest of a seed."""
    cells: dict[tuple[Any, ...], dict[Any, list[ScoredRun]]] = defaultdict(dict)
    for run in runs:
        others = tuple(pair for pair in run.options if pair[0] != along)
        place = run.seed, None if along is None else _number(run, along)
        cells[run.method, others, run.steps].setdefault(place, []).append(run)
    for key in sorted(cells, key=str):
        yield sorted(map(_latest, cells[key].values()), key=lambda run: run.seed)


def _latest(runs: Iterable[ScoredRun]) -> ScoredRun:
    """Return the latest of several evaluations of one seed.

    Raises:
        EvaluationError: Their dates do not tell which one it is.
    """
    *others, last = sorted(runs, key=lambda run: run.date)
    for other in others:
        if other.date in ("", last.date):
            raise EvaluationError(
                f"{last.method} on {last.dataset} has seed {last.seed} twice, in {other.source} and"
                f" in {last.source}: leave one out, or give each a date of its own, of which the"
                " latest counts."
            )
    return last


def _by_seed(runs: Iterable[ScoredRun], name: str) -> dict[int, float]:
    return {run.seed: run.numbers[name] for run in runs}


def _shown(numbers: str, unit: str) -> str:
    return f"{numbers}; returns" if unit == "return" else numbers


def _named(method: str, options: Iterable[tuple[str, str]]) -> str:
    said = ", ".join(f"{name}={value}" for name, value in options)
    return f"{method} ({said})" if said else method


def _number(run: ScoredRun, option: str) -> float:
    given = dict(run.options)[option]
    try:
        return float(given)
    except ValueError:
        raise ConfigError(
            f"{run.source}: {option} is {given}: a score rises along an option with numbers."
        ) from None


def _listed(scores: Mapping[int, float], digits: int = 1) -> str:
    each = ", ".join(f"{scores[seed]:.{digits}f}" for seed in sorted(scores))
    mean = float(np.mean([*scores.values()]))
    return f"{mean:.{digits}f} ({each})" if len(scores) > 1 else each


def _excess(*sides: Sequence[float], above: float = 0.0) -> tuple[float, float, float]:
    """Return how far a mean is above a number, or above a second mean, with its 95 % interval.

    One side has Student's interval, two have Welch's; a side of a single value has none.
    """
    excess = float(np.mean(sides[0]) - sum(float(np.mean(side)) for side in sides[1:]) - above)
    if min(map(len, sides)) < 2:
        return excess, math.nan, math.nan
    from scipy import stats  # half a second to import

    squares = np.array([np.var(side, ddof=1) / len(side) for side in sides])
    freedom = np.array([len(side) - 1 for side in sides])
    tiny = np.finfo(np.float64).tiny
    welch = max(squares.sum() ** 2, tiny) / max((squares**2 / freedom).sum(), tiny)
    reach = float(stats.t.ppf(0.975, welch) * math.sqrt(squares.sum()))
    return excess, excess - reach, excess + reach


def _plain(method: str) -> str:
    return method.removesuffix("Module").replace("-", "").replace("_", "").lower()
