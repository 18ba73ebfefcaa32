"""Logging what a command made to the MLflow run, or the experiment, that it is about."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_offrl.common.errors import ConfigError, first_line
from lit_offrl.evaluation.runs import FIGURES_TAG
from lit_offrl.modules.base import CHECKPOINT_KEY
from lit_offrl.modules.checkpoints import mlflow_runs, read_checkpoint
from lit_offrl.tracking.artifacts import artifact_repository
from lit_offrl.tracking.store import open_client, redacted, sqlite_file, store_uri

TRAINED_BY = "lit_offrl.trained_by"
"""Tag of an evaluation's own run: the id of the run that trained the checkpoint."""
FACTS = ("method", "dataset", "max_steps", "precision", "seed")
"""Tags of every training, to group runs by."""
_MOST_PARAMS = 100  # MLflow's limit for a call


@dataclass(frozen=True)
class OwnRun:
    """A run beside the training's.

    Attributes:
        name: of the run.
        tags: of the run.
    """

    name: str
    tags: Mapping[str, str]


def log_to_origin(
    checkpoint: Path,
    verb: str,
    folder: str,
    metrics: Mapping[str, float],
    files: Sequence[Path],
    *,
    step: int = 0,
    tracking_uri: str | None = None,
    run: OwnRun | None = None,
    asked_for: bool = False,
) -> bool:
    """Add metrics and files to the training's run, if any; say so where that cannot be done.

    The run is looked for in the user's own store, whatever store the checkpoint names: a run's id
    is unique, and a checkpoint from elsewhere must not have any server contacted.

    Args:
        checkpoint: of ``fit``; nothing is logged if it came from no run.
        verb: of lit-offrl, for the message.
        folder: of the artifacts.
        metrics: by name.
        files: to log.
        step: of the training, that the metrics are of.
        tracking_uri: the user's store; None for the default.
        run: a new one to log to, which takes over what the training's says of its options and data.
        asked_for: whether to say so where there is no run.

    Returns:
        Whether nothing is left to be logged.
    """
    origin = next(iter(mlflow_runs(read_checkpoint(checkpoint)[CHECKPOINT_KEY])), None)
    if origin is None:
        if asked_for:
            print(f"lit-offrl {verb}: {checkpoint} came from no MLflow run: nothing is logged.")
        return True
    run_id, was = origin["run_id"], redacted(origin["tracking_uri"])
    uri = store_uri(tracking_uri)
    try:
        require_there(uri)
        if run is None:
            log_to_run(run_id, uri, folder, metrics, files, step)
        else:
            run_id = _log_beside(run_id, uri, run, folder, metrics, files, step)
    except Exception as error:  # the files are written; a store that moved must not undo that
        said = f"not logged to MLflow run {run_id}: {redacted(first_line(error))}"
        if uri != was:
            said += f"; the run was in {was}: give it as --tracking_uri or $MLFLOW_TRACKING_URI"
        print(f"lit-offrl {verb}: {said}", file=sys.stderr)
        return False
    print(f"MLflow run {run_id}: logged under {folder}/")
    return True


def require_there(uri: str) -> None:
    """See that a SQLite store's file is there, where MLflow would make an empty one.

    Raises:
        ConfigError: it is not.
    """
    database = sqlite_file(uri)
    if database is not None and not database.is_file():
        raise ConfigError(f"{database} is not here")


def log_to_experiment(
    tracking_uri: str, experiment_id: str, name: str, verb: str, folder: str, files: Sequence[Path]
) -> bool:
    """Log files about an experiment's runs to one that keeps them, made at the first time.

    Args:
        tracking_uri: the store.
        experiment_id: in the store.
        name: of what is kept there; the run is found by it the next time.
        verb: of lit-offrl, for the message.
        folder: of the artifacts.
        files: to log.

    Returns:
        Whether they are logged; where not, a line has said why.
    """
    try:
        client = open_client(tracking_uri)
        where = f"tags.`{FIGURES_TAG}` = '{name}'"
        found = client.search_runs([experiment_id], where, max_results=1)
        run = found[0] if found else client.create_run(
            experiment_id, run_name=f"{verb} {name}", tags={FIGURES_TAG: name}
        )  # fmt: skip
        log_to_run(run.info.run_id, tracking_uri, folder, {}, files)
        client.set_terminated(run.info.run_id)
    except Exception as error:  # the files are written
        first = redacted(first_line(error))
        where = redacted(tracking_uri)
        print(f"lit-offrl {verb}: not logged to MLflow at {where}: {first}", file=sys.stderr)
        return False
    print(f"MLflow run {run.info.run_id}: logged under {folder}/")
    return True


def _log_beside(
    run_id: str,
    tracking_uri: str,
    run: OwnRun,
    folder: str,
    metrics: Mapping[str, float],
    files: Sequence[Path],
    step: int,
) -> str:
    """Log to a new run of the same experiment, finished once all is there; return its id."""
    client = open_client(tracking_uri)
    from mlflow.entities import Param

    origin = client.get_run(run_id)
    facts = {name: origin.data.tags[name] for name in FACTS if name in origin.data.tags}
    tags = {**facts, **run.tags, TRAINED_BY: run_id}
    made = client.create_run(origin.info.experiment_id, run_name=run.name, tags=tags)
    own = made.info.run_id
    params = [Param(name, value) for name, value in origin.data.params.items()]
    for begin in range(0, len(params), _MOST_PARAMS):
        client.log_batch(own, params=params[begin : begin + _MOST_PARAMS])
    # Earlier versions kept what is known of the data as metrics.
    data = {k: v for k, v in origin.data.metrics.items() if k.startswith("data/")}
    for name, value in data.items():
        client.log_metric(own, name, value)
    log_to_run(own, tracking_uri, folder, metrics, files, step)
    client.set_terminated(own)
    return str(own)


def log_to_run(
    run_id: str,
    tracking_uri: str,
    folder: str,
    metrics: Mapping[str, float],
    files: Sequence[Path],
    step: int = 0,
) -> None:
    """Log finite metrics by their names, and files as artifacts in ``folder``."""
    client = open_client(tracking_uri)
    from mlflow.entities import Metric

    stamp = int(time.time() * 1000)
    logged = [
        Metric(name, value, stamp, step) for name, value in metrics.items() if math.isfinite(value)
    ]
    client.log_batch(run_id, metrics=logged)
    run = client.get_run(run_id)
    repository = artifact_repository(tracking_uri, run.info.artifact_uri)
    for file in files:
        repository.log_artifact(str(file), folder)
