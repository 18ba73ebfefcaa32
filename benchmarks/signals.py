"""Signals at random moments of a short fit, from the process's start to its exit.

Each fit trains behaviour cloning, evaluates it in a small environment and logs to MLflow's SQLite
store. What has to hold wherever the signal comes:

* the exit code is 128 + the signal's number, or 0 where the fit had finished;
* there is a checkpoint if a step was done;
* MLflow's run is not left ``RUNNING``;
* the process is gone within five seconds.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lit_offrl.common.finished import FINISHED
from lit_offrl.common.signals import SIGNALS
from lit_offrl.datasets.hdf5 import write_hdf5

LIMIT_SECONDS = 5.0
_PATIENCE_SECONDS = 60.0
_STEP = re.compile(rb"(\d+)/\d+ \[")  # of the progress bar
_STEPS = 1500


@dataclass(frozen=True)
class SignalResult:
    """What one kind of signal did to a number of fits.

    Attributes:
        name: of the signal.
        times: fits that got it.
        early: of these, before the program's first line, while Python itself starts.
        finished: of these, after the fit had finished.
        saved: of these, with a checkpoint.
        slowest: seconds until the slowest process was gone.
        violations: lines about what did not hold.
    """

    name: str
    times: int
    early: int
    finished: int
    saved: int
    slowest: float
    violations: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SignalledFit:
    """One fit that got a signal."""

    number: int
    delay: float
    code: int
    seconds: float
    heard: bool
    stepped: bool
    saved: bool
    finished: bool
    statuses: tuple[str, ...]

    def violations(self) -> Iterator[str]:
        """Say in a line each what does not hold."""
        at = f"{signal.Signals(self.number).name} after {self.delay:.2f} s"
        expected = self.code == 128 + self.number or (self.code == 0 and self.finished)
        if self.heard and not expected:
            yield f"{at}: exit code {self.code}"
        if self.stepped and not self.saved:
            yield f"{at}: a step was done, and there is no checkpoint"
        if "RUNNING" in self.statuses:
            yield f"{at}: MLflow's run is left RUNNING"
        if self.seconds > LIMIT_SECONDS:
            yield f"{at}: gone after {self.seconds:.1f} s"


def run_signals(*, times: int = 30, seed: int = 0, steps: int = _STEPS) -> Iterator[SignalResult]:
    """Send each signal at so many random times, spread over the life of a fit."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pendulum(folder / "pendulum.hdf5", seed)
        life = _life(folder, steps)
        for number in SIGNALS:
            fits = []
            for i in range(times):  # one in each of as many parts of the life
                delay = life * (i + draw.random()) / times
                fits.append(_fit(folder / f"{number.name}-{i}", number, delay, steps))
            yield SignalResult(
                name=number.name,
                times=times,
                early=sum(not fit.heard for fit in fits),
                finished=sum(fit.finished for fit in fits),
                saved=sum(fit.saved for fit in fits),
                slowest=max(fit.seconds for fit in fits),
                violations=[line for fit in fits for line in fit.violations()],
            )


def _words(run: Path, steps: int) -> list[str]:
    data = run.parent / "pendulum.hdf5"
    argv = [sys.executable, "-m", "lit_offrl", "fit", "--model", "BCModule"]
    argv += ["--data", "PyBulletDataModule", "--data.init_args.dataset", str(data)]
    argv += ["--model.init_args.hidden", "[32]", "--trainer.accelerator", "cpu"]
    argv += ["--trainer.max_steps", str(steps), "--trainer.val_check_interval", "500"]
    argv += ["--evaluation.episodes", "20", "--evaluation.num_envs", "4"]
    return [*argv, "--checkpoint.dirpath", str(run / "run")]


def _start(run: Path, steps: int) -> subprocess.Popen[bytes]:
    run.mkdir()
    if (store := run.parent / "cold" / "mlflow.db").is_file():  # its tables take seconds to make
        shutil.copy(store, run)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": _uri(run)}
    with (run / "log").open("wb") as log:
        return subprocess.Popen(
            _words(run, steps), cwd=run, env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def _life(folder: Path, steps: int) -> float:
    """Return the seconds that an undisturbed fit takes; the second one, from warm caches."""
    for name in ("cold", "warm"):
        begun = time.monotonic()
        process = _start(folder / name, steps)
        if process.wait() != 0:
            raise RuntimeError((folder / name / "log").read_text(errors="replace"))
        seconds = time.monotonic() - begun
    return seconds


def _fit(run: Path, number: int, delay: float, steps: int) -> SignalledFit:
    process = _start(run, steps)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(delay)
    heard = _catches(process.pid, signal.SIGTERM)
    process.send_signal(number)
    begun = time.monotonic()
    try:
        code = process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    seconds = time.monotonic() - begun
    log = (run / "log").read_bytes()
    return SignalledFit(
        number=number,
        delay=delay,
        code=code,
        seconds=seconds,
        heard=heard,
        stepped=any(int(step) > 0 for step in _STEP.findall(log)),
        saved=(run / "run" / "last.ckpt").is_file(),
        finished=(run / "run" / FINISHED).is_file(),
        statuses=_statuses(run),
    )


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal; of one that has ended, it had."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    caught = re.search(r"SigCgt:\s*([0-9a-f]+)", status)
    return caught is None or bool(int(caught[1], 16) >> (number - 1) & 1)


def _uri(run: Path) -> str:
    return f"sqlite:///{run / 'mlflow.db'}"


def _statuses(run: Path) -> tuple[str, ...]:
    """Return the status of each run in the store, which may not have been made yet."""
    if not (run / "mlflow.db").is_file():
        return ()
    with contextlib.closing(sqlite3.connect(run / "mlflow.db")) as store:
        try:
            return tuple(status for (status,) in store.execute("SELECT status FROM runs"))
        except sqlite3.OperationalError:  # no tables yet
            return ()


def write_pendulum(path: Path, seed: int) -> None:
    """Episodes of Pendulum's shape; what is learned from them does not matter."""
    draw = np.random.default_rng(seed)
    rows = 2000
    angle = draw.uniform(-np.pi, np.pi, rows).astype(np.float32)
    columns = {
        "observations": np.stack([np.cos(angle), np.sin(angle), angle], axis=1),
        "actions": draw.uniform(-2, 2, (rows, 1)).astype(np.float32),
        "rewards": -(angle**2),
        "terminals": np.zeros(rows, np.bool_),
        "timeouts": np.arange(rows) % 100 == 99,
    }
    write_hdf5(
        path,
        columns,
        {
            "env_id": "Pendulum-v1",
            "action_low": np.array([-2.0], np.float32),
            "action_high": np.array([2.0], np.float32),
            "max_episode_steps": 200,
        },
    )
