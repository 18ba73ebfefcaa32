"""MLflow, on by default: one run a fit, kept over interruptions, never in training's way.

Lightning's own logger may be there beside this library's; both go on in the run of a resumed fit.
"""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_offrl.common import signals
from lit_offrl.common.errors import FileError
from lit_offrl.common.files import shown
from lit_offrl.common.quiet import say
from lit_offrl.tracking.outbox import (
    Artifact,
    Input,
    Outbox,
    Point,
    load_outbox,
    metric_name,
    unsent_file,
)
from lit_offrl.tracking.runs import is_active
from lit_offrl.tracking.sending import STOPPED_SECONDS, Sender
from lit_offrl.tracking.store import (
    artifact_location,
    client_uri,
    default_experiment,
    default_store_kept,
    redacted,
    refusals,
    require_store,
    set_patience,
    store_lock,
    store_uri,
)
from lit_offrl.tracking.system import SystemMetrics

_LAST_SECONDS = 10.0  # for a store that does not answer once training has ended
_LONGEST_PARAM = 250  # letters, of any MLflow's
_STATUS = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED"}


class MLflowRun(MLFlowLogger):
    """Logs to MLflow from a thread of its own; training never waits for the store.

    A server that cannot be reached is an error before training. During training it costs a line:
    what could not be sent is sent once it is back. What is left at the end is kept in the run's
    folder, from which the next resume or ``lit-offrl mlflow sync`` sends it.

    Where neither experiment nor name is given, ``$MLFLOW_RUN_ID`` counts: the run is logged to that
    one.

    Args:
        tracking_uri: Address of the store. The default is ``$MLFLOW_TRACKING_URI``, or
            ``sqlite:///mlflow.db``.
        experiment_name: MLflow's group of runs. The default is ``$MLFLOW_EXPERIMENT_NAME``, that of
            ``$MLFLOW_EXPERIMENT_ID``, or ``lit-offrl``.
        run_name: Name of the run. The default is MODULE-DATASET-seedSEED.
        tags: Tags of the run, values by name.
        log_model: Whether the run gets the policy that its last evaluation was of as a model, which
            MLflow compares, registers and serves; it takes seconds once training has ended.
        log_system_metrics: Whether to log the load of processors, memory, disk, network and GPUs,
            every ten seconds.

    Raises:
        ConfigError: The server does not answer, the store's file cannot be written or is locked, or
            MLflow knows no such store.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment_name: str | None = None,
        run_name: str | None = None,
        tags: dict[str, str] | None = None,
        log_model: bool = False,
        log_system_metrics: bool = False,
    ) -> None:
        uri = store_uri(tracking_uri)
        set_patience()
        if getattr(rank_zero_only, "rank", 0) == 0:  # the first process asks for all
            require_store(uri)
        name = experiment_name or default_experiment()
        with refusals(uri), store_lock(uri):
            super().__init__(
                experiment_name=name,
                run_name=run_name,
                tracking_uri=client_uri(uri),
                tags=tags,
                artifact_location=artifact_location(uri, name),
            )
        self._store = uri
        self._given_run: str | None = None
        if experiment_name is None:
            self._experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID") or None
            if run_name is None:
                self._given_run = os.environ.get("MLFLOW_RUN_ID") or None
        self.log_model = log_model
        self._samples = log_system_metrics
        self._system: SystemMetrics | None = None
        self._latest = 0
        self._sender: Sender | None = None
        self._folder: Path | None = None
        self.resumed = False
        self.stopped = False
        self._closed = False

    @property
    def tracking_uri(self) -> str:
        """The store."""
        return self._store

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """MLflow's client, with the experiment and the run made or found at the first use."""
        if self._initialized:
            return self._mlflow_client
        with refusals(self.tracking_uri):
            if self._run_id is None and self._given_run is not None:
                self._mlflow_client.get_run(self._given_run)
                self._run_id, self.resumed = self._given_run, True
            # A run that is made, and whose number is not known yet, could not be closed.
            with signals.held(), store_lock(self.tracking_uri), default_store_kept():
                client = super().experiment
            if self.resumed:
                client.update_run(self._run_id, status="RUNNING")
        return client

    # ---- what is logged: it waits in memory, and the thread sends it ----------------------------

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log parameters, without Lightning's own notes; a run keeps those that it has."""
        plain = {k: v for k, v in _convert_params(params).items() if not str(k).startswith("_")}
        texts = {k: str(v)[:_LONGEST_PARAM] for k, v in _flatten_dict(plain).items()}
        self.outbox.params.update(texts)

    @rank_zero_only
    def log_facts(self, facts: Mapping[str, Any]) -> None:
        """Log what runs are grouped by as parameters and, unless a tag is given, as tags.

        A resumed run keeps its parameters; its tags say what is true by now.
        """
        texts = {name: str(value)[:_LONGEST_PARAM] for name, value in facts.items()}
        own = self.tags or {}
        outbox = self.outbox
        outbox.params.update(texts)
        outbox.tags.update({k: v for k, v in texts.items() if k not in own})

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics of a step; NaN is left out."""
        stamp = int(time.time() * 1000)
        self._latest = step or 0
        self.outbox.points += [
            Point(metric_name(name), float(value), step or 0, stamp)
            for name, value in metrics.items()
            if not math.isnan(value)  # MLflow's servers differ about NaN; a gap says as much
        ]

    @rank_zero_only
    def log_input(self, data: Input) -> None:
        """Log a dataset that the run takes; a run that has it does not get it again."""
        self.outbox.inputs.append(data)

    @rank_zero_only
    def log_description(self, text: str) -> None:
        """Log the run's description, Markdown; what a reader has written there stays."""
        self.outbox.note = text

    @rank_zero_only
    def log_files(self, path: Path, folder: str | None = None) -> None:
        """Log a file, or all files of a folder, as artifacts, as they are when they are sent."""
        self.outbox.artifacts.append(Artifact(str(path.absolute()), folder or ""))

    @rank_zero_only
    def keep_in(self, folder: Path) -> None:
        """Keep in a folder what cannot be sent by the end, and send what is kept there."""
        self._folder = folder
        if self._samples and self._system is None:
            points = self.outbox.points
            self._system = SystemMetrics(points.extend, lambda: self._latest)
        if self.resumed:
            self.outbox.add(load_outbox(folder, str(self.run_id)))

    def save(self) -> None:
        """Nothing: what is logged is sent within seconds."""

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Send the rest and close the run. A run that was asked to stop has not failed.

        A store that does not answer gets some seconds. Then what it has yet to get is kept in the
        run's folder, and a line says so. A second call does nothing, unless more was logged.
        """
        if not self._initialized or self._closed:
            return
        ended = _STATUS.get(status, status)
        limit = _LAST_SECONDS
        if self.stopped or signals.received():
            limit = STOPPED_SECONDS
            ended = "KILLED" if ended == "FAILED" else ended
        with signals.held():  # which shortens the wait
            if self._system is not None:
                self._system.end()
                self._system = None
            sender = self._sending()
            try:
                sender.end(ended, limit)
            finally:
                self._sender, self.resumed, self._closed = None, True, True
                self._keep(sender.left())

    @property
    def outbox(self) -> Outbox:
        """What waits to be sent, to be added to by the first process."""
        return self._sending().outbox

    def _sending(self) -> Sender:
        if self._sender is None:
            client, run_id, self._closed = self.experiment, str(self.run_id), False
            self._sender = Sender(client, self.tracking_uri, run_id, resumed=self.resumed)
        return self._sender

    def _keep(self, left: Outbox) -> None:
        folder = self._folder or Path.cwd()
        file = unsent_file(folder, str(self._run_id))
        if not left:
            file.unlink(missing_ok=True)
        if not left or (self._folder is None and left.is_only_the_end()):
            return
        said = f"MLflow at {self.tracking_uri} did not get everything of this run ({left})"
        try:
            left.save(folder, str(self._run_id))
        except FileError as error:
            say(f"{said}, and it cannot be kept: {error}")
            return
        argv = ["lit-offrl", "mlflow", "sync", shown(folder)]
        if self.tracking_uri != store_uri():
            argv += ["--tracking_uri", self.tracking_uri]
        say(f"{said}; {file.name} in the run's folder keeps it: send it by {shlex.join(argv)}")


# ---- the loggers of a fit, this library's and Lightning's ----------------------------------------


def mlflow_loggers(loggers: Any) -> list[MLFlowLogger]:
    """Return those that log to MLflow, of one logger, a list of them, or none."""
    several = loggers if isinstance(loggers, list) else [loggers]
    return [logger for logger in several if isinstance(logger, MLFlowLogger)]


def mlflow_origin(logger: MLFlowLogger) -> dict[str, str]:
    """Return what finds a logger's run again: ``run_id``, and ``tracking_uri`` without password."""
    return {"run_id": str(logger.run_id), "tracking_uri": redacted(_store_of(logger))}


def _store_of(logger: MLFlowLogger) -> str:
    return logger.tracking_uri if isinstance(logger, MLflowRun) else store_uri(logger._tracking_uri)


@rank_zero_only
def go_on_with(loggers: Sequence[MLFlowLogger], runs: Sequence[Mapping[str, str]]) -> None:
    """Let loggers of a resumed fit log to the runs that its checkpoint names.

    A run's id is unique, so it is the same run wherever a logger's store has it: the project may
    have been moved, and the server have another name. The stores that ``runs`` name are not
    contacted. A line says where a new run begins.

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
