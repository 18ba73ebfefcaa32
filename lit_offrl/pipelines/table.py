"""The progress of a pipeline, and its end: how long each step took, and what was scored."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_offrl.jobs.children import Children
from lit_offrl.pipelines.folders import EvaluationFolder
from lit_offrl.pipelines.steps import State, StepFolder
from lit_offrl.pipelines.work import Listener, work_through


class Board(Listener):
    """What is known of the steps, and how it is shown.

    Args:
        steps: all of them.
        console: where lines go.
    """

    def __init__(self, steps: Sequence[StepFolder], console: Console) -> None:
        self._steps, self._console = list(steps), console
        self._now: StepFolder | None = None
        self._begun = 0.0
        self._fixed: dict[str, str] = {}  # what is no longer read from files
        self._lock = threading.Lock()
        self.reasons: dict[str, str] = {}
        for step in steps:
            self._look(step)

    def begins(self, step: StepFolder, words: str) -> None:
        """A step is worked on from now."""
        with self._lock:
            self._now, self._begun = step, time.time()
        self._say(f"{step.name}: {words or 'begins'}", always=bool(words))

    def waits(self, step: StepFolder) -> None:
        """Another process works on a step."""
        self._fixed[step.name] = "waits"
        self._say(f"{step.name}: waits for another process that works on it", always=True)

    def ends(self, step: StepFolder, why: str) -> None:
        """A step is no longer worked on; ``why`` it is not done, or ""."""
        with self._lock:
            self._now = None
        if why:
            self.reasons[step.name] = why
        self._look(step)
        # what the steps after it are, may have changed with it
        for later in self._steps[self._steps.index(step) + 1 :]:
            self._look(later)
        words = f"{self._fixed[step.name]}, {duration(step.parts.seconds())}"
        self._say(f"{step.name}: {why or words}")

    def _look(self, step: StepFolder) -> None:
        self._fixed[step.name] = str(step.state())

    def _say(self, line: str, always: bool = False) -> None:
        if always or not self._console.is_terminal:
            self._console.print(escape(f"{time.strftime('%H:%M:%S')} {line}"), soft_wrap=True)

    def table(self) -> Table:
        """A row for each step: how far it is, how long it took over all parts, its score."""
        table = Table()
        for heading in ("step", "state"):
            table.add_column(heading)
        for heading in ("wall time", "parts", "score"):
            table.add_column(heading, justify="right")
        with self._lock:
            now, begun = self._now, self._begun
        for step in self._steps:
            state, seconds = self._fixed[step.name], step.parts.seconds()
            score = ""
            if step is now:
                state = step.steps() or ("evaluates" if step.verb == "evaluate" else "starts")
                seconds = sum(b - a for a, b in step.parts.closed()[:-1]) + time.time() - begun
            elif isinstance(step, EvaluationFolder) and state == State.DONE:
                value = step.score()
                score = "" if value is None else f"{value:.1f}"
            parts = len(step.parts)
            cells = (step.name, state, duration(seconds) if parts else "", str(parts or ""), score)
            table.add_row(*map(escape, cells))
        return table


class Runner:
    """Works through steps in a thread that waits for processes.

    Args:
        steps: in their order.
        board: is told what happens.
    """

    way_on = "the same command goes on"

    def __init__(self, steps: Sequence[StepFolder], board: Board) -> None:
        self._children = Children()
        self._pool = ThreadPoolExecutor(1)
        self._future = self._pool.submit(work_through, steps, self._children, board)

    def done(self) -> bool:
        """Whether nothing is left to wait for.

        Raises:
            Exception: a fault of this library's.
        """
        if not self._future.done():
            return False
        self._future.result()
        return True

    def stop(self) -> str:
        """Ask the process to save and leave; return what to say."""
        self._children.stop()
        return "stopping: the fit saves and leaves; a second signal kills it"

    def kill(self) -> None:
        """End the process at once."""
        import signal

        self._children.stop(signal.SIGKILL)


def duration(seconds: float) -> str:
    """Return ``1:02:03`` for 3,723 s, and ``12 s`` below a minute."""
    return f"{seconds:.0f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
