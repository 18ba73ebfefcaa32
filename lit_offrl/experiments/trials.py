"""The trials of a search: claimed from the ledger, trained as cells of the sweep, told to it."""

from __future__ import annotations

import functools
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from lit_offrl.common.errors import ConfigError, install, reason
from lit_offrl.common.files import write_whole
from lit_offrl.common.user_code import command_line
from lit_offrl.experiments import run
from lit_offrl.experiments.board import Board
from lit_offrl.experiments.config import difference, yaml_text
from lit_offrl.experiments.job import PRUNED, Cell, Job, State, lineage
from lit_offrl.experiments.pipeline import CHECKPOINT
from lit_offrl.experiments.process import STOPPED, folder_lock
from lit_offrl.experiments.run import Choices, Schedule
from lit_offrl.experiments.search import Axis, Search, online_episodes, read_curves, value_of
from lit_offrl.tracking.opening import experiment_id
from lit_offrl.tracking.store import open_client, redacted

JOURNAL = "search.journal"
"""In a study's folder: Optuna's ledger, unless that is a database."""
_PARENT_TAG, _TRIAL_TAG = "mlflow.parentRunId", "lit_offrl.trial"
_RUNGS = 27  # hyperband's first decision comes after this fraction of the training
_DIVERGED = 3  # the exit code of a training that met a number that is not finite
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
class Study:
    """A line of the grid, which has a search of its own, and Optuna's study as its ledger.

    All trials are enqueued when the study begins, so that their number is exact however many
    processes work on them. A trial is claimed by whoever holds the lock of its folder.

    Attributes:
        search: How it is searched.
        axes: What is searched: options by their full names.
        cells: Makes a trial's cells, one a seed, of its label and its options.

    Raises:
        ConfigError: The trainings log nothing by which the pruner could go.
    """

    search: Search
    axes: Mapping[str, Axis]
    cells: Callable[[str, Mapping[str, Any]], list[Cell]]

    def __post_init__(self) -> None:
        pruner, config = self.search.pruner, self._example.target.training.config()
        said = f"search.pruner: {pruner}: {Path(self._example.name).parent.parent}"
        if pruner == "hyperband" and self._steps is None:
            raise ConfigError(f"{said} has no trainer.max_steps: give it.")
        every = (config.get("evaluation") or {}).get("every_n_steps")
        if pruner != "none" and self.search.is_online and not every:
            raise ConfigError(
                f"{said} is not evaluated as it trains: give evaluation.every_n_steps."
            )

    def examples(self) -> list[Cell]:
        """Return cells in which each end and each choice occurs, which no trial works on."""
        most = max(len(axis.values) for axis in self.axes.values())
        ends = (
            {name: axis.values[min(i, len(axis.values) - 1)] for name, axis in self.axes.items()}
            for i in range(most)
        )
        return [self.cells("example", options)[0] for options in ends]

    @cached_property
    def _example(self) -> Cell:
        return self.examples()[0]

    @property
    def name(self) -> str:
        """The experiment and the line's place in it."""
        experiment = self._example.target.tracking.experiment
        return f"{experiment}/{Path(self._example.name).parent.parent}"

    @property
    def folder(self) -> Path:
        """The line's folder; the journal file is in it."""
        return self._example.target.folder.parent.parent

    @property
    def _steps(self) -> int | None:
        """Optimiser steps of a training, by which hyperband's rungs go."""
        trainer = self._example.target.training.config().get("trainer") or {}
        return trainer.get("max_steps")

    def describe(self) -> str:
        """Say in a line what is searched, and how far it is."""
        search = self.search
        begun = search.storage is not None or (self.folder / JOURNAL).is_file()
        over = sum(trial.state.is_finished() for trial in self.open().trials) if begun else 0
        return (
            f"{self.name}: {search.direction} {search.metric} over {', '.join(self.axes)};"
            f" {search.trials} trials by {search.sampler}, pruner {search.pruner}; {over} done"
        )

    # ---- the ledger ----------------------------------------------------------------------------

    def open(self, number: int = 0) -> Any:
        """Return Optuna's study, with a sampler that is seeded for one trial.

        Raises:
            ConfigError: Optuna is not installed, or the database does not answer.
        """
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(f"search: needs Optuna: run {install('search')}.") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", module="optuna")
        search, seed = self.search, (self.search.seed * 1_000_003 + number) % 2**32
        samplers: dict[str, Callable[[], Any]] = {
            "tpe": lambda: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
            "random": lambda: optuna.samplers.RandomSampler(seed),
            "cmaes": lambda: optuna.samplers.CmaEsSampler(
                seed=seed, warn_independent_sampling=False
            ),
            "grid": lambda: None,  # its trials are enqueued with their options
        }
        steps = self._steps or 0
        pruners: dict[str, Callable[[], Any]] = {
            "none": optuna.pruners.NopPruner,
            "median": optuna.pruners.MedianPruner,
            "hyperband": lambda: optuna.pruners.HyperbandPruner(max(1, steps // _RUNGS), steps),
        }
        place = search.storage or str((self.folder / JOURNAL).resolve())
        try:
            return optuna.create_study(
                study_name=self.name,
                storage=_storage(place),
                sampler=samplers[search.sampler](),
                pruner=pruners[search.pruner](),
                direction=search.direction,
                load_if_exists=True,
            )
        except Exception as error:  # whatever the database's driver throws
            why = redacted(f"{place} cannot be used: {reason(error)}")
            raise ConfigError(f"search: {why}") from error

    def begin(self, make_parent: Callable[[], str]) -> None:
        """Enqueue the trials that the study does not have yet; keep the id of its MLflow run.

        Raises:
            ConfigError: The ledger cannot be used, or was begun with something else.
        """
        training = self._example.target.training
        common = {name: value for name, value in training.options.items() if name not in self.axes}
        definition = {
            **self.search.model_dump(exclude={"trials", "storage"}),
            "options": {name: {axis.kind: axis.values} for name, axis in self.axes.items()},
            "training": replace(training, options=common).config(),
        }
        definition, trials = json.loads(json.dumps(definition)), self.search.trials or 0
        enqueued: list[dict[str, Any]] = [{}] * trials
        if self.search.sampler == "grid":
            places = itertools.product(*(axis.listed() for axis in self.axes.values()))
            enqueued = [dict(zip(self.axes, place, strict=True)) for place in places][:trials]
        with ExitStack() as stack:
            while stack.enter_context(folder_lock(self.folder, ".search.lock")) is None:
                time.sleep(run.LOOK_SECONDS)
            study = self.open()
            if change := difference(study.user_attrs.get("definition", definition), definition):
                raise ConfigError(
                    f"{self.folder}: the search was begun with another {change}: give another"
                    " 'name:', or move the folder away."
                )
            study.set_user_attr("definition", definition)
            for options in enqueued[len(study.trials) :]:
                study.enqueue_trial(options)
            if self.parent() is None:
                study.set_user_attr("mlflow_run", make_parent())

    def parent(self) -> Any:
        """Return the id of the MLflow run whose children the trials' runs are."""
        return self.open().user_attrs.get("mlflow_run")

    def claim(self, number: int) -> list[Cell]:
        """Return a trial's cells; unless it is over, it is the caller's, who holds its lock."""
        from optuna.trial import Trial, TrialState

        study, search = self.open(number), self.search
        frozen = study.trials[number]
        if frozen.state == TrialState.WAITING:
            study._storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING)
        trial = Trial(study, frozen._trial_id)
        options = {name: axis.suggest(trial, name) for name, axis in self.axes.items()}
        tags = {_PARENT_TAG: str(self.parent()), _TRIAL_TAG: str(number)}
        cells: list[Cell] = []
        for cell in self.cells(f"{number:04}", options):
            target, fit = cell.target, cell.target.training
            tracking = replace(fit.tracking, tags={**fit.tracking.tags, **tags})
            watched = search.pruner != "none" and not cells  # the first seed alone
            fit = replace(
                fit, tracking=tracking, watch=partial(self.stops, number) if watched else None
            )
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
            else:
                target = fit if target.is_fit else replace(target, takes={CHECKPOINT: fit})
            cells.append(replace(cell, jobs=tuple(lineage(target))))
        return cells

    def report(self, number: int, points: Mapping[int, float]) -> bool:
        """Tell the points of a metric by step; return whether the trial is to be pruned."""
        from optuna.trial import Trial

        study, prune = self.open(number), False
        frozen = study.trials[number]
        trial = Trial(study, frozen._trial_id)
        for step in sorted(points.keys() - frozen.intermediate_values):
            trial.report(points[step], step)
            prune = trial.should_prune() or prune
        return prune

    def stops(self, number: int, job: Job) -> bool:
        """Whether a training is to stop as it runs, which a file says from then on."""
        points = read_curves(job.run).get(self.search.curve, {})
        try:
            prune = self.report(number, points)
        except ConfigError:  # a database that does not answer must not end the training
            return False
        if prune:
            write_whole(job.folder / PRUNED, json.dumps({"step": max(points)}) + "\n")
        return prune


@functools.cache
def _storage(place: str) -> Any:
    """Return Optuna's ledger; once a process, since the tables of a database are checked."""
    from optuna.storages import JournalStorage, get_storage
    from optuna.storages.journal import JournalFileBackend

    return get_storage(place) if "://" in place else JournalStorage(JournalFileBackend(place))


@dataclass(frozen=True)
class _Open:
    study: Study
    number: int
    cells: list[Cell]
    lock: ExitStack


class Searches:
    """Proposes trials as long as there are any, and tells the ledger what came out; a listener.

    Several processes may do so at once, on one host or several: each holds the locks of the trials
    that it works on. A trial whose process was killed is free again, and goes on from its files.

    Args:
        studies: The searches.
        choices: What to do with failed cells.
        schedule: Where the trials' jobs are added.
        board: Hears of jobs, and is shown.
        jobs: How many run at a time; so many trials are open as keep them busy.
    """

    def __init__(
        self,
        studies: Sequence[Study],
        choices: Choices,
        schedule: Schedule,
        board: Board,
        jobs: int,
    ) -> None:
        self._studies, self._choices, self._schedule = studies, choices, schedule
        self._board = board
        self._prunes = studies[0].search.pruner != "none"
        self._seeds = len(studies[0].cells("example", {}))
        self._jobs = jobs
        tracking = studies[0].examples()[0].target.tracking
        self._client = open_client(str(tracking.uri))
        self._experiment = experiment_id(self._client, str(tracking.uri), tracking.experiment)
        self._open: list[_Open] = []
        self._tried: set[tuple[str, int]] = set()
        self._error = ""  # why no more trials are proposed
        self.begins, self.waits, self.table = board.begins, board.waits, board.table

    def begin(self) -> None:
        """Enqueue the trials, and propose the first.

        Raises:
            ConfigError: A ledger cannot be used, or is another search's.
        """
        for study in self._studies:
            study.begin(partial(self._make_parent, f"search {study.name}"))
        self._propose()

    def _make_parent(self, name: str) -> str:
        tags = {"lit_offrl.search": name}
        return self._client.create_run(self._experiment, tags=tags, run_name=name).info.run_id

    def ends(self, job: Job, why: str) -> None:
        """A job has ended: its trial may have, too."""
        self._board.ends(job, why)
        for trial in list(self._open):
            if any(job.key == cell.target.key for cell in trial.cells):
                self._advance(trial, job.key)
        if why != STOPPED:
            self._propose()

    def _propose(self) -> None:
        """Open as many trials as there is room for."""
        at_once = 1 if self._prunes else self._seeds
        for study in self._studies:
            for frozen in study.open().trials:
                if len(self._open) * at_once >= self._jobs or self._error:
                    return
                if (study.name, frozen.number) not in self._tried:
                    self._tried.add((study.name, frozen.number))
                    self._claim(study, frozen.number, frozen.state.is_finished())

    def _claim(self, study: Study, number: int, over: bool) -> None:
        lock = ExitStack()
        folder = study.folder / f"trial={number:04}"
        if not over and lock.enter_context(folder_lock(folder)) is None:
            return  # another process works on it
        cells = study.claim(number)
        self._board.add(cells)
        if not over:
            self._open.append(_Open(study, number, cells, lock))
            self._advance(self._open[-1])

    def _advance(self, trial: _Open, ended: str = "") -> None:
        """Begin what a trial needs next, or close it; the job of a key may have ended."""
        study, metric, left = trial.study, trial.study.search.metric, []
        for cell in trial.cells:
            state = cell.state()
            if state == State.PRUNED:
                return self._close(trial, "PRUNED")
            if state == State.DONE:
                continue
            if cell.target.key == ended or self._choices.leave(state):
                diverged = f"ended with {_DIVERGED}:" in cell.reason()
                return self._close(trial, "FAIL" if diverged else "")
            left.append(cell)
        if left:
            # The other seeds wait for the first, which the pruner sees.
            if self._prunes or not ended:
                self._schedule.add(left[:1] if self._prunes else left)
            return
        try:
            value = fmean(value_of(cell, metric) for cell in trial.cells)
        except ConfigError as error:
            self._error = str(error)
            return self._close(trial, "")
        if self._prunes:  # what came after the watch had last looked
            curves = read_curves(trial.cells[0].target.run)
            study.report(trial.number, curves.get(study.search.curve, {}))
        self._close(trial, "COMPLETE", value)

    def _close(self, trial: _Open, outcome: str, value: float | None = None) -> None:
        """End a trial; without an outcome it stays as it is in the ledger, to be gone on with."""
        from optuna.trial import TrialState

        study, number, client = trial.study, trial.number, self._client
        if outcome:
            study.open(number).tell(number, value, TrialState[outcome], skip_if_finished=True)
            runs = f"tags.`{_PARENT_TAG}` = '{study.parent()}' and tags.`{_TRIAL_TAG}` = '{number}'"
            for found in client.search_runs([self._experiment], filter_string=runs):
                client.set_tag(found.info.run_id, "lit_offrl.outcome", outcome.lower())
                if value is not None:
                    client.log_metric(found.info.run_id, "search/value", value)
        self._open.remove(trial)
        trial.lock.close()

    # ---- the end -------------------------------------------------------------------------------

    def finish(self, console: Console, command: str) -> bool:
        """Write each search's ``best.yaml``; print what came out; return whether all is done."""
        lines, done = [], True
        for study in self._studies:
            trials = study.open().trials
            over = [trial for trial in trials if trial.state.is_finished()]
            done = done and len(over) == len(trials)
            console.print(_table(study, over))
            used = f"{online_episodes(study.folder, study.search):,} online episodes"
            counted = f"{study.name}: {len(over)} of {len(trials)} trials"
            lines.append(f"{counted}; the selection used {used}.")
            if any(trial.state.name == "COMPLETE" for trial in over):
                lines.append(self._write_best(study, f"of {len(over)} trials; {used}"))
                status = "FINISHED" if len(over) == len(trials) else "KILLED"
                self._client.set_terminated(study.parent(), status)
        for line in lines:
            console.print(line, highlight=False, soft_wrap=True)
        for cell in self._board.cells:
            left = cell.state() not in (State.DONE, State.PRUNED)
            if left and (why := self._board.reason(cell)):
                print(f"{command}: {cell.name}: {why}", file=sys.stderr)
        if self._error:
            print(f"{command}: {self._error}", file=sys.stderr)
        return done

    def _write_best(self, study: Study, counted: str) -> str:
        best, path, parent = study.open().best_trial, study.folder / "best.yaml", study.parent()
        said = f"trial {best.number}, {study.search.metric} {best.value:.6g}"
        command = command_line(["fit", "--config", str(path)])
        training = study.claim(best.number)[0].target.training
        config = {"seed_everything": training.seed, **training.config()}
        text = yaml.safe_dump(config, sort_keys=False)
        write_whole(path, f"# {study.name}: {said}, {counted}.\n#   {command}\n{text}")
        self._client.log_metric(parent, "search/best", best.value)
        self._client.set_tag(parent, "lit_offrl.best_trial", str(best.number))
        self._client.log_artifact(parent, str(path))
        return f"best: {said}; {path}"


def _table(study: Study, trials: Sequence[Any]) -> Table:
    sign = 1 if study.search.direction == "minimize" else -1
    table = Table(title=f"{study.name}: the best of {len(trials)} trials")
    for heading in ("trial", "outcome", study.search.metric, *study.axes):
        table.add_column(heading)
    # Those that are complete come first.
    for trial in sorted(trials, key=lambda t: (t.state.name, sign * (t.value or 0)))[:_SHOWN]:
        values = [trial.value, *map(trial.params.get, study.axes)]
        texts = [
            f"{v:.6g}" if isinstance(v, float) else str("" if v is None else v) for v in values
        ]
        table.add_row(str(trial.number), trial.state.name.lower(), *texts)
    return table
