"""Which evaluated runs a study or a comparison is of."""

from __future__ import annotations

import argparse

from lit_offrl.errors import ConfigError, EvaluationError
from lit_offrl.evaluation.runs import Found, runs_from_files, runs_from_mlflow
from lit_offrl.mlflow_store import (
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
    if options.experiment or options.filter or not options.records:
        uri = store_uri(options.tracking_uri)
        set_patience()
        _need_database(uri)
        require_store(uri, "give another --tracking_uri, or files with --records.")
        names = options.experiment
        if not names and not options.filter:
            names = [default_experiment()]
        parts.append(runs_from_mlflow(uri, names, options.filter))
    found = Found(
        tuple(run for part in parts for run in part.runs),
        tuple(line for part in parts for line in part.left_out),
        next((part.experiment for part in parts if part.experiment is not None), None),
    )
    if not found.runs:
        what = f": {'; '.join(found.left_out[:3])}" if found.left_out else "."
        raise EvaluationError(f"There is no evaluated run to compare{what}")
    return found


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
