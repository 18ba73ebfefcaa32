"""Scores of evaluated runs by method and dataset, as ``compare`` has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lit_offrl.evaluation.comparison import Comparison, Metric, compare
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


def bar_numbers(comparison: Comparison) -> dict[str, Any]:
    """Return what ``figures.bars.from_numbers`` draws: means, intervals and runs."""
    datasets = list(comparison.scored or comparison.units)
    bars = [
        {
            "dataset": dataset,
            "method": method,
            "value": cell.mean.value,
            "low": cell.mean.low,
            "high": cell.mean.high,
            "runs": cell.strata[0],
        }
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
