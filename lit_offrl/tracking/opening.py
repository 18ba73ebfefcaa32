"""Opening an MLflow store so that a refusal is one line, and two runs begun at once share it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from filelock import FileLock, Timeout

from lit_offrl.common.errors import ConfigError, reason
from lit_offrl.tracking.store import needs_quoting, redacted, sqlite_file

_LOCK_SECONDS = 60.0
_WAY_OUT = " Give another --trainer.logger.init_args.tracking_uri, or --trainer.logger false."


def artifact_location(uri: str, experiment: str) -> str | None:
    """Return where an experiment's files go, if MLflow would take its own choice for another."""
    file = sqlite_file(uri)
    if file is None or not needs_quoting(file):
        return None
    return (file.parent / "mlruns" / re.sub(r"[^\w.-]", "_", experiment)).as_uri()


def experiment_id(client: Any, uri: str, name: str) -> str:
    """Return the id of an experiment, which is made if there is none of that name."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(name, artifact_location=artifact_location(uri, name)))


@contextmanager
def refusals(uri: str, way_out: str = _WAY_OUT) -> Iterator[None]:
    """Say in a line, which ends with ``way_out``, what MLflow refuses.

    Raises:
        ConfigError: instead of any other error, whatever the store's driver throws.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        said = redacted(reason(error)).rstrip(".")
        raise ConfigError(f"MLflow at {uri} refuses: {said}.{way_out}") from error


@contextmanager
def default_store_kept() -> Iterator[None]:
    """Let Lightning not make a run's store the default of all that comes after it."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        yield
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


@contextmanager
def store_lock(uri: str) -> Iterator[None]:
    """Keep other processes away while a SQLite store's tables or its experiment are made.

    MLflow makes both without a lock, so that of two runs begun at once the second would fail.

    Raises:
        ConfigError: another process keeps the lock for a minute.
    """
    file = sqlite_file(uri)
    if file is None:
        yield
        return
    lock = f"{file}.lock"
    try:
        with FileLock(lock, timeout=_LOCK_SECONDS):
            yield
    except Timeout as error:
        raise ConfigError(
            f"{lock} is held by another process since {_LOCK_SECONDS:.0f} seconds: wait for it or "
            "end it; if there is none, remove the file."
        ) from error
