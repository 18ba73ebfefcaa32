"""The loggers of a fit that log to MLflow, this library's and Lightning's, and their runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_offrl.callbacks.mlflow_run import MLflowRun
from lit_offrl.common.quiet import say
from lit_offrl.tracking.runs import is_active
from lit_offrl.tracking.store import redacted, require_store, store_uri


def mlflow_loggers(loggers: Any) -> list[MLFlowLogger]:
    """Return those that log to MLflow, of one logger, a list of them, or none."""
    several = loggers if isinstance(loggers, list) else [loggers]
    return [logger for logger in several if isinstance(logger, MLFlowLogger)]


def mlflow_origin(logger: MLFlowLogger) -> dict[str, str]:
    """Return what finds a logger's run again: ``run_id``, and ``tracking_uri`` without password."""
    return {"run_id": str(logger.run_id), "tracking_uri": redacted(_store_of(logger))}


def _store_of(logger: MLFlowLogger) -> str:
    return logger.tracking_uri if isinstance(logger, MLflowRun) else store_uri(logger._tracking_uri)


def name_run(logger: MLFlowLogger, name: str) -> None:
    """Give a logger's run a name, unless it has one or exists already."""
    if logger._run_name is None and logger._run_id is None:
        logger._run_name = name


@rank_zero_only
def go_on_with(loggers: Sequence[MLFlowLogger], runs: Sequence[Mapping[str, str]]) -> None:
    """Let loggers of a resumed fit log to the runs that its checkpoint names.

    A run's id is unique, so it is the same run wherever a logger's store has it: the project may
    have been moved, and the server have another name. A line says where a new run begins.

    Args:
        loggers: Lightning's own or this library's.
        runs: ``run_id`` and ``tracking_uri`` of each; the store that it names is not contacted.

    Raises:
        ConfigError: a logger's store cannot be used.
    """
    left = list(runs)
    for logger in loggers:
        given = getattr(logger, "_given_run", None)
        if given is not None:
            if given not in [run["run_id"] for run in runs]:
                say(f"$MLFLOW_RUN_ID: this fit is logged to the MLflow run {given}.")
            continue
        if logger._run_id is not None or not left:
            continue
        uri = _store_of(logger)
        if not isinstance(logger, MLflowRun):
            require_store(uri)
        found = next(
            (run for run in left if is_active(logger._mlflow_client, uri, run["run_id"])), None
        )
        if found is None:
            was = redacted(left[0]["tracking_uri"])
            where = "is gone from" if was == uri else f"of {was} is not in"
            say(f"MLflow run {left[0]['run_id']} {where} {uri}: a new run begins there.")
            continue
        left.remove(found)
        logger._run_id = found["run_id"]
        if isinstance(logger, MLflowRun):
            logger.resumed = True
