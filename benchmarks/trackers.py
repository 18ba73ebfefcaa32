"""A fit's speed while its MLflow store works, stalls, comes back and dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.acd import Plan, plan
from lit_offrl.callbacks import Curves, FiniteGuard, GracefulStop, MLflowRun
from lit_offrl.cli.main import TRAINER_DEFAULTS
from lit_offrl.common.quiet import quiet

LEAST = 0.95
"""Of the speed without a logger, that a fit has to keep by the clock, whatever a store does."""
MOST = 0.01
"""Of a fit's time, that logging may take, of its thread and of the logger's own together."""

_START_SECONDS = 120.0  # of MLflow's server
_LOG_EVERY = 10  # steps
_AWAY = "0.2"  # seconds that each request to a server far away waits
_THREADS = ("mlflow", "system metrics")  # the logger's own


@dataclass(frozen=True)
class TrackerResult:
    """One fit, between two without a logger.

    Attributes:
        store: what it logs to, and what happens to that.
        steps_per_second: of the fit.
        without: of the two without a logger, on average.
        ratio: of those.
        cpu_ratio: the same ratio by the training thread's processor time, which
            other work on the machine moves less.
        logging_share: of the training thread's processor time, what logging takes.
        threads_share: processor time of the logger's own threads, which send and sample, for each
            second of the fit. They work every few seconds by the clock, whatever else runs.
        end_seconds: from the last step to the end of the run.
        unsent: whether something is left for ``lit-offrl mlflow sync``.
    """

    store: str
    steps_per_second: float
    without: float
    ratio: float
    cpu_ratio: float
    logging_share: float
    threads_share: float
    end_seconds: float
    unsent: bool

    @property
    def share(self) -> float:
        """What logging takes of a fit's time, were all its threads to share one core."""
        return self.logging_share + self.threads_share


class _Timed(Callback):
    """Trains for some seconds; at the first step, and half-way, something happens."""

    sees_calls = True

    def __init__(self, seconds: float, first: Callable[[], None], half: Callable[[], None]) -> None:
        self.seconds = seconds
        self.first = first
        self.half: Callable[[], None] | None = half
        self.begun = self.taken = 0.0
        self.begun_cpu = self.cpu = 0.0
        self.begun_threads = self.threads = 0.0
        self.steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the first thing happen."""
        self.first()
        self.begun, self.begun_cpu = time.perf_counter(), time.thread_time()
        self.begun_threads = threads_seconds()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Look at the clock."""
        self.taken = time.perf_counter() - self.begun
        self.cpu = time.thread_time() - self.begun_cpu
        self.threads = threads_seconds() - self.begun_threads
        self.steps = trainer.global_step
        if self.half is not None and self.taken > self.seconds / 2:
            self.half()
            self.half = None
        trainer.should_stop = self.taken > self.seconds


class _Server:
    """MLflow's own, in a process that can be held and killed, and its address far ``away``."""

    def __init__(self, process: subprocess.Popen[bytes], uri: str, away: str) -> None:
        self.process = process
        self.uri, self.away = uri, away

    def signal(self, number: int) -> Callable[[], None]:
        """What sends a signal to it and all its workers."""
        return lambda: os.killpg(self.process.pid, number)


def run_trackers(
    *,
    seconds: float = 20.0,
    seed: int = 0,
    only: Sequence[str] = (),
    plans: Callable[..., Plan] = plan,
    serve: Callable[[Path], Any] | None = None,
) -> Iterator[TrackerResult]:
    """Fit IQL by its config to each store, in one process and one after the other.

    Args:
        seconds: of training, each.
        seed: of weights and order.
        only: names of stores, as often as each is to be measured; all of them, once, by default.
        plans: what makes a method's plan.
        serve: what runs a server in a folder; MLflow's own by default.
    """
    quiet()
    method = plans("iql")

    def nothing() -> None:
        pass

    with tempfile.TemporaryDirectory() as name, (serve or _serving)(Path(name)) as server:
        folder = Path(name)
        stop, go = server.signal(signal.SIGSTOP), server.signal(signal.SIGCONT)
        kill = server.signal(signal.SIGKILL)
        cases: dict[str, tuple[str, Callable[[], None], Callable[[], None]]] = {
            "SQLite file": (f"sqlite:///{folder / 'own.db'}", nothing, nothing),
            "server": (server.uri, nothing, nothing),
            "server 200 ms away": (server.away, nothing, nothing),
            "server, stalled for the first half": (server.uri, stop, go),
            "server, stalled until the end": (server.uri, stop, nothing),
            "server, dead from the first step": (server.uri, kill, nothing),
        }
        before = _fit(method, seed, None, _Timed(seconds, nothing, nothing))
        for store in only or cases:
            uri, first, half = cases[store]
            away = uri == server.away  # with all that can be logged beside
            run = MLflowRun(uri, run_name="benchmark", log_system_metrics=away)
            run.keep_in(folder)
            run.log_description("A benchmark.")
            fit = _fit(method, seed, run, _Timed(seconds, first, half))
            left = list(folder.glob("mlflow-unsent-*"))
            if "until the end" in store:
                go()
            for file in left:
                file.unlink()
            after = _fit(method, seed, None, _Timed(seconds, nothing, nothing))
            without, without_cpu = (before.speed + after.speed) / 2, (before.cpu + after.cpu) / 2
            before = after
            yield TrackerResult(
                store=store,
                steps_per_second=fit.speed,
                without=without,
                ratio=fit.speed / without,
                cpu_ratio=fit.cpu / without_cpu,
                logging_share=fit.logging,
                threads_share=fit.threads,
                end_seconds=fit.end,
                unsent=bool(left),
            )


class _Fit(NamedTuple):
    """Steps a second, by the clock and the thread's processor time; shares; the end."""

    speed: float
    cpu: float
    logging: float
    threads: float
    end: float


def threads_seconds() -> float:
    """Return the processor time of the logger's threads that there are, in seconds."""
    clocks = [
        time.pthread_getcpuclockid(each.ident)
        for each in threading.enumerate()
        if each.name in _THREADS and each.ident is not None
    ]
    return sum(map(time.clock_gettime, clocks))


def _fit(method: Plan, seed: int, run: MLflowRun | None, timed: _Timed) -> _Fit:
    logging = 0.0
    if run is not None:
        log = run.log_metrics

        def log_metrics(*args: Any, **kwargs: Any) -> None:
            nonlocal logging
            begun = time.thread_time()
            log(*args, **kwargs)
            logging += time.thread_time() - begun

        run.log_metrics = log_metrics  # type: ignore[method-assign]
    data = method.data()
    trainer = Trainer(
        **(TRAINER_DEFAULTS | {"max_steps": 10**9, "log_every_n_steps": _LOG_EVERY}),
        accelerator="cpu",
        devices=1,
        callbacks=[FiniteGuard(), Curves(), GracefulStop(), timed],
        logger=run if run is not None else False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method.make(data, seed), data)
    ended = time.perf_counter() - timed.begun - timed.taken
    return _Fit(
        speed=timed.steps / timed.taken,
        cpu=timed.steps / timed.cpu,
        logging=logging / timed.cpu,
        threads=timed.threads / timed.taken,
        end=ended,
    )


@contextmanager
def _serving(folder: Path) -> Iterator[_Server]:
    """Run MLflow's server in a process group of its own."""
    port, far = _free_port(), _free_port()
    uri, away = (f"http://127.0.0.1:{number}" for number in (port, far))
    proxy = [sys.executable, str(Path(__file__).with_name("delayed.py")), str(far), uri, _AWAY]
    store = f"sqlite:///{folder / 'server.db'}"
    argv = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    argv += ["--artifacts-destination", str(folder / "files"), "--port", str(port)]
    process = subprocess.Popen(
        [*argv, "--workers", "1"],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # what no fit needs
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    delayed = subprocess.Popen(proxy)
    try:
        _wait_for(uri, process)
        yield _Server(process, uri, away)
    finally:
        delayed.kill()
        delayed.wait()
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(uri: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=5).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise
            time.sleep(0.5)
        else:
            return
