"""The progress of a sweep: a table that moves on a terminal, and a line an event elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lit_offrl.jobs.children import HELD
from lit_offrl.pipelines.table import duration
from lit_offrl.sweeps.cell import CellFolder, State
from lit_offrl.sweeps.staged import StagedCell


class Board:
    """What is known of the cells, and how it is shown.

    Args:
        folders: of the cells.
        console: where lines go.
    """

    def __init__(self, folders: Sequence[CellFolder], console: Console) -> None:
        self._folders = list(folders)
        self._console = console
        self._begun: dict[str, float] = {}
        self._fixed: dict[str, str] = {}  # what is no longer read from files
        self.reasons: dict[str, str] = {}
        for folder in folders:
            self._look(folder)

    def begins(self, folder: CellFolder) -> None:
        """A cell is worked on from now."""
        self._begun[folder.cell.name] = time.monotonic()
        self._fixed.pop(folder.cell.name, None)
        self.reasons.pop(folder.cell.name, None)
        self._say(f"{folder.cell.name}: begins")

    def ends(self, folder: CellFolder, why: str) -> None:
        """A cell is no longer worked on; ``why`` it is not done, or ""."""
        name = folder.cell.name
        seconds = time.monotonic() - self._begun.pop(name, time.monotonic())
        if why:
            self.reasons[name] = why
        self._look(folder)
        self._say(f"{name}: {why or f'done, score {self._fixed[name]}, {seconds:.0f} s'}")

    def _look(self, folder: CellFolder) -> None:
        state = folder.state()
        if state == State.DONE:
            score = folder.score()
            text = "done" if score is None else f"{score:.1f}"
        elif self.reasons.get(folder.cell.name) == HELD:
            text = "elsewhere"
        else:
            text = str(state) if state != State.NEW else "·"
        if state == State.FAILED:
            self.reasons[folder.cell.name] = folder.reason()
        if state == State.CHANGED:
            self.reasons[folder.cell.name] = f"{state}: {folder.change()}"
        self._fixed[folder.cell.name] = text

    def _say(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(escape(f"{time.strftime('%H:%M:%S')} {line}"), soft_wrap=True)

    def text(self, folder: CellFolder) -> str:
        """A cell in a word or two: its score, or how far it is."""
        if folder.cell.name not in self._begun:
            return self._fixed[folder.cell.name]
        if folder.trained.is_file():
            return "evaluates"
        return folder.steps() or "starts"

    def table(self) -> Group:
        """A row for all that is the same but the seed, a column a seed; a line below."""
        seeds = sorted({folder.cell.seed for folder in self._folders})
        rows: dict[tuple[str, ...], dict[int, CellFolder]] = {}
        for folder in self._folders:
            rows.setdefault(folder.cell.row, {})[folder.cell.seed] = folder
        axes = list(self._folders[0].cell.axes)
        table = Table()
        for heading in ("method", "dataset", *axes):
            table.add_column(heading)
        for heading in (*(f"seed {seed}" for seed in seeds), "mean"):
            table.add_column(heading, justify="right")
        done = 0
        for row, cells in sorted(rows.items()):
            words = [row[0], row[1], *(word.partition("=")[2] for word in row[2:])]
            texts = [self.text(cells[seed]) if seed in cells else "" for seed in seeds]
            scores = [float(text) for text in texts if _is_number(text)]
            done += sum(text == "done" or _is_number(text) for text in texts)
            mean = f"{statistics.fmean(scores):.1f}" if scores else ""
            mean += f" ({len(scores)})" if 0 < len(scores) < len(cells) else ""
            table.add_row(*map(escape, (*words, *texts, mean)))
        line = f"{done} of {len(self._folders)} cells done; numbers are mean scores"
        return Group(table, Text(line))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def times_table(folders: Sequence[CellFolder]) -> Table | None:
    """Wall time of each training: a row for a method's, or for a stage that methods share."""
    times: dict[tuple[str, str, str], dict[int, float]] = {}
    users: dict[tuple[str, str, str], list[str]] = {}
    for folder in folders:
        dataset, method = (
            folder.cell.labels["dataset"],
            "; ".join((folder.cell.row[0], *folder.cell.row[2:])),
        )
        trainings = {("fit", method): folder.parts("fit")}
        if isinstance(folder, StagedCell):
            trainings = {(stage.name, stage.path.name): stage.parts for stage in folder.stages}
        for (name, place), parts in trainings.items():
            if seconds := parts.seconds():
                key = (dataset, name, place)
                times.setdefault(key, {})[folder.cell.seed] = seconds
                if method not in users.setdefault(key, []):
                    users[key].append(method)
    if not times:
        return None
    seeds = sorted({seed for found in times.values() for seed in found})
    table = Table(title="wall time of trainings, over all parts of each")
    for heading in ("dataset", "training", "of"):
        table.add_column(heading)
    for heading in (*(f"seed {seed}" for seed in seeds), "mean"):
        table.add_column(heading, justify="right")
    for key, found in times.items():
        texts = [duration(found[seed]) if seed in found else "" for seed in seeds]
        mean = duration(statistics.fmean(found.values()))
        table.add_row(*map(escape, (*key[:2], ", ".join(users[key]), *texts, mean)))
    return table
