"""Which evaluated runs a study or a comparison is of."""

from __future__ import annotations

import argparse

from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.evaluation import offline
from lit_offrl.evaluation.offline import OfflineRun
from lit_offrl.evaluation.runs import Found, runs_from_files, runs_from_mlflow
from lit_offrl.tracking.store import (
    STORE_HELP,
    default_experiment,
    require_store,
    set_patience,
    sqlite_file,
    store_uri,
)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--experiment``, ``--filter``, ``--tracking_uri`` and ``--records``."""
    add = parser.add_argument
    add("--experiment", nargs="+", default=[], metavar="NAME", help="MLflow experiments")
    add("--filter", default="", metavar="TEXT", help="MLflow's filter, e.g. \"tags.x = 'y'\"")
    add("--tracking_uri", metavar="URI", help=STORE_HELP)
    add(
        "--records",
        nargs="+",
        default=[],
        metavar="PATH",
        help="files of evaluation records, folders of them, or glob patterns",
    )


def find_runs(options: argparse.Namespace) -> Found:
    """Read the runs that the options name; without any, those of ``fit``'s own experiment.

    Raises:
        ConfigError: there is no such store or experiment.
        EvaluationError: a record cannot be read, or no run has been evaluated.
    """
    parts = [runs_from_files(options.records)] if options.records else []
    if (store := _store(options)) is not None:
        parts.append(runs_from_mlflow(*store, options.filter))
    found = Found(
        tuple(run for part in parts for run in part.runs),
        tuple(line for part in parts for line in part.left_out),
        next((part.experiment for part in parts if part.experiment is not None), None),
    )
    if not found.runs:
        what = f": {'; '.join(found.left_out[:3])}" if found.left_out else "."
        raise EvaluationError(f"There is no evaluated run to compare{what}")
    return found


def find_offline_runs(options: argparse.Namespace) -> tuple[list[OfflineRun], list[str]]:
    """Read the offline metric ``options.metric`` of the runs that the options name.

    Returns:
        The runs, and a line on each that does not have it.

    Raises:
        ConfigError: there is no such store or experiment.
        EvaluationError: a record cannot be read, or no run has the metric.
    """
    runs: list[OfflineRun] = []
    left_out: list[str] = []
    if options.records:
        runs, left_out = offline.from_files(options.records, options.metric)
    if (store := _store(options)) is not None:
        found = offline.from_mlflow(*store, options.filter, options.metric)
        runs, left_out = runs + found[0], left_out + found[1]
    if not runs:
        what = f": {'; '.join(left_out[:3])}" if left_out else "."
        raise EvaluationError(f"There is no run with {options.metric} to compare{what}")
    return runs, left_out


def _store(options: argparse.Namespace) -> tuple[str, list[str]] | None:
    """Return the MLflow store and the experiments that the options name; None for files alone.

    Raises:
        ConfigError: there is no such store.
    """
    if options.records and not options.experiment and not options.filter:
        return None
    uri = store_uri(options.tracking_uri)
    set_patience()
    _need_database(uri)
    require_store(uri, "give another --tracking_uri, or files with --records.")
    names = options.experiment
    if not names and not options.filter:
        names = [default_experiment()]
    return uri, names


def _need_database(uri: str) -> None:
    """See that a SQLite store is there: MLflow makes an empty one, or tries for minutes.

    Raises:
        ConfigError: there is none.
    """
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise ConfigError(
            f"There is no MLflow store {file}: name it with --tracking_uri, or give files with "
            "--records."
        )
