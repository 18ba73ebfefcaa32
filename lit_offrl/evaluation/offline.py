"""Comparing runs that were never rolled out: by a metric of MLflow, or values from logged data.

val/loss/actor     the last of a run's validations      lower is better
ope/fqe            fitted Q evaluation of its policy     higher is better
"""

from __future__ import annotations

import datetime
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lit_offrl.common.errors import ConfigError, EvaluationError, nearest
from lit_offrl.evaluation.comparison import Estimate, method_labels
from lit_offrl.evaluation.protocol import digest
from lit_offrl.evaluation.record import present_name, present_names
from lit_offrl.evaluation.run_files import matching_files
from lit_offrl.evaluation.runs import Found, SeededRun, one_a_seed, read_runs, swept_options
from lit_offrl.evaluation.statistics import mean, stratified_interval
from lit_offrl.evaluation.tables import run_columns, write_csv
from lit_offrl.tracking.runs import TAG, artifact_repository, artifact_texts, json_paths

Better = Literal["lower", "higher"]
LOSSES = "val/loss"
FQE = "ope/fqe"
_PROTOCOL = ("gamma", "dataset_sha256", "initial_states", "held_out", "fqe", "seed")
_LOWER, _HIGHER = ("loss", "error", "regret"), ("ope/", "eval/", "data/")


@dataclass(frozen=True, kw_only=True)
class OfflineRun(SeededRun):
    """One run and one number of it.

    Attributes:
        value: Value of the metric.
        date: When it was made, in a form that sorts.
        protocol: Settings that must be equal for numbers to be comparable.
        steps: Optimiser steps that the run was to take, if they are known.
    """

    value: float
    date: str
    steps: int | None = None
    protocol: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A method on a dataset: its runs by seed, their mean, and its 95 % interval."""

    dataset: str
    method: str
    runs: tuple[OfflineRun, ...]
    mean: Estimate
    best: bool


def direction(metric: str) -> Better:
    """Return whether lower or higher values of a metric are better.

    Raises:
        ConfigError: its name does not tell.
    """
    last = metric.rpartition("/")[2]
    if any(word in metric.split("/") or word in last.split("_") for word in _LOWER):
        return "lower"
    if metric.startswith(_HIGHER):
        return "higher"
    raise ConfigError(
        f"--metric {metric}: its name does not tell which values are better: give --better lower"
        " or --better higher."
    )


def from_mlflow(
    tracking_uri: str, experiments: Sequence[str], filter_string: str, metric: str
) -> Found[OfflineRun]:
    """Read a metric of finished runs; those that do not have it are left out.

    Raises:
        ConfigError: there is no such experiment, or MLflow refuses.
        EvaluationError: no run has the metric.
    """
    known: dict[str, float] = {}

    def read(run: Any, name: str) -> list[OfflineRun]:
        known.update(run.data.metrics)
        value = _value(run.data.metrics, metric)
        if value is None or not math.isfinite(value):
            raise EvaluationError(f"has no {metric}" if value is None else str(value))
        return [of_mlflow(run, value, metric, name, tracking_uri)]

    found = read_runs(tracking_uri, experiments, filter_string, read)
    if not found.runs and known and _value(known, metric) is None:
        there = sorted(known if _value(known, LOSSES) is None else {LOSSES, *known})
        raise EvaluationError(
            f"--metric {metric}: no run has it.{nearest(metric, there)} They have"
            f" {', '.join(there)}."
        )
    return found


def _value(metrics: Mapping[str, float], metric: str) -> float | None:
    if metric == LOSSES and metric not in metrics:
        parts = [value for name, value in metrics.items() if name.startswith(f"{LOSSES}/")]
        return sum(parts) if parts else None
    present = present_names(metrics)
    return metrics.get(metric, present.get(present_name(metric)))


def of_mlflow(run: Any, value: float, metric: str, name: str, uri: str) -> OfflineRun:
    """Return a run of MLflow with a value of a metric; ``name`` says where it was read.

    Raises:
        EvaluationError: The run does not say the training's seed.
    """
    tags, params = run.data.tags, run.data.params
    data = params.get("dataset_sha256")
    protocol = {"dataset_sha256": data} if data else {}
    if metric.startswith("ope/"):
        repository = artifact_repository(uri, run.info.artifact_uri)
        for text in artifact_texts(repository, json_paths(repository, "ope")).values():
            protocol = _protocol(json.loads(text))
    seed = params.get("seed", tags.get("seed"))
    if seed is None:
        raise EvaluationError("does not say the training's seed")
    started = datetime.datetime.fromtimestamp(run.info.start_time / 1000, datetime.UTC)
    return OfflineRun(
        method=tags.get(f"{TAG}method") or tags.get("method") or str(run.info.run_name),
        dataset=tags.get(f"{TAG}dataset") or tags.get("dataset") or "unknown",
        options=tuple(sorted(swept_options(tags).items())),
        seed=int(float(seed)),
        value=float(value),
        date=started.isoformat(),
        source=name,
        protocol=protocol,
        steps=int(steps) if (steps := params.get("max_steps", "")).isdecimal() else None,
    )


def from_files(patterns: Sequence[str], metric: str) -> Found[OfflineRun]:
    """Read the values of checkpoints from records of ``lit-offrl ope``.

    Raises:
        ConfigError: those have no such metric.
        EvaluationError: a pattern matches nothing, or a file named is no such record.
    """
    if metric != FQE:
        raise ConfigError(
            f"--metric {metric}: files of records have {FQE} alone; other metrics are read from"
            " MLflow (--experiment, --filter)."
        )
    runs: list[OfflineRun] = []
    left_out = []
    for file, named in matching_files(patterns):
        try:
            record = json.loads(file.read_text())
            runs += [_of_record(record, policy, file) for policy in record["policies"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            if named:
                raise EvaluationError(f"{file}: is no record of ope on checkpoints.") from error
            left_out.append(f"{file}: is no record of ope on checkpoints")
    return Found(tuple(runs), tuple(left_out))


def _of_record(record: Mapping[str, Any], policy: Mapping[str, Any], file: Path) -> OfflineRun:
    value = float(policy["fqe"]["mean"])
    if not math.isfinite(value):
        raise ValueError(f"fqe is {value}")
    return OfflineRun(
        method=str(policy["method"]),
        dataset=str(record["dataset"]),
        options=(),
        seed=int(policy["training_seed"]),
        value=value,
        date=str(record["date"]),
        source=f"{file}, {policy['checkpoint']}",
        protocol=_protocol(record),
    )


def _protocol(record: Mapping[str, Any]) -> dict[str, str]:
    values = {name: record.get(name) for name in _PROTOCOL}
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}


def protocol_columns(run: OfflineRun) -> dict[str, str]:
    """Return the protocol as columns of a table of results, of which the last stands for all."""
    data = run.protocol.get("dataset_sha256", "")
    return {"dataset_sha256": data, "protocol": digest(run.protocol)}


def tabulate(
    runs: Sequence[OfflineRun], better: Better, *, latest: bool = False, allow_unequal: bool = False
) -> tuple[list[Row], list[str]]:
    """Put runs into rows by dataset and method, with notes on what differs between them.

    ``latest`` takes the newest of several numbers of one seed instead of refusing them;
    ``allow_unequal`` notes what differs in the protocol instead of refusing it.

    Raises:
        EvaluationError: there is no run, one seed is there twice, or protocols differ.
    """
    if not runs:
        raise EvaluationError("There is no run with this metric to compare.")
    runs = one_a_seed(runs, lambda run: run.date, latest)
    notes = []
    for text in differences(runs):
        if not allow_unequal:
            raise EvaluationError(f"{text}: value them alike, or say --allow_unequal.")
        notes.append(f"{text}.")
    labels, _ = method_labels(runs)
    cells: dict[tuple[str, str], list[OfflineRun]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.seed):
        cells[run.dataset, labels[run.method, run.options]].append(run)
    means = {key: float(np.mean([run.value for run in group])) for key, group in cells.items()}
    choose = min if better == "lower" else max
    rows = []
    for (dataset, method), group in sorted(cells.items()):
        values = np.array([run.value for run in group])
        low, high = stratified_interval([values], mean)
        best = choose(value for key, value in means.items() if key[0] == dataset)
        estimate = Estimate(means[dataset, method], float(low), float(high))
        rows.append(Row(dataset, method, tuple(group), estimate, estimate.value == best))
    return rows, notes


def differences(runs: Iterable[OfflineRun]) -> Iterator[str]:
    """Yield in words what differs in the protocol of runs on the same dataset."""
    found: dict[tuple[str, str], dict[str, OfflineRun]] = defaultdict(dict)
    for run in runs:
        for name, value in run.protocol.items():
            found[run.dataset, name].setdefault(value, run)
    for (dataset, name), values in found.items():
        if len(values) > 1:
            (one, first), (other, second) = list(values.items())[:2]
            yield (f"{dataset}: '{name}' is {one} in {first.source} and {other} in {second.source}")


def heads(seeds: bool) -> list[str]:
    """Return the table's headings."""
    return ["dataset", "method", "mean", "95 %", "seeds", *(["runs"] if seeds else [])]


def cells(row: Row, seeds: bool) -> list[str]:
    """Return a row's texts, one for each heading."""
    known = math.isfinite(row.mean.low)
    interval = f"{row.mean.low:.4g} … {row.mean.high:.4g}" if known else "–"
    texts = [row.dataset, row.method, f"{row.mean.value:.4g}", interval, str(len(row.runs))]
    each = ", ".join(f"{run.seed}: {run.value:.4g}" for run in row.runs)
    return [*texts, each] if seeds else texts


def footnotes(rows: Sequence[Row], metric: str, notes: Sequence[str]) -> list[str]:
    """Return what has to be known to read the table, a sentence each."""
    texts = ["Bold: the best mean on a dataset. Intervals are Student's, over training seeds."]
    if metric.startswith("val/") and len({row.method for row in rows}) > 1:
        texts.append(
            "Losses of different methods are different quantities: compare them within a method,"
            " and methods by ope/fqe (lit-offrl ope)."
        )
    return [*texts, *notes]


def write_files(rows: Sequence[Row], metric: str, better: Better, folder: Path) -> list[Path]:
    """Write ``results.csv`` (a line a run) and ``table.csv``; return their paths."""
    paths = [folder / "results.csv", folder / "table.csv"]
    write_csv(
        paths[0],
        (
            {**run_columns(run), metric: run.value, **protocol_columns(run)}
            | {"training_steps": run.steps, "date": run.date, "source": run.source}
            for row in rows
            for run in row.runs
        ),
    )
    write_csv(
        paths[1],
        (
            {"dataset": row.dataset, "method": row.method, "metric": metric, "better": better}
            | {"mean": row.mean.value, "low": row.mean.low, "high": row.mean.high}
            | {"seeds": len(row.runs)}
            for row in rows
        ),
    )
    return paths
