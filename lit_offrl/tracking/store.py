"""Where MLflow's runs are kept, without importing MLflow.

A store is named by its URI everywhere in this library: in options, checkpoints and messages. The
path of a SQLite file stands in it as it is, whatever letters are in the folders' names, and a
server's address has no password: that goes into the environment, where MLflow looks for it.
:func:`client_uri` gives what MLflow itself is to be called with.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
import warnings
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lit_offrl.common import signals
from lit_offrl.common.errors import ConfigError, reason

DEFAULT_URI = "sqlite:///mlflow.db"
STORE_HELP = (
    f"Address of the MLflow store; without it, that of $MLFLOW_TRACKING_URI, else {DEFAULT_URI}."
)
SQLITE = "sqlite:///"
EXPERIMENT = "lit-offrl"
_QUOTED = "sqlite+pysqlite:///"
_USERNAME, _PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
_TOKEN = "MLFLOW_TRACKING_TOKEN"
_USER_IN_URI = re.compile(r"(?<=://)[^/\s@]*@")
_PROBE_SECONDS = 3.0
_LOCK_SECONDS = 60.0  # for two runs that make a store at once
_LOCKED_SECONDS = 10.0  # a run's own writing takes milliseconds
_WAY_OUT = "give another --trainer.logger.init_args.tracking_uri, or --trainer.logger false."


def store_uri(given: str | None = None) -> str:
    """Return the store that counts, ``given`` or else the default, as it is named everywhere."""
    return absolute_uri(given or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI)


def default_experiment() -> str:
    """Return the name of the experiment that counts where none is named."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite store, or None for a store of another kind."""
    file = uri.removeprefix(SQLITE)
    return Path(file) if uri.startswith(SQLITE) and file else None


def absolute_uri(uri: str) -> str:
    """Name a store so that it is the same from anywhere, and without a password.

    The path of a SQLite file becomes absolute. A user and password before a server's address are
    moved to ``$MLFLOW_TRACKING_USERNAME`` and ``$MLFLOW_TRACKING_PASSWORD``, from which MLflow
    takes them for each request, so that nothing that holds the URI holds them.
    """
    if uri.startswith(_QUOTED):
        uri = SQLITE + urllib.parse.unquote(uri.removeprefix(_QUOTED))
    file = sqlite_file(uri)
    if file is not None:
        return uri if file.is_absolute() else f"{SQLITE}{file.resolve()}"
    if not uri.startswith(("http://", "https://")):
        return uri
    user, at, host = urllib.parse.urlsplit(uri).netloc.rpartition("@")
    if not at:
        return uri
    name, _, password = user.partition(":")
    os.environ[_USERNAME] = urllib.parse.unquote(name)
    os.environ[_PASSWORD] = urllib.parse.unquote(password)
    return uri.replace(f"{user}@{host}", host, 1)


def client_uri(uri: str) -> str:
    """Return the URI by which MLflow finds a store.

    SQLAlchemy reads a URI's path as quoted and its ``?`` as the beginning of options, so the path
    of a SQLite file in which that matters is quoted. The driver is named with it: MLflow would else
    make the folder of that very name, quotes and all.
    """
    file = sqlite_file(uri)
    if file is None or not needs_quoting(file):
        return uri
    return f"{_QUOTED}{urllib.parse.quote(str(file))}"


def open_client(uri: str) -> Any:
    """Return MLflow's client of a store; it takes seconds to import, and contacts nothing yet.

    Raises:
        MlflowException: MLflow knows no such store.
    """
    set_patience()
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=client_uri(absolute_uri(uri)))


def needs_quoting(path: Path) -> bool:
    """Whether a path within a URI would be read as another."""
    return any(sign in str(path) for sign in "%?#")


def redacted(text: str) -> str:
    """Return a text without passwords: those in URIs, and those in MLflow's environment."""
    text = _USER_IN_URI.sub("", text)
    for name in (_PASSWORD, _TOKEN):
        secret = os.environ.get(name)
        if secret and len(secret) > 3:  # a shorter one would be found in any word
            for form in {secret, urllib.parse.quote(secret, safe="")}:
                text = text.replace(form, "***")
    return text


def runs_address(uri: str, experiment_id: str) -> str:
    """Say where a browser shows the table of an experiment's runs, as a part of a line."""
    page = f"#/experiments/{experiment_id}?workflowType=machine_learning"
    if uri.startswith(("http://", "https://")):
        return f"{uri.rstrip('/')}/{page}"
    file = sqlite_file(uri)
    if file is not None and file.parent == Path.cwd():
        uri = f"{SQLITE}{file.name}"
    return f"mlflow ui --backend-store-uri {redacted(uri)} and then http://127.0.0.1:5000/{page}"


def set_patience() -> None:
    """Let a dead server cost seconds, and keep MLflow's chatter off the screen.

    MLflow would try a request again for minutes. Whoever may wait tries again by its own clock.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # MLflow sets its loggers by this
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("alembic", "lightning.pytorch.loggers.mlflow", "mlflow", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="mlflow")


def is_own(uri: str, given: str | None = None) -> bool:
    """Whether a store that a file names is the user's own, and so may be contacted.

    A checkpoint may name any server, or any file on the disk. Where it is the user's own, as the
    user's command has ``given`` it or by default, contact :func:`store_uri`, not ``uri``, which has
    no password.
    """
    own = store_uri(given)
    if uri.startswith(("http://", "https://")):  # whose password is not to be the user's
        return uri == own
    return redacted(absolute_uri(uri)) == redacted(own)  # files name a database without password


def require_store(uri: str, way_out: str = _WAY_OUT, *, made: bool = False) -> None:
    """Find out in seconds whether a store can be used; MLflow itself would try for minutes.

    Raises:
        ConfigError: It cannot be used, or it should be ``made`` already and is not there, where
            MLflow would make an empty one; the line ends with ``way_out``.
    """
    uri = absolute_uri(uri)
    file = sqlite_file(uri)
    if file is not None:
        if made and not file.is_file():
            raise ConfigError(f"There is no MLflow store {file}: {way_out}")
        held = file if file.exists() else file.parent
        if not os.access(held, os.W_OK):
            raise ConfigError(f"The MLflow store {file} cannot be written: {way_out}")
        if file.exists():
            _require_database(file, way_out)
        return
    if urllib.parse.urlsplit(uri).scheme not in ("http", "https"):
        return
    try:
        request = urllib.request.Request(f"{uri.rstrip('/')}/health", headers=_authorization())
        urllib.request.urlopen(request, timeout=_PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise ConfigError(
                f"The MLflow server {uri} does not let you in ({error.code}): give it as "
                f"http://USER:PASSWORD@HOST or set ${_USERNAME} and ${_PASSWORD}."
            ) from None
        return  # it answers; whether it takes what is logged will be seen
    except (OSError, ValueError) as error:
        reason = redacted(str(getattr(error, "reason", error)))
        raise ConfigError(
            f"The MLflow server {uri} cannot be reached ({reason}): start it, {way_out}"
        ) from error


def _authorization() -> dict[str, str]:
    """Return the headers by which MLflow would be let in."""
    user, password = os.environ.get(_USERNAME), os.environ.get(_PASSWORD)
    if user and password:
        return {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"}
    token = os.environ.get(_TOKEN)
    return {"Authorization": f"Bearer {token}"} if token else {}


def _require_database(file: Path, way_out: str) -> None:
    """See that a file is a store's or empty; MLflow would put its tables into any database."""
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


# ---- opening a store so that a refusal is one line, and two runs begun at once share it ----------


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
def refusals(uri: str, way_out: str = _WAY_OUT.capitalize()) -> Iterator[None]:
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
        raise ConfigError(f"MLflow at {uri} refuses: {said}. {way_out}".rstrip()) from error


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

    MLflow makes both without a lock, so that of two runs begun at once the second would fail. A
    signal waits: tables that are half made are refused by MLflow ever after.

    Raises:
        ConfigError: another process keeps the lock for a minute.
    """
    file = sqlite_file(uri)
    if file is None:
        yield
        return
    lock = f"{file}.lock"
    try:
        with FileLock(lock, timeout=_LOCK_SECONDS), signals.held():
            yield
    except Timeout as error:
        raise ConfigError(
            f"{lock} is held by another process since {_LOCK_SECONDS:.0f} seconds: wait for it or "
            "end it; if there is none, remove the file."
        ) from error
