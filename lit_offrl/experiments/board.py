"""The progress of an experiment: a moving table on a terminal, a line an event elsewhere."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
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
        self._texts: dict[str, str] = {}  # what is no longer read from files, by the cell's name
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
                self._texts[cell.name] = self._text(cell)

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

    def _text(self, cell: Cell) -> str:
        state, score = cell.state(), cell.target.score()
        if state == State.DONE and not cell.target.is_fit and score is not None:
            return f"{score:.1f}"
        if any(self._said.get(job.key) == HELD for job in cell.jobs):
            return "elsewhere"
        return str(state)

    def _say(self, line: str, always: bool = False) -> None:
        if always or not self._console.is_terminal:
            self._console.print(escape(f"{time.strftime('%H:%M:%S')} {line}"), soft_wrap=True)

    def _now(self, cell: Cell) -> str:
        """Return a cell's score, or how far it is, in a word or two."""
        for job in cell.jobs:
            if job.key in self._running:
                how = job.progress() or "starts" if job.is_fit else "evaluates"
                how = how if job.name == cell.name else f"{job.name} {how}"
                return f"{how}, {duration(time.monotonic() - self._running[job.key])}"
        return self._texts[cell.name]

    def table(self) -> Group:
        """Return a row for all that is the same but the seed, a column a seed; a line below."""
        with self._lock:
            texts = {cell.name: self._now(cell) for cell in self.cells}
        rows: dict[tuple[str, ...], dict[str, str]] = {}
        for cell in self.cells:
            row = tuple(text for heading, text in cell.labels.items() if heading != "seed")
            rows.setdefault(row, {})[cell.labels["seed"]] = texts[cell.name]
        labels = self.cells[0].labels if self.cells else ()
        headings = [heading for heading in labels if heading != "seed"]
        seeds = sorted({cell.labels["seed"] for cell in self.cells}, key=int)
        table = _table(headings, seeds)
        for row, found in rows.items():
            scores = [float(text) for text in found.values() if _is_number(text)]
            mean = f"{statistics.fmean(scores):.1f}" if scores else ""
            mean += f" ({len(scores)})" if 0 < len(scores) < len(found) else ""
            table.add_row(*map(escape, (*row, *(found.get(seed, "") for seed in seeds), mean)))
        done = sum(text == State.DONE or _is_number(text) for text in texts.values())
        line = f"{done} of {len(texts)} cells done; numbers are mean scores"
        return Group(table, Text(line))


def times_table(cells: Sequence[Cell]) -> Table | None:
    """Return the wall time of each training, with the methods that it serves; None without any."""
    times: dict[tuple[str, str, str], dict[str, float]] = {}
    users: dict[tuple[str, str, str], dict[str, None]] = {}
    for cell in cells:
        words = [
            text for heading, text in cell.labels.items() if heading not in ("seed", "dataset")
        ]
        for job in cell.jobs:
            if job.is_fit and (seconds := job.times.seconds()):
                place = "; ".join(words) if job.of_cell else job.folder.name
                name = job.verb if job.of_cell else job.name
                key = (cell.labels.get("dataset", ""), name, place)
                times.setdefault(key, {})[cell.labels["seed"]] = seconds
                users.setdefault(key, {})["; ".join(words)] = None
    if not times:
        return None
    seeds = sorted({seed for found in times.values() for seed in found}, key=int)
    table = _table(["dataset", "training", "of"], seeds)
    table.title = "wall time of trainings, over all parts of each"
    for key, found in times.items():
        texts = [duration(found[seed]) if seed in found else "" for seed in seeds]
        mean = duration(statistics.fmean(found.values()))
        table.add_row(*map(escape, (*key[:2], ", ".join(users[key]), *texts, mean)))
    return table


def _table(headings: Sequence[str], seeds: Sequence[str]) -> Table:
    table = Table()
    for heading in headings:
        table.add_column(heading)
    for heading in (*(f"seed {seed}" for seed in seeds), "mean"):
        table.add_column(heading, justify="right")
    return table


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def duration(seconds: float) -> str:
    """Return ``1:02:03`` for 3,723 s, and ``12 s`` below a minute."""
    return f"{seconds:.0f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
