"""The trials of a search: claimed from the ledger, trained as cells of the sweep, told to it."""

from __future__ import annotations

import functools
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from rich.console import Console

from lit_offrl.common.errors import ConfigError, install, reason
from lit_offrl.common.files import write_whole
from lit_offrl.common.user_code import command_line
from lit_offrl.evaluation.record import present_name
from lit_offrl.experiments import run
from lit_offrl.experiments.board import Board
from lit_offrl.experiments.config import difference, yaml_text
from lit_offrl.experiments.job import PRUNED, Cell, Job, State, lineage
from lit_offrl.experiments.pipeline import CHECKPOINT
from lit_offrl.experiments.process import STOPPED, folder_lock
from lit_offrl.experiments.run import Choices, Schedule
from lit_offrl.experiments.search import Axis, Search, online_episodes, read_curves, value_of
from lit_offrl.tracking.runs import PARENT_TAG
from lit_offrl.tracking.store import experiment_id, open_client, redacted, refusals, store_lock

JOURNAL = "search.journal"
"""In a study's folder: Optuna's ledger, unless that is a database."""
_TRIAL_TAG = "lit_offrl.trial"
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
        pruner, every = self.search.pruner, self._option("evaluation", "every_n_steps")
        said = f"search.pruner: {pruner}: {self.name}"
        if pruner == "hyperband" and self._option("trainer", "max_steps") is None:
            raise ConfigError(f"{said} has no trainer.max_steps: give it.")
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

    def _option(self, group: str, name: str) -> Any:
        """Return an option that all trainings have; None where it is not given."""
        return (self._example.target.training.config().get(group) or {}).get(name)

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
        steps = self._option("trainer", "max_steps") or 0
        pruners: dict[str, Callable[[], Any]] = {
            "none": optuna.pruners.NopPruner,
            "median": optuna.pruners.MedianPruner,
            "hyperband": lambda: optuna.pruners.HyperbandPruner(max(1, steps // _RUNGS), steps),
        }
        place = search.storage or str((self.folder / JOURNAL).resolve())
        try:
            known = {"study_name": self.name, "storage": _storage(place)}
            if self.name not in optuna.get_all_study_names(known["storage"]):
                optuna.create_study(direction=search.direction, load_if_exists=True, **known)
            sampler, pruner = samplers[search.sampler](), pruners[search.pruner]()
            return optuna.load_study(sampler=sampler, pruner=pruner, **known)
        except Exception as error:  # whatever the database's driver throws
            why = redacted(f"{place} cannot be used: {reason(error)}")
            raise ConfigError(f"search: {why}") from error

    def begin(self, make_run: Callable[[], Any]) -> bool:
        """Enqueue the trials that the study does not have yet; keep the id of its MLflow run.

        Returns:
            Whether it has; another process may be about it.

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
        with folder_lock(self.folder, ".search.lock") as lock:
            if lock is None:
                return False
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
                study.set_user_attr("mlflow_run", make_run().info.run_id)
            return True

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
        tags = {PARENT_TAG: str(self.parent()), _TRIAL_TAG: str(number)}
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

    def report(self, number: int, run: Path) -> int | None:
        """Tell what a fit has logged; return the step at which it is to be pruned, if it is."""
        from optuna.trial import Trial

        study, pruned = self.open(number), None
        frozen = study.trials[number]
        points = read_curves(run).get(present_name(self.search.curve), {})
        trial = Trial(study, frozen._trial_id)
        for step in sorted(points.keys() - frozen.intermediate_values):
            trial.report(points[step], step)
            pruned = step if trial.should_prune() else pruned
        return pruned

    def stops(self, number: int, job: Job) -> bool:
        """Whether a training is to stop as it runs, which a file says from then on."""
        try:
            step = self.report(number, job.run)
        except ConfigError:  # a database that does not answer must not end the training
            return False
        if step is not None:
            write_whole(job.folder / PRUNED, json.dumps({"step": step}) + "\n")
        return step is not None


@functools.cache
def _storage(place: str) -> Any:
    """Return Optuna's ledger; once a process, since the tables of a database are checked."""
    from optuna.storages import JournalStorage, get_storage
    from optuna.storages.journal import JournalFileBackend

    return get_storage(place) if "://" in place else JournalStorage(JournalFileBackend(place))


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
        self._board, self._jobs = board, jobs
        self._prunes = studies[0].search.pruner != "none"
        self._at_once = 1 if self._prunes else len(studies[0].cells("example", {}))
        tracking = studies[0].examples()[0].target.tracking
        uri = str(tracking.uri)
        with refusals(uri, "Give another --tracking_uri."), store_lock(uri):
            self._client = open_client(uri)
            self._experiment = experiment_id(self._client, uri, tracking.experiment)
        self._open: list[Iterator[None]] = []
        self._tried: set[tuple[str, int]] = set()
        self._ended: set[str] = set()  # keys of jobs
        self._error = ""  # why no more trials are proposed
        self.begins, self.waits, self.table = board.begins, board.waits, board.table

    def begin(self) -> None:
        """Enqueue the trials, and propose the first.

        Raises:
            ConfigError: A ledger cannot be used, or is another search's.
        """
        for study in self._studies:
            name = f"search {study.name}"
            given = {"run_name": name, "tags": {"lit_offrl.search": name}}
            while not study.begin(partial(self._client.create_run, self._experiment, **given)):
                time.sleep(run.LOOK_SECONDS)
        self._propose()

    def ends(self, job: Job, why: str) -> None:
        """A job has ended: its trial may have, too."""
        self._board.ends(job, why)
        self._ended.add(job.key)
        self._open = [trial for trial in self._open if _goes_on(trial)]
        if why != STOPPED:
            self._propose()

    def _propose(self) -> None:
        """Open as many trials as there is room for."""
        for study in self._studies:
            for frozen in study.open().trials:
                if len(self._open) * self._at_once >= self._jobs or self._error:
                    return
                if (study.name, frozen.number) in self._tried:
                    continue
                self._tried.add((study.name, frozen.number))
                if frozen.state.is_finished():
                    self._board.add(study.claim(frozen.number))
                elif _goes_on(trial := self._work(study, frozen.number)):
                    self._open.append(trial)

    def _work(self, study: Study, number: int) -> Iterator[None]:
        """Bring a trial to its end; yields whenever jobs are to end first.

        One that cannot be ended stays as it is in the ledger, to be gone on with.
        """
        with folder_lock(study.folder / f"trial={number:04}") as lock:
            if lock is None:
                return  # another process works on it
            cells = study.claim(number)
            self._board.add(cells)
            leave = self._choices.leave
            # The other seeds wait for the first, which the pruner sees.
            for group in [[cell] for cell in cells] if self._prunes else [cells]:
                self._schedule.add(cell for cell in group if not leave(cell.state()))
                while left := [cell for cell in group if cell.state() != State.DONE]:
                    for cell in left:
                        state = cell.state()
                        if state == State.PRUNED:
                            return self._tell(study, number, "PRUNED")
                        if cell.target.key in self._ended or leave(state):
                            if f"ended with {_DIVERGED}:" in cell.reason():
                                self._tell(study, number, "FAIL")
                            return
                    yield
            try:
                value = fmean(value_of(cell, study.search.metric) for cell in cells)
            except ConfigError as error:
                self._error = str(error)
                return
            if self._prunes:  # what came after the watch had last looked
                study.report(number, cells[0].target.run)
            self._tell(study, number, "COMPLETE", value)

    def _tell(self, study: Study, number: int, outcome: str, value: float | None = None) -> None:
        """Tell the ledger, and MLflow, what came out of a trial."""
        from optuna.trial import TrialState

        study.open(number).tell(number, value, TrialState[outcome], skip_if_finished=True)
        runs = f"tags.`{PARENT_TAG}` = '{study.parent()}' and tags.`{_TRIAL_TAG}` = '{number}'"
        for found in self._client.search_runs([self._experiment], filter_string=runs):
            self._client.set_tag(found.info.run_id, "lit_offrl.outcome", outcome.lower())
            if value is not None:
                self._client.log_metric(found.info.run_id, "search/value", value)

    # ---- the end -------------------------------------------------------------------------------

    def finish(self, console: Console, command: str) -> bool:
        """Write each search's ``best.yaml``; print what came out; return whether all is done."""
        lines, done = [], True
        for study in self._studies:
            trials = study.open().trials
            over = [trial for trial in trials if trial.state.is_finished()]
            done = done and len(over) == len(trials)
            if over:
                text = f"{study.name}: the best of {len(over)} trials\n{_best(study)}"
                console.print(text, highlight=False, soft_wrap=True, markup=False)
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


def _best(study: Study) -> str:
    """Return a table of the best trials."""
    frame = study.open().trials_dataframe(("number", "state", "value", "params"))
    frame = frame[frame["state"].isin(["COMPLETE", "FAIL", "PRUNED"])]
    ascending = [True, study.search.direction == "minimize"]
    frame = frame.sort_values(["state", "value"], ascending=ascending).head(_SHOWN)
    frame.columns = [name.removeprefix("params_") for name in frame.columns]
    return frame.to_string(index=False, na_rep="", float_format="{:.6g}".format)


def _goes_on(trial: Iterator[None]) -> bool:
    """Bring a trial on as far as it goes now; return whether it waits for jobs."""
    return next(trial, "over") is None
