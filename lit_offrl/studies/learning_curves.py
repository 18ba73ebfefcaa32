"""Scores during training: the evaluations of fits, by the optimiser step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from typing import Any, NoReturn

import numpy as np

from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.evaluation.comparison import ALL, Estimate, Metric, method_labels
from lit_offrl.evaluation.offline import OfflineRun, differences, of_mlflow
from lit_offrl.evaluation.protocol import protocol
from lit_offrl.evaluation.record import EvaluationRecord
from lit_offrl.evaluation.runs import Found, read_runs
from lit_offrl.evaluation.statistics import mean, stratified_interval
from lit_offrl.studies.inputs import Study
from lit_offrl.studies.runs import RunSelection
from lit_offrl.tracking.runs import artifact_repository, artifact_texts, json_paths
from lit_offrl.tracking.store import open_client

_NAMES: dict[Metric, str] = {"score": "eval/score", "return": "eval/return_mean"}


@dataclass(frozen=True, kw_only=True)
class LearningCurves(RunSelection):
    """Scores of training runs by the optimiser step at which they were evaluated.

    The means of the seeds with 95 % intervals, on each dataset and over all of them. If a run was
    evaluated twice after the same step, the later evaluation counts; a score that is not finite
    does not. Runs must have the same data and the same protocol of evaluations.

    Args:
        metric: What is shown: normalised scores, or undiscounted returns.
    """

    metric: Metric = "score"

    def run(self) -> Study:
        """Read the curves of the runs.

        Raises:
            LitOffRLError: The runs cannot be read, are none, one seed is there twice, or data or
                evaluations differ.
        """
        found = self._found(_no_files, self._read, f"run with {_NAMES[self.metric]}")
        for text in differences(found.runs):
            raise EvaluationError(f"{text}: leave one out with --filter.")
        labels, _ = method_labels(found.runs)
        values: dict[tuple[str, int, str], dict[int, OfflineRun]] = defaultdict(dict)
        for run in sorted(found.runs, key=attrgetter("seed")):
            of_seeds = values[labels[run.method, run.options], run.steps or 0, run.dataset]
            if run.seed in of_seeds:
                raise EvaluationError(
                    f"{run.method} on {run.dataset} has seed {run.seed} twice:"
                    f" {of_seeds[run.seed].source}; and {run.source}. Leave one out with --filter."
                )
            of_seeds[run.seed] = run
        strata: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(dict)
        seeds: dict[tuple[str, str], set[int]] = defaultdict(set)
        for (method, step, dataset), runs in values.items():
            strata[method, step][dataset] = [run.value for run in runs.values()]
            seeds[dataset, method].update(runs)
        datasets = sorted({run.dataset for run in found.runs})
        points = [*self._points(strata, datasets)]
        last = max(step for _, step in strata)
        metrics = {}
        for point in points:
            if point["option"] == str(last):
                dataset, method = point["dataset"], point["method"]
                there, whole = len(point["runs"]), len(seeds[dataset, method])
                few = f", {there} of {whole} seeds" if there < whole else ""
                metrics[f"{dataset}: {method}{few}"] = point["value"]
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
                each.step: each.value
                for each in sorted(history, key=attrgetter("timestamp"))
                if math.isfinite(each.value)
            }
            if not by_step:
                raise EvaluationError(f"was not evaluated during training: has no finite {name}")
            known = replace(of_mlflow(run, 0.0, name, source, uri), protocol=_protocol(run, uri))
            return [replace(known, value=by_step[step], steps=step) for step in sorted(by_step)]

        return read_runs(uri, experiments, filter, read)


def _protocol(run: Any, uri: str) -> dict[str, str]:
    """Return what a run's data were, and how it was evaluated during training and afterwards."""
    facts = {}
    if (sha256 := run.data.params.get("dataset_sha256")) is not None:
        facts["sha256 of the data"] = sha256
    repository = artifact_repository(uri, run.info.artifact_uri)
    during = [name for name in json_paths(repository) if name.startswith("evaluation")]
    after = json_paths(repository, "evaluate")
    facts["evaluated after training"] = "yes" if after else "no"
    for when, names in (("during", during[:1]), ("after", after)):  # a fit evaluates in one way
        for text in artifact_texts(repository, names).values():
            told = protocol(EvaluationRecord.from_json(text))
            del told["checkpoint"]  # each point has its own
            facts |= {f"{name} {when} training": value for name, value in told.items()}
    return facts


def _no_files(patterns: Sequence[str]) -> NoReturn:
    raise ConfigError(
        "--records: files of records have one score of a run: curves are read from MLflow, by"
        " --experiment, --filter or --parent."
    )
