"""Search by Optuna: axes that are distributions, and the study that is the ledger of the trials."""

from __future__ import annotations

import functools
import itertools
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_offrl.common.errors import ConfigError, install, reason
from lit_offrl.common.ranges import SEEDS, lies_in
from lit_offrl.experiments.config import FileReader, difference, yaml_text
from lit_offrl.tracking.store import redacted

DISTRIBUTIONS = ("uniform", "log_uniform", "int", "choice")
SAMPLERS = ("tpe", "random", "grid", "cmaes")
PRUNERS = ("none", "median", "hyperband")
DIRECTIONS = ("maximize", "minimize")
CURVES = ("val/", "eval/", "train/")
"""Beginnings of the metrics that a fit logs by step."""
RECORDS = ("score", "return", "ope")
"""Metrics of a finished trial: two of its evaluation, one of ``lit-offrl ope``."""
_KEYS = ("sampler", "trials", "pruner", "metric", "direction", "seed", "storage", "ope")
_OPE_KEYS = ("fqe_steps", "starts", "gamma", "seed", "device", "data")
JOURNAL = "search.journal"
"""In a row's folder: Optuna's ledger, unless that is a database."""
_RUNGS = 27  # hyperband's first decision comes after this fraction of the training


@dataclass(frozen=True)
class Axis:
    """An option that is drawn anew for each trial.

    Attributes:
        kind: One of ``DISTRIBUTIONS``.
        values: The two ends, both of which may be drawn, or the choices.
    """

    kind: str
    values: tuple[Any, ...]

    def distribution(self) -> Any:
        """Return Optuna's distribution; choices are text, as its storages keep no lists."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.kind == "choice":
            return CategoricalDistribution([yaml_text(value) for value in self.values])
        if self.kind == "int":
            return IntDistribution(*self.values)
        low, high = self.values
        return FloatDistribution(low, high, log=self.kind == "log_uniform")

    def listed(self) -> list[Any]:
        """Return all values of a choice or of whole numbers, as the distribution has them."""
        if self.kind == "int":
            return list(range(self.values[0], self.values[1] + 1))
        return [yaml_text(value) for value in self.values]

    def value(self, drawn: Any) -> Any:
        """Return the option's value for what was drawn from the distribution."""
        if self.kind != "choice":
            return drawn
        return next(value for value in self.values if yaml_text(value) == drawn)


@dataclass(frozen=True)
class Search:
    """What the keys ``search`` and ``options`` of a sweep's file say.

    Attributes:
        axes: The options that are searched, by their full names.
        trials: The number of trials for each row of the grid.
        sampler: One of ``SAMPLERS``.
        pruner: One of ``PRUNERS``.
        metric: One of ``RECORDS``, or a metric that fits log, such as ``val/loss/actor``.
        direction: One of ``DIRECTIONS``.
        seed: With a trial's number it seeds the sampler.
        storage: The URL of Optuna's database; None for a journal file in the row's folder.
        ope: Options of ``lit-offrl ope``, for the metric of that name.
    """

    axes: Mapping[str, Axis]
    trials: int
    sampler: str = "tpe"
    pruner: str = "none"
    metric: str = "score"
    direction: str = "maximize"
    seed: int = 0
    storage: str | None = None
    ope: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_online(self) -> bool:
        """Whether the metric takes roll-outs in the environment."""
        return self.metric in ("score", "return") or self.metric.startswith("eval/")

    @property
    def curve(self) -> str | None:
        """The metric of fits whose points pruners see; None for the estimate of ``ope``."""
        record = {"score": "eval/score", "return": "eval/return", "ope": None}
        return record.get(self.metric, self.metric)

    def grid(self) -> list[dict[str, Any]]:
        """Return all combinations, as the distributions have them."""
        values = [axis.listed() for axis in self.axes.values()]
        return [dict(zip(self.axes, each, strict=True)) for each in itertools.product(*values)]

    def ends(self) -> list[dict[str, Any]]:
        """Return sets of options in which each end and each choice occurs, to be checked."""
        most = max(len(axis.values) for axis in self.axes.values())
        return [
            {name: axis.values[min(i, len(axis.values) - 1)] for name, axis in self.axes.items()}
            for i in range(most)
        ]

    def definition(self) -> dict[str, Any]:
        """Return what all trials have in common, as plain JSON; their number may grow."""
        facts = {"sampler": self.sampler, "seed": self.seed, "metric": self.metric}
        facts |= {"pruner": self.pruner, "direction": self.direction, "ope": dict(self.ope)}
        axes = {name: {axis.kind: list(axis.values)} for name, axis in self.axes.items()}
        return json.loads(json.dumps({**facts, "options": axes}))


# ---- the file ------------------------------------------------------------------------------------


def read_axes(reader: FileReader, options: Any) -> tuple[dict[str, Axis], Any]:
    """Split options into those that are distributions, ``{NAME: [...]}``, and the others.

    Raises:
        ConfigError: One line that names the file and the key.
    """
    axes = {
        name: _read_axis(reader, f"options.{name}", value)
        for name, value in (options.items() if isinstance(options, dict) else ())
        if isinstance(value, dict) and [type(each) for each in value.values()] == [list]
    }
    if axes:  # in an axis of labels, each has a mapping
        options = {name: value for name, value in options.items() if name not in axes}
        reader.options("options", dict.fromkeys(axes))
    return axes, options


def _read_axis(reader: FileReader, key: str, given: Mapping[str, Any]) -> Axis:
    """Read ``{log_uniform: [1.0e-4, 1.0e-2]}`` and its like.

    Raises:
        ConfigError: An unknown distribution, an empty range, or an end that cannot be.
    """
    ((kind, values),) = given.items()
    if kind not in DISTRIBUTIONS:
        raise reader.unknown(key, "unknown distribution", kind, DISTRIBUTIONS)
    key = f"{key}.{kind}"
    if kind == "choice":
        texts = [yaml_text(value) for value in values]
        if not values or len(set(texts)) < len(texts):
            raise reader.wrong(key, values, "one value or more, each once")
        return Axis(kind, tuple(values))
    numbers = int if kind == "int" else (int, float)
    if len(values) != 2 or not all(
        isinstance(end, numbers) and not isinstance(end, bool) and math.isfinite(end)
        for end in values
    ):
        a = "whole numbers" if kind == "int" else "numbers (1.0e-4; to YAML, 1e-4 is text)"
        raise reader.wrong(key, values, f"the two ends, {a}")
    if values[0] >= values[1]:
        raise reader.wrong(key, values, "a lower end that is less than the upper one")
    if kind == "log_uniform" and values[0] <= 0:
        raise reader.wrong(key, values, "ends above 0")
    return Axis(kind, tuple(values))


def read_search(reader: FileReader, given: Any, axes: Mapping[str, Axis]) -> Search:
    """Read the key ``search``, beside the axes that are distributions.

    Raises:
        ConfigError: One line that names the file and the key.
    """
    if given is None:
        raise ConfigError(
            f"{reader.path}: options.{next(iter(axes), '')}: a distribution needs 'search:', such"
            " as search: {sampler: tpe, trials: 20, metric: score}."
        )
    reader.known(given, "search", _KEYS)

    def one_of(key: str, names: Sequence[str], default: str) -> str:
        value = given.get(key, default)
        if value not in names:
            raise reader.unknown(f"search.{key}", f"unknown {key}", value, names)
        return str(value)

    if not axes:
        raise ConfigError(
            f"{reader.path}: search: no option is a distribution: give one under 'options:', such"
            " as model.init_args.learning_rate: {log_uniform: [1.0e-4, 1.0e-2]}."
        )
    sampler = one_of("sampler", SAMPLERS, "tpe")
    metric = reader.text("search.metric", given.get("metric", "score"))
    if metric not in RECORDS and not metric.startswith(CURVES):
        known = (*RECORDS, "val/loss", "val/loss/actor", "eval/score", "eval/return")
        raise reader.unknown("search.metric", "unknown metric", metric, known)
    minimized = metric.startswith("val/") or "loss" in metric
    direction = one_of("direction", DIRECTIONS, DIRECTIONS[minimized])
    pruner = one_of("pruner", PRUNERS, "none")
    ope = given.get("ope") or {}
    reader.known(ope, "search.ope", _OPE_KEYS)
    if metric == "ope" and pruner != "none":
        raise reader.wrong("search.pruner", pruner, "none: ope values finished trials alone")
    if ope and metric != "ope":
        raise reader.wrong("search.ope", ope, "'metric: ope' with it")
    seed, trials = given.get("seed", 0), given.get("trials")
    if type(seed) is not int or not lies_in(SEEDS, seed):
        raise reader.wrong("search.seed", seed, f"a number in {SEEDS}")
    storage = given.get("storage")
    if storage is not None and "://" not in reader.text("search.storage", storage):
        raise reader.wrong("search.storage", storage, "a database's URL, sqlite:////shared/s.db")
    if sampler == "grid":
        endless = [name for name, axis in axes.items() if "uniform" in axis.kind]
        if endless:
            raise ConfigError(
                f"{reader.path}: options.{endless[0]}: a grid has no end on a distribution of"
                " numbers that are not whole: give choice or int, or another search.sampler."
            )
        size = math.prod(len(axis.listed()) for axis in axes.values())
        trials = size if trials is None else trials
        if type(trials) is int and trials > size:
            raise reader.wrong("search.trials", trials, f"at most {size}, the size of the grid")
    if type(trials) is not int or trials < 1:
        raise reader.wrong("search.trials", trials, "the number of trials, at least 1")
    if sampler == "cmaes" and all(axis.kind == "choice" for axis in axes.values()):
        raise reader.wrong("search.sampler", sampler, "tpe: cmaes moves numbers, not choices")
    return Search(axes, trials, sampler, pruner, metric, direction, seed, storage, ope)


# ---- the ledger ----------------------------------------------------------------------------------


@functools.cache
def _database(url: str) -> Any:
    from optuna.storages import get_storage

    return get_storage(url)  # checks its tables: once a process


@dataclass(frozen=True)
class Study:
    """Optuna's study of one row of the grid: which trials there are, and what came out.

    All trials are enqueued when the study begins, so that their number is exact however many
    processes work on them. A trial is claimed by whoever holds the lock of its folder.

    Attributes:
        search: What is searched.
        name: Of the study.
        folder: Of the row; the journal file is in it.
        steps: Optimiser steps of a training, if the config says so; hyperband's rungs go by it.
    """

    search: Search
    name: str
    folder: Path
    steps: int | None = None

    def open(self, number: int = 0) -> Any:
        """Return Optuna's study, with a sampler that is seeded for one trial.

        Raises:
            ConfigError: Optuna is not installed, or the database does not answer.
        """
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend
        except ImportError as error:
            raise ConfigError(f"search: needs Optuna: run {install('search')}.") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", module="optuna")
        where, storage = self.search.storage, None
        direction: Any = self.search.direction
        try:
            if where is None:
                storage = JournalStorage(JournalFileBackend(str(self.folder / JOURNAL)))
            return optuna.create_study(
                study_name=self.name,
                storage=storage or _database(str(where)),
                sampler=self._sampler(number),
                pruner=self._pruner(),
                direction=direction,
                load_if_exists=True,
            )
        except Exception as error:  # whatever the database's driver throws
            place = redacted(where or str(self.folder / JOURNAL))
            raise ConfigError(
                f"search: {place} cannot be used: {redacted(reason(error))}"
            ) from error

    def _sampler(self, number: int) -> Any:
        from optuna import samplers

        seed = (self.search.seed * 1_000_003 + number) % 2**32
        if self.search.sampler == "tpe":
            return samplers.TPESampler(seed=seed, constant_liar=True)
        if self.search.sampler == "cmaes":
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        return samplers.RandomSampler(seed=seed)

    def _pruner(self) -> Any:
        from optuna import pruners

        if self.search.pruner == "median":
            return pruners.MedianPruner()
        if self.search.pruner == "hyperband":
            assert self.steps is not None  # Trials.require_pruning
            return pruners.HyperbandPruner(max(1, self.steps // _RUNGS), self.steps)
        return pruners.NopPruner()

    def begin(self, common: Mapping[str, Any]) -> None:
        """Enqueue the trials that the study does not have yet; the folder's lock is held.

        Args:
            common: What all trials are made from.

        Raises:
            ConfigError: The study was begun with something else.
        """
        study = self.open()
        attributes, definition = study.user_attrs, {**self.search.definition(), **common}
        if "definition" not in attributes:
            study.set_user_attr("definition", definition)
        elif change := difference(attributes["definition"], definition):
            raise ConfigError(
                f"{self.folder}: the search was begun with another {change}: give another 'name:',"
                " or move the folder away."
            )
        grid = self.search.grid() if self.search.sampler == "grid" else []
        for number in range(len(study.trials), self.search.trials):
            study.enqueue_trial(grid[number] if grid else {})

    def claim(self, number: int) -> dict[str, Any]:
        """Return the options of a trial, which is the caller's from now; the lock is held."""
        from optuna.trial import Trial, TrialState

        study = self.open(number)
        frozen = study.get_trials(deepcopy=False)[number]
        if frozen.state == TrialState.WAITING:
            study._storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING)
        trial, axes = Trial(study, frozen._trial_id), self.search.axes
        return {name: a.value(trial._suggest(name, a.distribution())) for name, a in axes.items()}

    def options(self, trial: Any) -> dict[str, Any]:
        """Return the options of a frozen trial, as far as they are drawn."""
        axes = self.search.axes.items()
        return {n: axis.value(trial.params[n]) for n, axis in axes if n in trial.params}

    def report(self, number: int, points: Mapping[int, float], *, ended: bool = False) -> bool:
        """Tell the points of a metric by step; return whether the trial is to be pruned.

        One whose training has ended is not: its points are there for the others to be judged by.
        """
        study = self.open(number)
        for step, value in sorted(points.items()):
            trial = study.get_trials(deepcopy=False)[number]
            if step not in trial.intermediate_values:
                study._storage.set_trial_intermediate_value(trial._trial_id, step, value)
                prune = study.pruner.prune(study, study.get_trials(deepcopy=False)[number])
                if prune and not ended:
                    return True
        return False

    def tell(self, number: int, outcome: str, value: float | None = None) -> None:
        """End a trial, unless it has ended before.

        Args:
            number: Of the trial.
            outcome: ``COMPLETE`` with a value, ``PRUNED`` or ``FAIL``.
            value: Of the metric.
        """
        from optuna.trial import TrialState

        self.open(number).tell(number, value, TrialState[outcome], skip_if_finished=True)

    def parent(self) -> str | None:
        """Return the id of the MLflow run whose children the trials' runs are."""
        return self.open().user_attrs.get("mlflow_run")

    def set_parent(self, run_id: str) -> None:
        """Keep the id of that run."""
        self.open().set_user_attr("mlflow_run", run_id)

    def trials(self) -> list[Any]:
        """Return Optuna's frozen trials, in their order."""
        return self.open().get_trials(deepcopy=False)

    def best(self) -> Any | None:
        """Return the frozen trial with the best value; None as long as none is complete."""
        from optuna.trial import TrialState

        complete = [t for t in self.trials() if t.state == TrialState.COMPLETE]
        sign = 1 if self.search.direction == "minimize" else -1
        return min(complete, key=lambda trial: sign * trial.value, default=None)
