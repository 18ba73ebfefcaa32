"""Where MLflow's runs are kept, without importing MLflow."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from lit_offrl.errors import ConfigError

DEFAULT_URI = "sqlite:///mlflow.db"
STORE_HELP = f"MLflow's store [$MLFLOW_TRACKING_URI, else {DEFAULT_URI}]"
SQLITE = "sqlite:///"
_PROBE_SECONDS = 3.0
_LOCKED_SECONDS = 10.0  # a run's own writing takes milliseconds
_WAY_OUT = "give another --trainer.logger.init_args.tracking_uri, or --trainer.logger false."


def default_uri() -> str:
    """Return the store that counts where none is named."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite store, or None for a store of another kind."""
    file = uri.removeprefix(SQLITE)
    return Path(file) if uri.startswith(SQLITE) and file else None


def absolute_uri(uri: str) -> str:
    """Make the path of a SQLite store absolute, so that it names the same store from anywhere."""
    file = sqlite_file(uri)
    return uri if file is None or file.is_absolute() else f"{SQLITE}{file.resolve()}"


def require_store(uri: str, way_out: str = _WAY_OUT) -> None:
    """Find out in seconds whether a store can be used; MLflow itself would try for minutes.

    Raises:
        ConfigError: it cannot; the line ends with ``way_out``.
    """
    file = sqlite_file(uri)
    if file is not None:
        held = file if file.exists() else file.parent
        if not os.access(held, os.W_OK):
            raise ConfigError(f"The MLflow store {file} cannot be written: {way_out}")
        if file.exists():
            _require_database(file, way_out)
        return
    if urllib.parse.urlsplit(uri).scheme not in ("http", "https"):
        return
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it answers; whether it lets us in will be seen
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"The MLflow server {uri} cannot be reached ({reason}): start it, {way_out}"
        ) from error


def _require_database(file: Path, way_out: str) -> None:
    """See that a file is a store's or empty; MLflow would put its tables into any database.

    Raises:
        ConfigError: it is another program's or no database, or another process keeps it locked.
    """
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=_LOCKED_SECONDS)) as database:
            database.execute("BEGIN IMMEDIATE")
            found = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {name for (name,) in found}
            database.rollback()
    except sqlite3.Error as error:
        raise ConfigError(f"The MLflow store {file} cannot be used ({error}): {way_out}") from error
    if tables and "experiments" not in tables:
        raise ConfigError(f"{file} is the database of another program than MLflow: {way_out}")
