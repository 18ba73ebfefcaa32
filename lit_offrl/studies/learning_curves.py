"""Scores during training: the evaluations of fits, by the optimiser step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from typing import Any, NoReturn

import numpy as np

from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.evaluation.comparison import ALL, Estimate, Metric, method_labels
from lit_offrl.evaluation.offline import OfflineRun, of_mlflow
from lit_offrl.evaluation.runs import Found, one_a_seed, read_runs
from lit_offrl.evaluation.statistics import mean, stratified_interval
from lit_offrl.studies.inputs import Study
from lit_offrl.studies.runs import RunSelection
from lit_offrl.tracking.store import open_client

_NAMES: dict[Metric, str] = {"score": "eval/score", "return": "eval/return_mean"}


@dataclass(frozen=True, kw_only=True)
class LearningCurves(RunSelection):
    """Scores of training runs by the optimiser step at which they were evaluated.

    The means of the seeds with 95 % intervals, on each dataset and over all of them. If a run was
    evaluated twice after the same step, the later evaluation counts.

    Args:
        metric: What is shown: normalised scores, or undiscounted returns.
    """

    metric: Metric = "score"

    def run(self) -> Study:
        """Read the curves of the runs.

        Raises:
            LitOffRLError: The runs cannot be read, are none, or one seed is there twice.
        """
        found = self._found(_no_files, self._read, f"run with {_NAMES[self.metric]}")
        labels, _ = method_labels(found.runs)
        at_step: dict[int, list[OfflineRun]] = defaultdict(list)
        for run in found.runs:
            at_step[run.steps or 0].append(run)
        strata: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(dict)
        for step, runs in at_step.items():
            for run in sorted(
                one_a_seed(runs, lambda each: each.date, False), key=attrgetter("seed")
            ):
                method = labels[run.method, run.options]
                strata[method, step].setdefault(run.dataset, []).append(run.value)
        datasets = sorted({run.dataset for run in found.runs})
        points = [*self._points(strata, datasets)]
        last = max(at_step)
        metrics = {
            f"{point['dataset']}: {point['method']}": point["value"]
            for point in points
            if point["option"] == str(last)
        }
        facts = {"metric": _NAMES[self.metric], "left_out": list(found.left_out)}
        numbers = {"option": "optimiser step", "points": points}
        return Study(numbers, metrics, facts, experiment=found.experiment)

    def _points(
        self, strata: dict[tuple[str, int], dict[str, list[float]]], datasets: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        """Yield the points of each dataset, and of all together where a method has each."""
        parts = [(name, [name]) for name in datasets]
        for shown, names in [*parts, (ALL, list(datasets))] if len(parts) > 1 else parts:
            for (method, step), by_dataset in sorted(strata.items()):
                if not all(name in by_dataset for name in names):
                    continue
                values = [np.array(by_dataset[name]) for name in names]
                low, high = stratified_interval(values, mean)
                estimate = Estimate(
                    float(np.mean([each.mean() for each in values])), float(low), float(high)
                )
                place = {"dataset": shown, "method": method, "option": str(step)}
                runs = {"runs": by_dataset.get(shown, [])}
                yield place | {"unit": self.metric, **asdict(estimate), **runs}

    def _read(self, uri: str, experiments: Sequence[str], filter: str) -> Found[OfflineRun]:
        client, name = open_client(uri), _NAMES[self.metric]

        def read(run: Any, source: str) -> list[OfflineRun]:
            history = client.get_metric_history(run.info.run_id, name)
            by_step = {
                each.step: each.value for each in sorted(history, key=attrgetter("timestamp"))
            }
            if not by_step:
                raise EvaluationError(f"was not evaluated during training: has no {name}")
            known = of_mlflow(run, 0.0, name, source, uri)
            return [replace(known, value=by_step[step], steps=step) for step in sorted(by_step)]

        return read_runs(uri, experiments, filter, read)


def _no_files(patterns: Sequence[str]) -> NoReturn:
    raise ConfigError(
        "--records: files of records have one score of a run: curves are read from MLflow, by"
        " --experiment, --filter or --parent."
    )
