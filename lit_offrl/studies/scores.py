"""Scores of evaluated runs, as ``compare`` has them: by dataset, or against an option."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lit_offrl.common.errors import EvaluationError, nearest
from lit_offrl.evaluation.comparison import Cell, Comparison, Metric, compare
from lit_offrl.evaluation.runs import Run
from lit_offrl.evaluation.tables import protocol_lines
from lit_offrl.studies.inputs import Study
from lit_offrl.studies.runs import RunSelection


@dataclass(frozen=True, kw_only=True)
class Scores(RunSelection):
    """Scores of evaluated runs by method and dataset.

    Args:
        metric: What is compared: normalised scores, or undiscounted returns.
    """

    metric: Metric = "score"

    def run(self) -> Study:
        """Compare the runs.

        Raises:
            LitOffRLError: The runs cannot be read or compared.
        """
        found = self.find()
        comparison = compare(found.runs, metric=self.metric)
        metrics = {
            f"{dataset}: {method}": cell.mean.value
            for (dataset, method), cell in comparison.cells.items()
        }
        facts = {"protocol": list(protocol_lines(comparison)), "left_out": list(found.left_out)}
        return Study(bar_numbers(comparison), metrics, facts, experiment=found.experiment)


def _numbers(cell: Cell) -> dict[str, Any]:
    """Return the mean of a cell on one dataset, its interval, and its runs."""
    return {**asdict(cell.mean), "runs": cell.strata[0]}


def bar_numbers(comparison: Comparison) -> dict[str, Any]:
    """Return what ``figures.bars.from_numbers`` draws: means, intervals and runs."""
    datasets = list(comparison.scored or comparison.units)
    bars = [
        {"dataset": dataset, "method": method, **_numbers(cell)}
        for (dataset, method), cell in comparison.cells.items()
        if dataset in datasets
    ]
    return {
        "label": "normalised score" if comparison.scored else "return",
        "one_unit": bool(comparison.scored),
        "datasets": datasets,
        "methods": list(comparison.methods),
        "data": dict(comparison.data),
        "bars": bars,
    }


@dataclass(frozen=True, kw_only=True)
class ScoreAgainst(Scores):
    """Scores of evaluated runs by the values of an option.

    Args:
        option: Name of the option: an axis of a sweep, such as drop_probability, or policy.NAME,
            such as policy.omega.
    """

    option: str

    def run(self) -> Study:
        """Take each method's scores by the option's values; runs without it are left out.

        Raises:
            LitOffRLError: No run has the option, or they cannot be read or compared.
        """
        found = self.find()
        name = self.option
        known = sorted({key for each in found.runs for key, _ in each.options})
        runs = [each for each in found.runs if name in dict(each.options)]
        if not runs:
            varied = f" They vary {', '.join(known)}." if known else ""
            hint = nearest(name, known) or varied or " They vary none: run a sweep of it."
            raise EvaluationError(f"--option {name}: no run has it.{hint}")
        comparison = compare(runs, metric=self.metric)  # at once: intervals end at the data's range
        points = []
        for (dataset, _), cell in comparison.cells.items():
            first = cell.runs[0]
            place = {"dataset": dataset, "method": _method(first, name, runs)}
            place |= {"option": dict(first.options)[name], "unit": comparison.units[dataset]}
            points.append(place | _numbers(cell))
        points.sort(key=lambda point: (point["dataset"], point["method"], _place(point["option"])))
        metrics = {
            f"{p['dataset']}: {p['method']}, {name}={p['option']}": p["value"] for p in points
        }
        facts = {
            "option": name,
            "protocol": list(protocol_lines(comparison)),
            "left_out": list(found.left_out),
        }
        return Study(
            {"option": name, "points": points}, metrics, facts, experiment=found.experiment
        )


def _method(run: Run, name: str, runs: list[Run]) -> str:
    """Name a run's method with those of its other options that vary."""
    varied = {
        key
        for key, _ in run.options
        if len({dict(r.options).get(key) for r in runs if r.method == run.method}) > 1
    }
    own = ", ".join(f"{key}={value}" for key, value in run.options if key in varied - {name})
    return f"{run.method} ({own})" if own else run.method


def _place(value: str) -> tuple[int, float, str]:
    try:
        return (0, float(value), "")
    except ValueError:
        return (1, 0.0, value)
