"""The trials of a search: claimed from the ledger, trained as cells of the sweep, told to it."""

from __future__ import annotations

import contextlib
import csv
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.common.files import write_whole
from lit_offrl.common.user_code import command_line
from lit_offrl.experiments import run
from lit_offrl.experiments.board import Board
from lit_offrl.experiments.config import yaml_text
from lit_offrl.experiments.job import CELL_TAG, PRUNED, Cell, Job, State, lineage
from lit_offrl.experiments.pipeline import CHECKPOINT
from lit_offrl.experiments.process import STOPPED, folder_lock
from lit_offrl.experiments.run import Choices, Schedule
from lit_offrl.experiments.search import JOURNAL, Search, Study
from lit_offrl.tracking.opening import experiment_id
from lit_offrl.tracking.store import open_client

PARENT_TAG = "mlflow.parentRunId"
_DIVERGED = 3  # the exit code of a training that met a number that is not finite
_EXAMPLE = "example"
_SHOWN = 10  # trials in the table at the end


class Ope(Job):
    """A fit's estimate by ``lit-offrl ope``, in place of its evaluation."""

    @property
    def mark(self) -> Path:
        """The record."""
        return self.folder / "ope.json"

    def finish(self) -> None:
        """Put the record in its place."""
        (self.folder / "ope" / self.mark.name).replace(self.mark)

    def argv(self, id: str, *, anew: bool = False) -> list[str]:
        """Return the command, which logs nothing: the search logs the trial's value."""
        argv = ["ope", "--ckpt_path", str(self.checkpoint), "--output", str(self.folder / "ope")]
        for name, value in self.options.items():
            argv += [f"--{name}", yaml_text(value)]
        return [*argv, "--no-mlflow"]


@dataclass(frozen=True)
class Watch:
    """Asks the pruner about a training as it runs, in the process that waits for it.

    Attributes:
        study: Whose pruner.
        number: Of the trial.
    """

    study: Study
    number: int

    def stops(self, job: Job) -> bool:
        """Report what the fit has logged; whether it is to stop, which a file says from then on."""
        points = read_curve(job.run, str(self.study.search.curve))
        try:
            if not self.study.report(self.number, points):
                return False
        except ConfigError:  # a database that does not answer must not end the training
            return False
        write_whole(job.folder / PRUNED, json.dumps({"step": max(points)}) + "\n")
        return True


@dataclass(frozen=True)
class Row:
    """A line of the grid, which has a search of its own.

    Attributes:
        study: Its ledger.
        cells: Makes a trial's cells, one a seed, of its label and its options.
    """

    study: Study
    cells: Callable[[str, Mapping[str, Any]], list[Cell]]

    @classmethod
    def of(cls, search: Search, cells: Callable[[str, Mapping[str, Any]], list[Cell]]) -> Row:
        """Return the row of which a function makes the cells.

        Raises:
            ConfigError: Its fits have nothing that the pruner could go by.
        """
        example = cells(_EXAMPLE, search.ends()[0])[0]
        folder, name = example.target.folder.parent.parent, str(Path(example.name).parent.parent)
        config = example.target.training.config()
        steps = (config.get("trainer") or {}).get("max_steps")
        every = (config.get("evaluation") or {}).get("every_n_steps")
        if search.pruner == "hyperband" and not isinstance(steps, int):
            raise ConfigError(
                f"search.pruner: hyperband: {name} has no trainer.max_steps: give it."
            )
        if search.pruner != "none" and search.is_online and not every:
            raise ConfigError(
                f"search.pruner: {search.pruner}: {name} is not evaluated as it trains: give"
                " evaluation.every_n_steps."
            )
        return cls(
            Study(search, f"{example.target.tracking.experiment}/{name}", folder, steps), cells
        )

    @property
    def seeds(self) -> int:
        """How many seeds a trial has."""
        return len(self.cells(_EXAMPLE, self.study.search.ends()[0]))

    def describe(self) -> str:
        """Say in a line what is searched, and how far it is."""
        search, name = self.study.search, self.study.name
        ledger = self.study.folder / JOURNAL
        begun = search.storage is not None or ledger.is_file()
        over = sum(trial.state.is_finished() for trial in self.study.trials()) if begun else 0
        return (
            f"{name}: {search.direction} {search.metric} over {', '.join(search.axes)};"
            f" {search.trials} trials by {search.sampler}, pruner {search.pruner}; {over} done"
        )

    def examples(self) -> list[Cell]:
        """Return cells in which each end of each axis occurs, which no trial works on."""
        return [self.cells(_EXAMPLE, options)[0] for options in self.study.search.ends()]

    def trial(
        self, number: int, options: Mapping[str, Any], parent: str | None = None
    ) -> list[Cell]:
        """Return the cells of a trial, their runs in MLflow children of the search's."""
        tag = {PARENT_TAG: parent, "lit_offrl.trial": str(number)} if parent else {}
        cells = self.cells(f"{number:04}", options)
        return [self._cell(cell, number, tag, first=cell is cells[0]) for cell in cells]

    def _cell(self, cell: Cell, number: int, tags: Mapping[str, str], first: bool) -> Cell:
        search, target = self.study.search, cell.target
        fit = target.training
        if search.pruner != "none" and first:
            fit = replace(fit, watch=Watch(self.study, number))
        tracking = replace(fit.tracking, tags={**fit.tracking.tags, **tags})
        fit = replace(fit, tracking=tracking)
        if search.metric == "ope":
            target = Ope(
                verb="ope",
                name=fit.name,
                folder=fit.folder,
                tracking=tracking,
                options=search.ope,
                takes={CHECKPOINT: fit},
                of_cell=True,
            )
        elif target.is_fit:
            target = fit
        else:
            target = replace(target, takes={CHECKPOINT: fit})
        return replace(cell, jobs=tuple(lineage(target)))


@dataclass
class _Open:
    row: Row
    number: int
    cells: list[Cell]
    lock: ExitStack
    added: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)


def read_curve(run: Path, metric: str) -> dict[int, float]:
    """Return the points by step that a fit has logged of a metric; ``val/loss`` sums the losses."""
    points: dict[int, float] = {}
    for step, name, value in _curves(run):
        if name == metric or (metric == "val/loss" and name.startswith("val/loss/")):
            points[step] = points.get(step, 0.0) + value
    return points


def _curves(run: Path) -> list[tuple[int, str, float]]:
    rows = []
    with contextlib.suppress(OSError), (run / "curves.csv").open(newline="") as file:
        for row in csv.reader(file):
            with contextlib.suppress(ValueError):  # the heading, and a line that is being written
                step, name, value = row
                rows.append((int(step), name, float(value)))
    return rows


def value_of(cell: Cell, search: Search) -> float:
    """Return the metric of a finished cell.

    Raises:
        ConfigError: The fit, or its record, has no such metric.
    """
    folder, fit = cell.target.folder, cell.target.run
    there: list[str] = []
    if search.metric in ("score", "return", "ope"):
        name = "ope.json" if search.metric == "ope" else "evaluation.json"
        record = json.loads((folder / name).read_text())
        if search.metric == "ope":
            return float(record["policies"][0]["fqe"]["mean"])
        if values := record.get(f"{search.metric}s"):
            return float(sum(values) / len(values))
        there = ["return"]
    else:
        if points := read_curve(fit, search.metric):
            return points[max(points)]
        there = sorted({name for _, name, _ in _curves(fit)})
    hint = nearest(search.metric, there) or f" It has {', '.join(there) or 'none'}."
    raise ConfigError(f"search.metric: {cell.name} has no '{search.metric}'.{hint}")


def online_episodes(folder: Path, search: Search) -> int:
    """Return how many episodes the metric, or the pruner, has taken of the cells below a folder."""
    patterns = ["evaluation.json"] if search.metric in ("score", "return") else []
    if search.is_online and (search.pruner != "none" or not patterns):
        patterns.append("fit/evaluation*.json")
    count = 0
    for path in [path for each in patterns for path in folder.glob(f"trial=*/seed*/{each}")]:
        with contextlib.suppress(OSError, ValueError, KeyError):
            count += len(json.loads(path.read_text())["returns"])
    return count


class Searches:
    """Proposes trials as long as there are any, and tells the ledger what came out; a listener.

    Several processes may do so at once, on one host or several: each holds the locks of the trials
    that it works on. A trial whose process was killed is free again, and goes on from its files.

    Args:
        rows: The searches.
        choices: What to do with failed cells.
        schedule: Where the trials' jobs are added.
        board: Hears of jobs, and is shown.
        jobs: How many run at a time; so many trials are open as keep them busy.
        tracking_uri: MLflow's store.
        experiment: MLflow's experiment.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        choices: Choices,
        schedule: Schedule,
        board: Board,
        *,
        jobs: int,
        tracking_uri: str,
        experiment: str,
    ) -> None:
        self._rows, self._choices, self._schedule = rows, choices, schedule
        self._board = board
        seeds = 1 if rows[0].study.search.pruner != "none" else rows[0].seeds
        self._slots = -(-jobs // seeds)
        self._uri, self._experiment = tracking_uri, experiment
        self._open: list[_Open] = []
        self._tried: set[tuple[str, int]] = set()
        self._error = ""  # why no more trials are proposed
        self.begins, self.waits, self.table = board.begins, board.waits, board.table

    def begin(self) -> None:
        """Enqueue the trials, and propose the first.

        Raises:
            ConfigError: A ledger cannot be used, or is another search's.
        """
        for row in self._rows:
            with _alone(row.study.folder):
                example = row.trial(0, row.study.search.ends()[0])
                row.study.begin({"training": _without(example[0], row.study.search)})
                if row.study.parent() is None:
                    row.study.set_parent(self._parent(row))
        self.propose()

    def _parent(self, row: Row) -> str:
        client = open_client(self._uri)
        id = experiment_id(client, self._uri, self._experiment)
        name = f"search {row.study.name}"
        return client.create_run(id, tags={"lit_offrl.search": name}, run_name=name).info.run_id

    def ends(self, job: Job, why: str) -> None:
        """A job has ended: its trial may have, too."""
        self._board.ends(job, why)
        for trial in list(self._open):
            if any(job.key == cell.target.key for cell in trial.cells):
                trial.ended.add(job.key)
                self._advance(trial)
        if why != STOPPED:
            self.propose()

    def propose(self) -> None:
        """Open as many trials as there is room for."""
        for row in self._rows:
            for frozen in row.study.trials() if len(self._open) < self._slots else []:
                if len(self._open) >= self._slots or self._error:
                    return
                key = (row.study.name, frozen.number)
                if key not in self._tried:
                    self._tried.add(key)
                    self._claim(row, frozen)

    def _claim(self, row: Row, frozen: Any) -> None:
        lock = ExitStack()
        over = frozen.state.is_finished()
        folder = row.study.folder / f"trial={frozen.number:04}"
        if not over and lock.enter_context(folder_lock(folder)) is None:
            return  # another process works on it
        options = row.study.options(frozen) if over else row.study.claim(frozen.number)
        cells = row.trial(frozen.number, options, row.study.parent())
        self._board.add(cells)
        if over:
            return
        trial = _Open(row, frozen.number, cells, lock)
        self._open.append(trial)
        self._advance(trial)

    def _advance(self, trial: _Open) -> None:
        """Begin what a trial needs next, or close it."""
        search, values, waits = trial.row.study.search, [], False
        try:
            for cell in trial.cells:
                state, key = cell.state(), cell.target.key
                if state == State.DONE:
                    values.append(value_of(cell, search))
                    continue
                if state == State.PRUNED:
                    return self._close(trial, "PRUNED")
                if key in trial.ended or self._choices.leave(state):
                    diverged = f"ended with {_DIVERGED}:" in cell.reason()
                    return self._close(trial, "FAIL" if diverged else "")
                if key not in trial.added:
                    trial.added.add(key)
                    self._schedule.add([cell])
                waits = True
                if search.pruner != "none":
                    break  # the other seeds wait for the first, which the pruner sees
        except ConfigError as error:
            self._error = str(error)
            return self._close(trial, "")
        if not waits:
            if search.pruner != "none":  # what came after the watch had last looked
                points = read_curve(trial.cells[0].target.run, str(search.curve))
                trial.row.study.report(trial.number, points, ended=True)
            self._close(trial, "COMPLETE", sum(values) / len(values))

    def _close(self, trial: _Open, outcome: str, value: float | None = None) -> None:
        """End a trial; without an outcome it stays as it is in the ledger, to be gone on with."""
        study = trial.row.study
        if outcome:
            study.tell(trial.number, outcome, value)
            self._log(trial, outcome, value)
        self._open.remove(trial)
        trial.lock.close()

    def _log(self, trial: _Open, outcome: str, value: float | None) -> None:
        client = open_client(self._uri)
        experiment = experiment_id(client, self._uri, self._experiment)
        for cell in trial.cells:
            stored = cell.target.training.stored()
            where = f"tags.`{CELL_TAG}` = '{stored['id'] if stored else ''}'"
            for found in client.search_runs([experiment], filter_string=where):
                client.set_tag(found.info.run_id, "lit_offrl.outcome", outcome.lower())
                if value is not None:
                    client.log_metric(found.info.run_id, "search/value", value)

    def reasons(self) -> list[str]:
        """Say why trials are not done."""
        over = (State.DONE, State.PRUNED)
        cells = [cell for cell in self._board.cells if cell.state() not in over]
        said = [f"{cell.name}: {why}" for cell in cells if (why := self._board.reason(cell))]
        return [*said, self._error] if self._error else said

    # ---- the end -------------------------------------------------------------------------------

    def finish(self) -> tuple[list[Table], list[str], bool]:
        """Write ``best.yaml`` of each search; return tables, lines, and whether all are done."""
        tables, lines, done = [], [], True
        for row in self._rows:
            study, search = row.study, row.study.search
            trials = study.trials()
            over = [trial for trial in trials if trial.state.is_finished()]
            done = done and len(over) == len(trials)
            tables.append(_table(study, over))
            used = f"{online_episodes(study.folder, search):,}"
            counted = f"{study.name}: {len(over)} of {len(trials)} trials"
            lines.append(f"{counted}; the selection used {used} online episodes.")
            best = study.best()
            if best is None:
                continue
            path = study.folder / "best.yaml"
            cell = row.trial(best.number, study.options(best))[0]
            said = f"trial {best.number}, {search.metric} {best.value:.6g}"
            head = f"# {study.name}: {said}, of {len(over)} trials; {used} online episodes.\n"
            training = cell.target.training
            head += f"#   {command_line(['fit', '--config', str(path)])}\n"
            config = {"seed_everything": training.seed, **training.config()}
            write_whole(path, head + yaml.safe_dump(config, sort_keys=False))
            lines.append(f"best: {said}; {path}")
            self._log_best(row, path, best, len(over) == len(trials))
        return tables, lines, done

    def _log_best(self, row: Row, path: Path, best: Any, done: bool) -> None:
        client, parent = open_client(self._uri), row.study.parent()
        client.log_metric(parent, "search/best", best.value)
        client.set_tag(parent, "lit_offrl.best_trial", str(best.number))
        client.log_artifact(parent, str(path))
        client.set_terminated(parent, "FINISHED" if done else "KILLED")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    while True:
        with folder_lock(folder, ".search.lock") as lock:
            if lock is not None:
                yield
                return
        time.sleep(run.LOOK_SECONDS)


def _table(study: Study, trials: Sequence[Any]) -> Table:
    sign = 1 if study.search.direction == "minimize" else -1
    ranked = sorted(
        trials,
        key=lambda t: (t.state.name != "COMPLETE", sign * t.value if t.value is not None else 0),
    )
    table = Table(title=f"{study.name}: the best of {len(trials)} trials")
    for heading in ("trial", "outcome", study.search.metric, *study.search.axes):
        table.add_column(heading)
    for trial in ranked[:_SHOWN]:
        value = "" if trial.value is None else f"{trial.value:.6g}"
        options = study.options(trial)
        texts = [_short(options[n]) if n in options else "" for n in study.search.axes]
        table.add_row(str(trial.number), trial.state.name.lower(), value, *texts)
    return table


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else yaml_text(value)


def _without(cell: Cell, search: Search) -> dict[str, Any]:
    """Return what all trials' trainings are made from."""
    training = cell.target.training
    options = {k: v for k, v in training.options.items() if k not in search.axes}
    return replace(training, options=options).config()
