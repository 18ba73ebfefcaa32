"""MLflow, on by default: one run a fit, kept over interruptions, never in training's way."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from lit_offrl.errors import ConfigError, first_line, reason
from lit_offrl.mlflow_store import (
    DEFAULT_URI,
    absolute_uri,
    default_uri,
    require_store,
    sqlite_file,
)

_LOCK_SECONDS = 60.0
_HELD_BACK = 200  # metrics, and
_FLUSH_SECONDS = 5.0  # seconds, after which they are sent


class MLflowRun(MLFlowLogger):
    """Logs to MLflow in batches; nothing is contacted before the first process needs it.

    A server that cannot be reached is an error before training and a warning during it: what could
    not be sent then is sent later.

    Args:
        tracking_uri: the store; ``$MLFLOW_TRACKING_URI`` or ``sqlite:///mlflow.db`` by default.
        experiment_name: MLflow's group of runs.
        run_name: the run's name; by default MODULE-DATASET-seedSEED.
        tags: of the run.

    Raises:
        ConfigError: the server does not answer, the store's file cannot be written or is locked, or
            MLflow knows no such store.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment_name: str = "lit-offrl",
        run_name: str | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        uri = absolute_uri(tracking_uri or default_uri())
        set_patience()
        if getattr(rank_zero_only, "rank", 0) == 0:  # the first process asks for all
            require_store(uri)
        with _refusals(uri), _alone(uri):
            super().__init__(
                experiment_name=experiment_name,
                run_name=run_name,
                tracking_uri=uri,
                tags=tags,
            )
        self._held: list[Any] = []
        self._flushed = time.monotonic()
        self.resumed = False
        self.stopped = False

    @property
    def tracking_uri(self) -> str:
        """The store."""
        return self._tracking_uri or DEFAULT_URI

    def name_run(self, name: str) -> None:
        """Give the run a name, unless it has one or exists already."""
        if self._run_name is None and self._run_id is None:
            self._run_name = name

    @rank_zero_only
    def go_on_with(self, run_id: str | None) -> None:
        """Log to a run that exists; where it is gone, or None is given, to a new one."""
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return
        try:
            self._mlflow_client.get_run(run_id)
        except MlflowException:
            rank_zero_warn(
                f"MLflow run {run_id} is gone from {self.tracking_uri}; a new one begins."
            )
        else:
            self._run_id, self.resumed = run_id, True

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """MLflow's client, with the experiment and the run made or found at the first use.

        Raises:
            ConfigError: the store refuses.
        """
        if self._initialized:
            return self._mlflow_client
        with _refusals(self.tracking_uri):
            with _alone(self.tracking_uri):
                client = super().experiment
            if self.resumed:
                client.update_run(self._run_id, status="RUNNING")
        return client

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Any) -> None:
        """Log parameters, without Lightning's own notes; a resumed run keeps those it has."""
        plain = {k: v for k, v in dict(params).items() if not str(k).startswith("_")}
        if self.resumed:
            known = self.experiment.get_run(self.run_id).data.params
            plain = {k: v for k, v in plain.items() if k not in known}
        super().log_hyperparams(plain)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Hold metrics back until enough have come together, or some seconds have passed."""
        from mlflow.entities import Metric

        stamp = int(time.time() * 1000)
        self._held += [
            Metric(name, float(value), stamp, step or 0)
            for name, value in metrics.items()
            if not math.isnan(value)  # MLflow's servers differ about NaN; a gap says as much
        ]
        if len(self._held) >= _HELD_BACK or time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.save()

    @rank_zero_only
    def log_once(self, metrics: Mapping[str, float]) -> None:
        """Log facts of the whole run at step 0; a resumed run keeps those it has."""
        known = self.experiment.get_run(self.run_id).data.metrics if self.resumed else {}
        self.log_metrics({name: value for name, value in metrics.items() if name not in known}, 0)

    @rank_zero_only
    def save(self) -> None:
        """Send what is held back."""
        self._flushed = time.monotonic()
        try:
            while self._held:
                batch = self._held[:1000]  # MLflow's limit for a call
                self.experiment.log_batch(self.run_id, metrics=batch)
                self._held = self._held[1000:]
        except Exception as error:  # whatever a store's driver throws: training is worth more
            first = first_line(error)
            rank_zero_warn(f"MLflow did not take metrics, they are tried again later: {first}")

    @rank_zero_only
    def log_files(self, path: Path, folder: str | None = None) -> None:
        """Log a file, or all files of a folder, as artifacts."""
        try:
            if path.is_dir():
                self.experiment.log_artifacts(self.run_id, str(path), folder)
            else:
                self.experiment.log_artifact(self.run_id, str(path), folder)
        except Exception as error:
            rank_zero_warn(f"MLflow did not take {path}: {first_line(error)}")

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Send what is left and close the run; one that was asked to stop has not failed."""
        if self._initialized:
            self.save()
            super().finalize("KILLED" if self.stopped and status == "failed" else status)


@contextmanager
def _refusals(uri: str) -> Iterator[None]:
    """Say in a line what MLflow refuses, whatever its store's driver throws.

    Raises:
        ConfigError: instead of any other error.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"MLflow at {uri} refuses: {reason(error).rstrip('.')}. "
            "Give another --trainer.logger.init_args.tracking_uri, or --trainer.logger false."
        ) from error


@contextmanager
def _alone(uri: str) -> Iterator[None]:
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


def set_patience() -> None:
    """Let a dead server cost seconds, and keep MLflow's first-use chatter off the screen."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # MLflow sets its loggers by this
    for name in ("alembic", "lightning.pytorch.loggers.mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="mlflow")
