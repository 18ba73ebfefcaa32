"""The progress of an experiment: a moving table on a terminal, a line an event elsewhere."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lit_offrl.experiments.job import Cell, Job, State, lineage
from lit_offrl.experiments.process import HELD


class Board:
    """What is known of cells, and how it is shown; hears what happens to their jobs.

    Args:
        cells: The lines of the experiment.
        console: Where lines about events go.
    """

    def __init__(self, cells: Sequence[Cell], console: Console) -> None:
        self.cells, self._console = list(cells), console
        self._running: dict[str, float] = {}  # since when, by the job's key
        self._said: dict[str, str] = {}  # why a job is not done, by its key
        self._shown: dict[str, float | str] = {}  # a score or a state, by the cell's name
        self._last = ""
        self._lock = threading.Lock()
        self.look()

    def add(self, cells: Sequence[Cell]) -> None:
        """Show further cells."""
        with self._lock:
            self.cells += cells
        self.look()

    def look(self, job: Job | None = None) -> None:
        """Read the states of all cells anew, or of those that a job is for."""
        for cell in self.cells:
            if job is None or any(each.key == job.key for each in lineage(cell.target)):
                self._shown[cell.name] = self._look(cell)

    def begins(self, job: Job, how: str) -> None:
        """Show that a job runs."""
        with self._lock:
            self._running[job.key] = time.monotonic()
            self._said.pop(job.key, None)
        self._say(f"{job.name}: {how or f'{job.verb} begins'}", always=bool(how))

    def waits(self, job: Job) -> None:
        """Say that another process works on a job."""
        self._say(f"{job.name}: waits for another process that works on it", always=True)

    def ends(self, job: Job, why: str) -> None:
        """Show that a job no longer runs, and why it is not done."""
        with self._lock:
            self._running.pop(job.key, None)
            if why:
                self._said[job.key] = why
        self.look(job)
        score = None if job.is_fit else job.score()
        done = "done" if score is None else f"done, score {score:.1f}"
        line = f"{job.name}: {why or f'{done}, {duration(job.times.seconds())}'}"
        if line != self._last:  # a cell's evaluation is not begun for the reason of its training
            self._say(line)
        self._last = line

    def reason(self, cell: Cell) -> str:
        """Say why a cell is not done, as far as its jobs have said anything."""
        said = [(job, self._said[job.key]) for job in cell.jobs if job.key in self._said]
        if not said:
            return cell.reason()
        job, why = said[0]
        return why if job.name == cell.name else f"{job.name}: {why}"

    def _look(self, cell: Cell) -> float | str:
        state, score = cell.state(), cell.target.score()
        if state == State.DONE and not cell.target.is_fit and score is not None:
            return score
        if any(self._said.get(job.key) == HELD for job in cell.jobs):
            return "elsewhere"
        return str(state)

    def _say(self, line: str, always: bool = False) -> None:
        if always or not self._console.is_terminal:
            self._console.print(escape(f"{time.strftime('%H:%M:%S')} {line}"), soft_wrap=True)

    def _now(self, cell: Cell) -> float | str:
        """Return a cell's score, or how far it is, in a word or two."""
        for job in cell.jobs:
            if job.key in self._running:
                how = job.progress() or "starts" if job.is_fit else "evaluates"
                how = how if job.name == cell.name else f"{job.name} {how}"
                return f"{how}, {duration(time.monotonic() - self._running[job.key])}"
        return self._shown[cell.name]

    def table(self) -> Group:
        """Return a row for all that is the same but the seed, a column a seed; a line below."""
        with self._lock:
            shown = {cell.name: self._now(cell) for cell in self.cells}
        rows: dict[tuple[str, ...], dict[str, float | str]] = {}
        for cell in self.cells:
            row = tuple(text for heading, text in cell.labels.items() if heading != "seed")
            rows.setdefault(row, {})[cell.labels["seed"]] = shown[cell.name]
        labels = self.cells[0].labels if self.cells else ()
        headings = [heading for heading in labels if heading != "seed"]
        done = sum(each == State.DONE or isinstance(each, float) for each in shown.values())
        line = f"{done} of {len(shown)} cells done; numbers are mean scores"
        return Group(_table(headings, rows, "{:.1f}".format), Text(line))


def times_table(cells: Sequence[Cell]) -> Table | None:
    """Return the wall time of each training, with the methods that it serves; None without any."""
    times: dict[tuple[str, ...], dict[str, float]] = {}
    users: dict[tuple[str, ...], dict[str, None]] = {}
    for cell in cells:
        labels = dict(cell.labels)
        seed, dataset = labels.pop("seed"), labels.pop("dataset", "")
        user = "; ".join(labels.values())
        for job in cell.jobs:
            if job.is_fit and (seconds := job.times.seconds()):
                training = ("fit", user) if job.of_cell else (job.name, job.folder.name)
                times.setdefault((dataset, *training), {})[seed] = seconds
                users.setdefault((dataset, *training), {})[user] = None
    if not times:
        return None
    rows = {(*key[:2], ", ".join(users[key])): found for key, found in times.items()}
    title = "wall time of trainings, over all parts of each"
    return _table(["dataset", "training", "of"], rows, duration, title)


def _table(
    headings: Sequence[str],
    rows: Mapping[tuple[str, ...], Mapping[str, float | str]],
    show: Callable[[float], str],
    title: str | None = None,
) -> Table:
    """Return a table with a column a seed, and the mean of the numbers of each row."""
    seeds = sorted({seed for found in rows.values() for seed in found}, key=int)
    table = Table(*headings, title=title)
    for heading in (*(f"seed {seed}" for seed in seeds), "mean"):
        table.add_column(heading, justify="right")
    for row, found in rows.items():
        numbers = [each for each in found.values() if isinstance(each, float)]
        mean = show(statistics.fmean(numbers)) if numbers else ""
        mean += f" ({len(numbers)})" if 0 < len(numbers) < len(found) else ""
        given = [found.get(seed, "") for seed in seeds]
        texts = [show(each) if isinstance(each, float) else each for each in given]
        table.add_row(*map(escape, (*row, *texts, mean)))
    return table


def duration(seconds: float) -> str:
    """Return ``1:02:03`` for 3,723 s, and ``12 s`` below a minute."""
    return f"{seconds:.0f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
