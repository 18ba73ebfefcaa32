"""Running an experiment: which jobs are ready, who takes them, what one is brought to its end by.

    Schedule ──ready jobs──▶ Executor ──Runner.run(job)──▶ "" or why it is not done
        ▲                                                 │
        └──────────────── ended ◀─────────────────────────┴──▶ Listener (the board, a search)

``Schedule.add`` may be called at any time, by a listener too: a search proposes trials that way.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live

from lit_offrl.common import signals
from lit_offrl.common.errors import LitOffRLError
from lit_offrl.common.finished import why_unfinished
from lit_offrl.experiments.job import CHANGES, Cell, Job, State, needed
from lit_offrl.experiments.process import HELD, STOPPED, Children, folder_lock

LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Choices:
    """What to do with jobs that cannot simply be resumed.

    Attributes:
        retry_failed: Try failed ones again.
        rerun_changed: Begin those anew whose inputs have changed.
    """

    retry_failed: bool = False
    rerun_changed: bool = False

    def leave(self, state: State) -> bool:
        """Whether nothing is to be done for a job in this state."""
        return (
            state in (State.DONE, State.PRUNED)
            or (state == State.FAILED and not self.retry_failed)
            or (state == State.CHANGED and not self.rerun_changed)
        )


class Listener(Protocol):
    """Hears what happens to jobs; ``begins`` and ``waits`` may be called in other threads."""

    def begins(self, job: Job, how: str) -> None:
        """A job begins; ``how``, if not "", says from where, or why again."""

    def waits(self, job: Job) -> None:
        """Another process works on a job, which is waited for."""

    def ends(self, job: Job, why: str) -> None:
        """A job has ended; ``why`` it is not done, or ""."""

    def table(self) -> RenderableType:
        """Return all that is known, to be shown."""


class Executor(Protocol):
    """Has jobs worked on, here or elsewhere, by a ``Runner``.

    Attributes:
        whole: Whether it takes a target with all that this needs, by ``run_through``, since
            nobody may be there to hand out what follows.
    """

    whole: bool

    @property
    def way_on(self) -> str:
        """How to go on after a stop, for a message."""

    def submit(self, jobs: Sequence[Job]) -> list[Job]:
        """Take those of the ready jobs for which there is room now, and return them."""

    def ended(self) -> list[tuple[Job, str]]:
        """Return the jobs that have ended since the last call, each with why it is not done."""

    def idle(self) -> bool:
        """Whether nothing is left to wait for."""

    def stop(self) -> str:
        """Stop gracefully, and begin nothing more; return what to say."""

    def kill(self) -> None:
        """Stop at once."""


class Schedule:
    """Which jobs are yet to be begun, and which of them are ready.

    Args:
        whole: Whether executors take targets with all that these need.
    """

    def __init__(self, whole: bool = False) -> None:
        self._whole = whole
        self._waiting: dict[str, Job] = {}
        self._running: dict[str, Job] = {}
        self._failed: dict[str, str] = {}  # why

    def add(self, cells: Iterable[Cell]) -> None:
        """Add what is to be done for cells: their targets, and what these depend on."""
        for cell in cells:
            jobs = needed(cell.target)
            for job in jobs[-1:] if self._whole else jobs:
                if job.key not in self._running:
                    self._waiting.setdefault(job.key, job)

    @property
    def jobs(self) -> list[Job]:
        """The jobs that have not begun, each after those that it depends on."""
        return list(self._waiting.values())

    def ready(self) -> list[Job]:
        """Return the jobs all of whose dependencies are done."""
        open_keys = {*self._waiting, *self._running, *self._failed}
        return [
            job
            for job in self._waiting.values()
            if self._whole or not any(each.key in open_keys for each in job.depends_on)
        ]

    def begun(self, jobs: Iterable[Job]) -> None:
        """Note that an executor has taken jobs."""
        for job in jobs:
            self._running[job.key] = self._waiting.pop(job.key)

    def end(self, job: Job, why: str) -> None:
        """Note that a job has ended, and why it is not done, or ""."""
        self._running.pop(job.key, None)
        if why:
            self._failed[job.key] = why

    def blocked(self) -> Iterator[tuple[Job, str]]:
        """Drop the jobs that another's failure keeps from beginning; yield each with the reason."""
        for job in [] if self._whole else self.jobs:
            source = next((each for each in job.depends_on if each.key in self._failed), None)
            if source is not None:
                why = self._failed[source.key]  # a cell's training is called as its evaluation
                why = why if source.name == job.name else f"{source.name} is not done"
                del self._waiting[job.key]
                self._failed[job.key] = why
                yield job, why


# ---- one job -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runner:
    """Brings jobs to their ends, each in a process of its own under its folder's lock.

    Attributes:
        choices: What to do with failed and changed jobs.
        children: Keeps the processes.
        environment: Variables of the processes beside this one's.
        listener: Hears how jobs begin.
    """

    choices: Choices
    children: Children
    environment: Mapping[str, str] = field(default_factory=dict)
    listener: Listener | None = None

    def run(self, job: Job) -> str:
        """Bring a job to its end from wherever it is; what it depends on is done.

        Returns:
            "" once it is done, else one line that says why it is not.
        """
        waited = False
        try:
            while not self.children.stopping:
                with folder_lock(job.folder) as lock:
                    if lock is not None:
                        return self._run_alone(job, lock)
                if job.of_cell:
                    return HELD
                if not waited and self.listener is not None:
                    self.listener.waits(job)
                waited = True
                time.sleep(LOOK_SECONDS)
        except (LitOffRLError, OSError) as error:
            return " ".join(str(error).split())
        return HELD if waited else STOPPED

    def run_through(self, job: Job) -> str:
        """Bring a job to its end, and before it all that it needs; see ``run``."""
        try:
            jobs = needed(job)
        except LitOffRLError as error:
            return " ".join(str(error).split())
        for each in jobs:
            if why := self.run(each):
                return why if each.name == job.name else f"{each.name}: {why}"
        return ""

    def _run_alone(self, job: Job, lock: int) -> str:
        state = job.state()
        if self.choices.leave(state):
            if state in (State.DONE, State.PRUNED):
                return "" if state == State.DONE else str(state)
            return job.reason() if state == State.FAILED else f"{state}: {job.change()}"
        how, stored = "", job.stored()
        if state == State.CHANGED:
            how, stored = f"again, since {job.change()}{job.set_aside()}", None
            with (job.folder / CHANGES).open("a") as file:
                file.write(f"{how}\n")
        job.failure.unlink(missing_ok=True)
        id = job.begin() if stored is None else stored["id"]
        # Of a folder without inputs nobody knows what its checkpoint was made from.
        resume = stored is not None and job.is_fit and job.checkpoint.is_file()
        if resume:
            how = f"goes on from {job.progress() or 'its checkpoint'}"
        elif job.log.exists():  # killed before there was anything to resume
            job.forget(id)
            if job.is_fit:
                shutil.rmtree(job.run, ignore_errors=True)
        if self.listener is not None:
            self.listener.begins(job, how)
        job.times.begin()
        try:
            why = self._execute(job, job.argv(id, anew=not resume), lock)
        finally:
            job.times.end()
        if not why:
            job.finish()
        return str(State.PRUNED) if why and job.state() == State.PRUNED else why

    def _execute(self, job: Job, argv: list[str], lock: int) -> str:
        """Run a job's command to its end, and say why it has not succeeded, or ""."""
        environment = {"OMP_NUM_THREADS": "1", **os.environ, **self.environment}
        stops = partial(job.watch, job) if job.watch is not None else None
        code = self.children.run([*job.program, *argv], job.log, environment, lock, stops)
        if code == 0:  # which does not tell a whole training from one that was cut short
            return why_unfinished(job.run) if job.is_fit else ""
        if code is None or self.children.stopping or code in signals.EXIT_CODES:
            return STOPPED
        if code < 0:  # no known mistake: the same command goes on
            return f"{job.verb} was killed by {signal.Signals(-code).name}"
        return job.fail(code)


# ---- all of them ---------------------------------------------------------------------------------


def follow(
    schedule: Schedule,
    begin: Callable[[], Executor],
    listener: Listener,
    console: Console,
    command: str,
) -> int:
    """Hand out jobs and show the progress until all have ended; return 0, or 128 + a signal.

    Args:
        schedule: What is to be done.
        begin: Makes the executor, where signals are heard already.
        listener: Hears of jobs' ends, and is shown.
        console: Where it is shown.
        command: Begins messages.

    Raises:
        LitOffRLError: The executor cannot work here, or can never take a job.
    """
    moving = console.is_terminal
    live = Live(console=console, auto_refresh=False)
    with signals.collected() as received, live if moving else nullcontext():
        executor = begin()
        answered = 0
        while True:
            if not received and (ready := schedule.ready()):
                schedule.begun(executor.submit(ready))
            for job, why in executor.ended():
                schedule.end(job, why)
                listener.ends(job, why)
            for job, why in schedule.blocked():
                listener.ends(job, why)
            if moving:
                live.update(listener.table(), refresh=True)
            if executor.idle() and (received or not schedule.jobs):
                break
            if len(received) > answered:
                if answered:
                    executor.kill()
                else:
                    print(f"{command}: {executor.stop()}", file=sys.stderr)
                answered = len(received)
            time.sleep(LOOK_SECONDS)
    if not moving:
        console.print(listener.table())
    if received:
        name = signal.Signals(received[0]).name
        print(f"{command}: stopped by {name}; {executor.way_on}.", file=sys.stderr)
        return 128 + received[0]
    return 0
