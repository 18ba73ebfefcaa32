"""Jobs as Ray actors: in processes of this machine, or of a cluster that runs already."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import operator
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from lit_offrl.common import signals
from lit_offrl.common.errors import ConfigError, install, reason
from lit_offrl.experiments.config import Section
from lit_offrl.experiments.executors.local import LocalExecutor
from lit_offrl.experiments.executors.transfer import Transfer
from lit_offrl.experiments.job import Job, State
from lit_offrl.experiments.process import HELD, STOPPED, Children
from lit_offrl.experiments.run import LOOK_SECONDS, Choices, Listener, Runner

_GB = 2**30
_PASSED = ("LIT_OFFRL_", "MLFLOW_", "OMP_NUM_THREADS")  # variables that a cluster's nodes lack
_ANSWER_SECONDS = 5.0
_LONGEST_PATH = 40  # letters of a folder in which Ray's sockets have names that the kernel takes
_OBJECTS = 80 * 2**20  # bytes for Ray's objects, of which there are hardly any; its least
_TETHER = ("-m", "lit_offrl.experiments.executors.tether")
_AMOUNT = "a number of at least 0"


class RayOptions(Section):
    """The key ``ray`` of a sweep's file, and ``--ray``; for its fields see ``docs/sweeps.md``."""

    num_cpus: float = Field(default=1, ge=0, description=_AMOUNT)
    num_gpus: float = Field(default=0, ge=0, description=_AMOUNT)
    memory_gb: float = Field(default=0, ge=0, description=_AMOUNT)
    gpu_memory_gb: float | None = Field(default=None, gt=0, description="a number above 0")
    retries: int = Field(default=3, ge=0, description=f"{_AMOUNT}, a whole one")
    worker_root: str | None = Field(default=None, pattern="^/", description="an absolute path")


class Worker:
    """An actor: works on one job, and hears meanwhile that it is to stop."""

    def __init__(self) -> None:
        self._children = Children()

    def where(self) -> str:
        """Return the host and the process."""
        return f"on {socket.gethostname()}, process {os.getpid()}"

    def stop(self, number: int) -> None:
        """Send a signal to the job's process, and begin nothing more."""
        self._children.stop(number)

    def work(
        self,
        job: Job,
        choices: Choices,
        environment: Mapping[str, str],
        folder: str,
        transfer: Transfer | None,
        retried: bool,
    ) -> str:
        """Work on a job; return "" or why it is not done.

        Args:
            job: The job.
            choices: What to do with a failed or changed one.
            environment: Variables of its process.
            folder: The working folder of the command.
            transfer: How files come here and go; None where the folder is shared.
            retried: Whether a process of a former worker may live on for a moment.
        """
        with contextlib.suppress(OSError):  # this host may not have it
            os.chdir(folder)
        python, *rest = job.program
        python = python if Path(python).is_file() else sys.executable
        job = replace(job, program=(sys.executable, *_TETHER, str(os.getpid()), python, *rest))
        if transfer is not None:
            job = transfer.on_worker(job)
            transfer.fetch(job)
        try:
            while True:
                why = Runner(choices, self._children, environment).run(job)
                if why != HELD or not retried or self._children.stopping:
                    return why
                time.sleep(LOOK_SECONDS)
        finally:
            if transfer is not None:
                transfer.upload(job.folder)


class RayExecutor(LocalExecutor):
    """Has each job worked on by an actor of its own, which Ray places where there is room.

    Args:
        choices: What to do with failed and changed jobs.
        listener: Hears when jobs begin.
        options: Resources and retries.
        address: ``HOST:PORT`` of a cluster's head, ``auto`` or ``ray://HOST:PORT``; None begins Ray
            on this machine, for as long as the command runs.
        workers: Jobs at a time at most; None for as many as the cluster has room for.
        transfer: How files pass where there is no shared folder.

    Raises:
        ConfigError: Ray is not installed or does not answer, or has no room for any job.
    """

    def __init__(
        self,
        choices: Choices,
        listener: Listener,
        options: RayOptions,
        address: str | None,
        workers: int | None,
        transfer: Transfer | None,
    ) -> None:
        self._ray = _start(options, address, workers)
        self._options, self._transfer, self._is_local = options, transfer, address is None
        self._total = self._ray.cluster_resources()
        need = {"CPU": options.num_cpus, "GPU": options.num_gpus}
        room = int(min((self._total.get(k, 0) / n for k, n in need.items() if n), default=1024))
        if room < 1 and (workers is None or self._is_local):
            raise ConfigError(
                f"ray: a job takes {options.num_cpus:g} CPUs and {options.num_gpus:g} GPUs, and Ray"
                f" has {self._total.get('CPU', 0):g} and {self._total.get('GPU', 0):g}: lower"
                " num_cpus or num_gpus; of a cluster that grows, give --workers."
            )
        super().__init__(choices, listener, workers=workers or room)
        self._actors: dict[str, Any] = {}  # by the job's key
        self._placed: set[str] = set()  # keys of jobs whose actors do not wait for room
        self._stopping = False
        passed = {k: v for k, v in os.environ.items() if k.startswith(_PASSED)}
        self._environment = {"OMP_NUM_THREADS": "1", **passed}

    def _needs(self, job: Job) -> dict[str, float]:
        options, gpus = self._options, self._options.num_gpus
        if share := job.needs.get("gpu_memory_gb"):
            if options.gpu_memory_gb is None:
                raise ConfigError(
                    f"{job.name}: needs gpu_memory_gb: say under 'ray:' how much a GPU has, as"
                    " gpu_memory_gb: 80."
                )
            gpus = min(1.0, share / options.gpu_memory_gb)
        memory = job.needs.get("memory_gb", options.memory_gb) * _GB
        return {"num_cpus": options.num_cpus, "num_gpus": gpus, "memory": int(memory)}

    def _fits(self, job: Job, gpu: str, running: Sequence[tuple[Job, str]]) -> bool:
        """Whether there can ever be room; Ray itself waits until there is."""
        totals = (self._total.get(name, 0) for name in ("CPU", "GPU", "memory"))
        enough = all(map(operator.le, self._needs(job).values(), totals))
        return enough or not self._is_local

    def _work(self, job: Job, gpu: str) -> str:
        """Have one actor after the other work on a job, as long as they are killed."""
        if self._transfer is not None:
            self._transfer.send(job)
        choices = self._choices
        for attempt in itertools.count(1):
            why, killed = self._attempt(job, choices, attempt)
            if self._transfer is not None:
                self._transfer.fetch(job)
            if why not in ("", HELD, STOPPED):  # the fit itself may have been killed
                killed = killed or job.state() == State.CUT
            if self._stopping or not killed or attempt > self._options.retries:
                break
            self._listener.begins(job, f"{why}: goes on in another")
            # Begun anew or tried again it was already: from here on there is only going on.
            choices = Choices()
        return STOPPED if killed and self._stopping else why

    def _attempt(self, job: Job, choices: Choices, attempt: int) -> tuple[str, bool]:
        """Return why a job is not done, and whether its worker was killed."""
        errors, needs = self._ray.exceptions, self._needs(job)
        actor = self._ray.remote(Worker).options(max_concurrency=2, **needs).remote()
        self._actors[job.key] = actor
        try:
            if self._stopping:  # of which the actor may have heard nothing
                return STOPPED, False
            place = actor.where.remote()
            given = (job, choices, self._environment, os.getcwd(), self._transfer, attempt > 1)
            result = actor.work.remote(*given)
            again = f"; attempt {attempt}" if attempt > 1 else ""
            self._listener.begins(job, self._ray.get(place) + again)
            self._placed.add(job.key)
            return self._ray.get(result), False
        except errors.RayActorError:
            return "its worker was killed", True
        except errors.RayError as error:  # a fault in the worker
            return f"the worker failed: {str(error).strip().splitlines()[-1]}", False
        finally:
            self._placed.discard(job.key)
            self._ray.kill(self._actors.pop(job.key))

    def _send(self, number: int) -> None:
        self._stopping = True
        for key, actor in list(self._actors.items()):
            if key in self._placed:
                actor.stop.remote(number)
            else:
                self._ray.kill(actor)


# ---- Ray itself ----------------------------------------------------------------------------------


def _start(options: RayOptions, address: str | None, workers: int | None) -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address is None:
        # Despite its name: every socket is bound to 127.0.0.1.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ.setdefault("RAY_worker_niceness", "0")  # as of any other fit, not 15
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"--executor ray needs Ray: run {install('ray')}.") from error
    ray.shutdown()
    given: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        root = tempfile.gettempdir()
        folder = tempfile.mkdtemp(prefix="ray-", dir=root if len(root) < _LONGEST_PATH else "/tmp")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        atexit.register(ray.shutdown)  # the last one is called first
        given |= {"address": "local", "include_dashboard": False, "_temp_dir": folder}
        given |= {"object_store_memory": _OBJECTS}
        if workers is not None:
            given["num_cpus"] = max(1, round(workers * options.num_cpus + 0.49))
    else:
        _require_answer(address)
        given["address"] = address
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    try:
        ray.init(**given)
    except Exception as error:  # of many kinds, as the address is wrong, or the version
        where = "on this machine" if address is None else f"at {address}"
        raise ConfigError(f"--executor ray: Ray {where} cannot be used: {reason(error)}") from error
    finally:  # Ray takes SIGTERM
        for number, handler in before.items():
            signal.signal(number, handler)
    return ray


def _require_answer(address: str) -> None:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if address == "auto":
        return
    try:
        if not host or not port.isdigit():
            raise ValueError("no HOST:PORT")
        socket.create_connection((host, int(port)), _ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--ray_address {address}: no Ray answers there ({reason(error)}): give HOST:PORT of a"
            " cluster's head, 'auto' on one of its nodes, or leave it out to run on this machine."
        ) from error
