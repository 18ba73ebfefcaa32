"""Jobs as Ray actors: in processes of this machine, or of a cluster that runs already."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_offrl.common import signals
from lit_offrl.common.errors import ConfigError, install, reason
from lit_offrl.common.quiet import say
from lit_offrl.experiments.config import FileReader
from lit_offrl.experiments.executors.transfer import Transfer
from lit_offrl.experiments.job import Job, State
from lit_offrl.experiments.process import HELD, STOPPED, Children
from lit_offrl.experiments.run import LOOK_SECONDS, Choices, Listener, work

GB = 2**30
_KEYS = ("num_cpus", "num_gpus", "memory_gb", "gpu_memory_gb", "retries", "worker_root")
_PASSED = ("LIT_OFFRL_", "MLFLOW_", "OMP_NUM_THREADS")  # variables that a cluster's nodes lack
_ANSWER_SECONDS = 5.0
_LONGEST_PATH = 40  # letters of a folder in which Ray's sockets have names that the kernel takes
_OBJECTS = 80 * 2**20  # bytes for Ray's objects, of which there are hardly any; its least
_TETHER = ("-m", "lit_offrl.experiments.executors.tether")


@dataclass(frozen=True)
class RayOptions:
    """The key ``ray`` of an experiment's file, and ``--ray_address``.

    Attributes:
        num_cpus: CPU cores of a job, or a fraction of one.
        num_gpus: GPUs of a job, or a fraction of one, which jobs then share.
        memory_gb: Memory that Ray counts for a job, in GB; a job's own ``needs`` win.
        gpu_memory_gb: Memory of one GPU, in GB, of which ``needs: {gpu_memory_gb: …}`` takes a
            fraction.
        retries: How often a job goes on elsewhere after its worker was killed.
        worker_root: Where hosts that share no folder keep the jobs' files, which then pass through
            MLflow's artifacts; None where all hosts see the experiment's folder.
        address: ``HOST:PORT`` of a cluster's head, ``auto`` or ``ray://HOST:PORT``; None begins Ray
            on this machine, for as long as the command runs.
    """

    num_cpus: float = 1
    num_gpus: float = 0
    memory_gb: float = 0
    gpu_memory_gb: float | None = None
    retries: int = 3
    worker_root: str | None = None
    address: str | None = None


def read_ray(reader: FileReader, given: Any) -> dict[str, Any]:
    """Read the key ``ray``: arguments of ``RayOptions``.

    Raises:
        ConfigError: One line that names the file and the key.
    """
    given = {} if given is None else given
    reader.known(given, "ray", _KEYS)
    for name, value in given.items():
        if name == "worker_root":
            if not Path(reader.text("ray.worker_root", value)).is_absolute():
                raise reader.wrong("ray.worker_root", value, "an absolute path")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise reader.wrong(f"ray.{name}", value, "a number of at least 0")
        elif name == "retries" and not isinstance(value, int):
            raise reader.wrong("ray.retries", value, "a whole number")
    return dict(given)


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
            folder: The working folder of the command, where this host has it.
            transfer: How files come here and go; None where the folder is shared.
            retried: Whether a process of a former worker may live on for a moment.
        """
        with contextlib.suppress(OSError):
            os.chdir(folder)
        python, *rest = job.program
        python = python if Path(python).is_file() else sys.executable
        job = replace(job, program=(sys.executable, *_TETHER, str(os.getpid()), python, *rest))
        if transfer is not None:
            job = transfer.on_worker(job)
            transfer.fetch(job)
        try:
            while True:
                why = work(job, choices, self._children, environment)
                if why != HELD or not retried or self._children.stopping:
                    return why
                time.sleep(LOOK_SECONDS)
        finally:
            if transfer is not None:
                transfer.upload(job.folder)


@dataclass
class _Attempt:
    job: Job
    actor: Any
    resources: dict[str, float]
    where: Any  # a reference to Worker.where's answer; None once it is known
    result: Any
    number: int


class RayExecutor:
    """Has each job worked on by an actor of its own, which Ray places where there is room.

    Args:
        choices: What to do with failed and changed jobs.
        listener: Hears when jobs begin.
        options: Resources, retries and the cluster.
        workers: Jobs at a time at most; None for as many as the cluster has room for.
        transfer: How files pass where there is no shared folder.

    Raises:
        ConfigError: Ray is not installed or does not answer, or has no room for any job.
    """

    whole = False
    way_on = "the same command goes on"

    def __init__(
        self,
        choices: Choices,
        listener: Listener,
        *,
        options: RayOptions,
        workers: int | None = None,
        transfer: Transfer | None = None,
    ) -> None:
        self._ray = _start(options, workers)
        self._actors = self._ray.remote(Worker)
        self._choices, self._listener, self._options = choices, listener, options
        self._transfer = transfer
        self._total = self._ray.cluster_resources()
        need = {"CPU": options.num_cpus, "GPU": options.num_gpus}
        room = min((self._total.get(k, 0) / n for k, n in need.items() if n), default=1024)
        if int(room) < 1 and (workers is None or options.address is None):
            raise ConfigError(
                f"ray: a job takes {options.num_cpus:g} CPUs and {options.num_gpus:g} GPUs, and Ray"
                f" has {self._total.get('CPU', 0):g} and {self._total.get('GPU', 0):g}: lower"
                " num_cpus or num_gpus; of a cluster that grows, give --workers."
            )
        self._room = workers or int(room)
        self._running: list[_Attempt] = []
        self._over: list[tuple[Job, str]] = []
        self._spare: list[tuple[dict[str, float], Any]] = []  # workers whose jobs are done
        self._stopping = False
        passed = {k: v for k, v in os.environ.items() if k.startswith(_PASSED)}
        self._environment = {"OMP_NUM_THREADS": "1", **passed}

    def submit(self, jobs: Sequence[Job]) -> list[Job]:
        """Take as many jobs as there is room for.

        Raises:
            ConfigError: A job needs more than this machine has.
        """
        taken = [] if self._stopping else list(jobs[: self._room - len(self._running)])
        for job in taken:
            self._begin(job, 0, self._choices)
        return taken

    def _begin(self, job: Job, number: int, choices: Choices) -> None:
        if self._transfer is not None and number == 0:
            self._transfer.send(job)
        resources = self._resources(job)
        spare = next((each for each in self._spare if each[0] == resources), None)
        if spare is not None:
            self._spare.remove(spare)
            actor = spare[1]
        else:
            while self._spare:  # they hold what this one may need
                self._ray.kill(self._spare.pop()[1])
            actor = self._actors.options(max_concurrency=2, **resources).remote()
        where = actor.where.remote()
        result = actor.work.remote(
            job, choices, self._environment, os.getcwd(), self._transfer, number > 0
        )
        self._running.append(_Attempt(job, actor, resources, where, result, number))

    def _resources(self, job: Job) -> dict[str, float]:
        options, gpus = self._options, self._options.num_gpus
        if share := job.needs.get("gpu_memory_gb"):
            if options.gpu_memory_gb is None:
                raise ConfigError(
                    f"{job.name}: needs gpu_memory_gb: say under 'ray:' how much a GPU has, as"
                    " gpu_memory_gb: 80."
                )
            gpus = min(1.0, share / options.gpu_memory_gb)
        memory = job.needs.get("memory_gb", options.memory_gb) * GB
        asked = {"CPU": options.num_cpus, "GPU": gpus, "memory": memory}
        for name, amount in asked.items():
            if options.address is None and amount > self._total.get(name, 0):
                raise ConfigError(
                    f"{job.name}: takes {name} {amount:g}, and this machine has"
                    f" {self._total.get(name, 0):g}."
                )
        return {"num_cpus": options.num_cpus, "num_gpus": gpus, "memory": int(memory)}

    def ended(self) -> list[tuple[Job, str]]:
        """Look at the actors; begin those anew whose worker was killed."""
        references = [r for each in self._running for r in (each.where, each.result) if r]
        ready: list[Any] = []
        if references:
            ready, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        for attempt in list(self._running):
            if attempt.where in ready:
                with contextlib.suppress(self._ray.exceptions.RayError):
                    again = f"; attempt {attempt.number + 1}" if attempt.number else ""
                    self._listener.begins(attempt.job, self._ray.get(attempt.where) + again)
                attempt.where = None
            if attempt.result in ready:
                self._running.remove(attempt)
                self._end(attempt)
        over, self._over = self._over, []
        return over

    def _end(self, attempt: _Attempt) -> None:
        job, killed = attempt.job, False
        try:
            why = self._ray.get(attempt.result)
        except self._ray.exceptions.RayActorError:
            why, killed = "its worker was killed", True
        except self._ray.exceptions.RayError as error:  # a fault in the worker
            why = f"the worker failed: {(str(error).strip().splitlines() or ['?'])[-1]}"
        else:
            self._spare.append((attempt.resources, attempt.actor))
        if self._transfer is not None:
            self._transfer.fetch(job)
        if why not in ("", HELD, STOPPED) and not killed:  # the fit itself may have been killed
            killed = job.state() == State.CUT
        if self._stopping or not killed or attempt.number >= self._options.retries:
            self._over.append((job, STOPPED if killed and self._stopping else why))
            return
        say(f"{job.name}: {why}: goes on in another.")
        # Begun anew or tried again it was already: from here on there is only going on.
        self._begin(job, attempt.number + 1, Choices())

    def idle(self) -> bool:
        """Whether nothing is left to wait for."""
        return not self._running and not self._over

    def stop(self) -> str:
        """Ask every worker to have its fit save; return what to say."""
        self._send(signal.SIGTERM)
        return "stopping: fits save and leave; a second signal kills them"

    def kill(self) -> None:
        """Kill every job's process."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        self._stopping = True
        for attempt in list(self._running):
            if attempt.where is None:
                attempt.actor.stop.remote(number)
            else:  # it waits for room
                self._ray.kill(attempt.actor)


# ---- Ray itself ----------------------------------------------------------------------------------


def _start(options: RayOptions, workers: int | None) -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if options.address is None:
        # Despite its name: every socket is bound to 127.0.0.1.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ.setdefault("RAY_worker_niceness", "0")  # as of any other fit, not 15
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"--executor ray needs Ray: run {install('ray')}.") from error
    if ray.is_initialized():
        ray.shutdown()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    try:
        if options.address is None:
            folder = _folder()
            cpus = None if workers is None else max(1, round(workers * options.num_cpus + 0.49))
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=_OBJECTS,
                _temp_dir=folder,
                **quiet,
            )
        else:
            _require_answer(options.address)
            ray.init(address=options.address, **quiet)
    except ConfigError:
        raise
    except Exception as error:  # of many kinds, as the address is wrong, or the version
        where = "on this machine" if options.address is None else f"at {options.address}"
        raise ConfigError(f"--executor ray: Ray {where} cannot be used: {reason(error)}") from error
    finally:  # Ray takes SIGTERM
        for number, handler in before.items():
            signal.signal(number, handler)
    return ray


def _folder() -> str:
    root = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="ray-", dir=root if len(root) < _LONGEST_PATH else "/tmp")

    def close() -> None:
        import ray

        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(close)
    return folder


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
