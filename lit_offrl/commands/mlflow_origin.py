"""Logging what a command made to the MLflow run that a checkpoint came from."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lit_offrl.modules.base import CHECKPOINT_KEY, read_checkpoint


def log_to_origin(
    checkpoint: Path, verb: str, folder: str, metrics: Mapping[str, float], files: Sequence[Path]
) -> bool:
    """Add metrics and files to the training's run, if any; say so where that cannot be done.

    Args:
        checkpoint: of ``fit``; nothing happens if it came from no run.
        verb: of lit-offrl, for the message.
        folder: of the artifacts, and what the metrics' names begin with.
        metrics: by name.
        files: to log.

    Returns:
        Whether nothing is left to be logged.
    """
    origin = read_checkpoint(checkpoint)[CHECKPOINT_KEY].get("mlflow")
    if not origin:
        return True
    run_id, uri = origin["run_id"], origin["tracking_uri"]
    try:
        database = uri.removeprefix("sqlite:///")
        if database != uri and not Path(database).is_file():
            raise FileNotFoundError(f"{database} is not here")  # MLflow would make an empty one
        log_to_run(run_id, uri, folder, metrics, files)
    except Exception as error:  # the files are written; a store that moved must not undo that
        first = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"lit-offrl {verb}: not logged to MLflow run {run_id}: {first}", file=sys.stderr)
        return False
    print(f"MLflow run {run_id}: logged under {folder}/")
    return True


def log_to_run(
    run_id: str,
    tracking_uri: str,
    folder: str,
    metrics: Mapping[str, float],
    files: Sequence[Path],
) -> None:
    """Log finite metrics as ``FOLDER/NAME`` and files as artifacts in ``FOLDER``."""
    # A server that does not answer is to be given up in seconds, not in MLflow's minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow.entities import Metric  # seconds to import: only where there is a run
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri)
    stamp = int(time.time() * 1000)
    logged = [
        Metric(f"{folder}/{name}", value, stamp, 0)
        for name, value in metrics.items()
        if math.isfinite(value)
    ]
    client.log_batch(run_id, metrics=logged)
    for file in files:
        client.log_artifact(run_id, str(file), folder)
