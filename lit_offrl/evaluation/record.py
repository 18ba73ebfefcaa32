"""The evaluation record: a score together with all that is needed to believe it."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from rich.table import Table

from lit_offrl.common.errors import EvaluationError, nearest, reason
from lit_offrl.common.files import write_whole
from lit_offrl.common.plain import described, is_of
from lit_offrl.evaluation.statistics import (
    ENOUGH,
    interquartile_mean,
    interval_within_range,
    standard_error,
)
from lit_offrl.tracking.runs import METRICS_OF_POLICIES

_PACKAGES = (
    "lit-offrl",
    "torch",
    "lightning",
    "numpy",
    "gymnasium",
    "pybullet",
    "pybullet_envs_gymnasium",
    "mujoco",
    "gymnasium-robotics",
    "ogbench",
    "stable-baselines3",
    "h5py",
)


CURVES = METRICS_OF_POLICIES
"""Metrics of evaluations that a fit keeps by step."""

_FORMER_NAMES = {
    "eval/return": "eval/return_mean",
    "eval/normalized_score": "eval/score",
    "eval/reached_share": "eval/success_rate",
}
_SENTENCES = ("environment_differences", "dataset_handling")  # no entry for each episode
_SHORT = {"score_mean": "score", "length_mean": "length", "reached_share": "success_rate"}


def present_name(metric: str) -> str:
    """Return today's name of a metric."""
    return _FORMER_NAMES.get(metric, metric)


def present_names(history: Mapping[str, Any]) -> dict[str, Any]:
    """Return curves under today's names, of a checkpoint that an earlier version may have made."""
    return {present_name(name): line for name, line in history.items()}


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that results depend on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def hardware() -> str:
    """Describe the machine; the CPU's instructions decide how kernels round."""
    import torch  # else tables of records would wait for it

    instructions = torch.backends.cpu.get_cpu_capability()
    where = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs ({instructions})"
    if torch.cuda.is_available():
        where += f", {torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return f"{where}, {torch.get_num_threads()} torch threads"


def now() -> str:
    """The time, UTC, in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def config_sha256(config: Mapping[str, Any]) -> str:
    """Return a hash of a configuration that does not depend on the order of its keys."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class JSONRecord:
    """A record in plain types that is kept as a JSON file, with what it was made with.

    Attributes:
        versions: Versions of Python and of packages.
        hardware: Description of the machine.
        date: Time in UTC, ISO 8601.
        command: Command line.
    """

    versions: Mapping[str, str] = field(default_factory=package_versions)
    hardware: str = field(default_factory=hardware)
    date: str = field(default_factory=now)
    command: str | None = None

    def to_json(self) -> str:
        """Return the record as JSON text, with what it was made with at the end."""
        values = asdict(self)
        made_with = {item.name: values.pop(item.name) for item in fields(JSONRecord)}
        return json.dumps(values | made_with, indent=2, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> Path:
        """Write the record as a file, whole or not at all, and return its path."""
        write_whole(Path(path), self.to_json())
        return Path(path)


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord(JSONRecord):
    """One evaluation, in plain types; tuples have one entry for each episode.

    Attributes:
        method: Class of the module.
        dataset: Name of the dataset that it was trained on.
        dataset_sha256: Hash of the dataset's file.
        dataset_handling: Sentences on what was done to the file's rows and rewards.
        env_id: Environment that it was evaluated in.
        environment_differences: Sentences on what differs there from D4RL's original.
        max_episode_steps: Step limit, if it differs from the environment's own.
        training_seed: Seed of the training.
        training_steps: Number of optimiser steps that the weights have had.
        seed: Seed of the evaluation.
        num_envs: Number of environments stepped together.
        episodes: Numbers of the episodes.
        seeds: Seeds of the environments.
        returns: Undiscounted returns.
        discounted_returns: Discounted returns, if there is a ``gamma``.
        gamma: Discount of the discounted returns.
        lengths: Numbers of steps.
        terminated: Whether a terminal state ended the episode, not the step limit.
        reached: Numbers of steps until ``info["success"]`` was first true, 0 where it never was;
            None where the environment does not say.
        tasks: Numbers of the tasks, where the environment names any, as OGBench's do.
        scores_if_stayed: In maze2d, the scores if the point had stayed where it first reached the
            goal, which LDCQ's authors report. They are no D4RL scores.
        clipped_steps: Number of steps of all episodes whose action was clipped to the action space.
        scores: Normalised scores, 0 to 100; None where the environment has no references.
        ref_min_score: Return that scores 0.
        ref_max_score: Return that scores 100.
        ref_source: Source of the two references.
        checkpoint: Path of the checkpoint's file, if there was one.
        checkpoint_sha256: Hash of that file.
        checkpoint_rule: Rule by which the checkpoint was chosen, such as ``last``.
        config_sha256: Hash of the module's hyperparameters.
        policy_options: Options of ``module.policy``.
    """

    method: str
    env_id: str
    seed: int
    num_envs: int
    episodes: tuple[int, ...]
    seeds: tuple[int, ...]
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    terminated: tuple[bool, ...]
    clipped_steps: int
    scores: tuple[float, ...] | None = None
    reached: tuple[int, ...] | None = None
    tasks: tuple[int, ...] | None = None
    scores_if_stayed: tuple[float, ...] | None = None
    discounted_returns: tuple[float, ...] | None = None
    gamma: float | None = None
    max_episode_steps: int | None = None
    environment_differences: tuple[str, ...] = ()
    dataset: str | None = None
    dataset_sha256: str | None = None
    dataset_handling: tuple[str, ...] = ()
    ref_min_score: float | None = None
    ref_max_score: float | None = None
    ref_source: str | None = None
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    checkpoint_rule: str | None = None
    config_sha256: str | None = None
    training_seed: int | None = None
    training_steps: int | None = None
    policy_options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> EvaluationRecord:
        """Undo ``to_json``.

        Raises:
            EvaluationError: the text is no such record, or one that cannot be: a field has another
                type than it must have, a number is not finite, or there is not one entry for each
                episode. The line names the field.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise EvaluationError(f"Not an evaluation record: {reason(error)}.") from error
        if not isinstance(values, dict):
            raise EvaluationError("Not an evaluation record: it is no mapping.")
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        _require_form(plain)
        return cls(**plain)

    @classmethod
    def load(cls, path: str | Path) -> EvaluationRecord:
        """Read a file written by ``save``.

        Raises:
            EvaluationError: there is no such file, or it is no such record. The line names the
                file.
        """
        try:
            text = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise EvaluationError(
                f"{path}: cannot be read as a record: {reason(error)}."
            ) from error
        try:
            return cls.from_json(text)
        except EvaluationError as error:
            raise EvaluationError(f"{path}: {error}") from error

    def summary(self) -> dict[str, float]:
        """Return the summary of scores, returns and lengths, by name."""
        figures = {}
        for name, values in (("score", self.scores), ("return", self.returns)):
            if values is not None:
                array = np.array(values)
                figures[f"{name}_mean"] = float(array.mean())
                figures[f"{name}_std"] = float(array.std(ddof=1)) if len(array) > 1 else 0.0
                figures[f"{name}_standard_error"] = standard_error(array)
                figures[f"{name}_iqm"] = interquartile_mean(array)
        figures["length_mean"] = float(np.mean(self.lengths))
        figures["terminated_share"] = float(np.mean(self.terminated))
        figures["clipped_share"] = self.clipped_steps / sum(self.lengths)
        if self.reached is not None:
            figures["reached_share"] = float(np.mean(np.array(self.reached) > 0))
        for task, mean in self.task_scores().items():
            figures[f"score_task{task}"] = mean
        if self.scores_if_stayed is not None:
            figures["score_if_stayed_mean"] = float(np.mean(self.scores_if_stayed))
        return figures

    def task_scores(self) -> dict[int, float]:
        """Return the mean score of the episodes of each task, where there are several tasks."""
        if self.tasks is None or self.scores is None or len(set(self.tasks)) == 1:
            return {}
        tasks, scores = np.array(self.tasks), np.array(self.scores)
        return {int(task): float(scores[tasks == task].mean()) for task in np.unique(tasks)}

    def metrics(self) -> dict[str, float]:
        """Return the figures under the names that they have in MLflow: ``eval/score`` and so on.

        During a fit and afterwards, one quantity has one name.
        """
        return {f"eval/{_SHORT.get(name, name)}": figure for name, figure in self.summary().items()}

    def table(self) -> Table:
        """Return a table for the terminal: one row for scores, returns and lengths."""
        title = f"{self.method} in {self.env_id}, {len(self.episodes)} episodes, seed {self.seed}"
        table = Table(title=title)
        for heading in ("", "mean", "± s.e.", "IQM", "95 % of IQM", "min", "max"):
            table.add_column(heading, justify="right" if heading else "left")
        rows = {
            "normalised score": self.scores,
            "had it stayed at the goal": self.scores_if_stayed,
            "return": self.returns,
            "length": self.lengths,
        }
        for name, values in rows.items():
            if values is not None:
                array = np.array(values, np.float64)
                low, high = interval_within_range(array)
                cells = [array.mean(), standard_error(array), interquartile_mean(array)]
                numbers = [f"{cell:.1f}" for cell in (*cells, array.min(), array.max())]
                interval = "–" if math.isnan(low) else f"{low:.1f} … {high:.1f}"
                table.add_row(name, *numbers[:3], interval, *numbers[3:])
        remarks = [f"{self.dataset}: {sentence}." for sentence in self.dataset_handling]
        if self.reached is not None:
            count = sum(steps > 0 for steps in self.reached)
            remarks.append(f"{count} of {len(self.reached)} episodes reached the goal.")
        if by_task := self.task_scores():
            means = ", ".join(f"{task}: {mean:.1f}" for task, mean in by_task.items())
            remarks.append(f"Mean score of each task: {means}.")
        if len(self.episodes) < ENOUGH:
            remarks.append(f"Fewer than {ENOUGH} episodes have no interval (–).")
        if self.scores is None:
            remarks.append("No normalised score: this environment has no reference returns.")
        table.caption = "\n".join(remarks) or None
        return table


def _require_form(values: Mapping[str, Any]) -> None:
    """Refuse fields of which no evaluation record can be made, see ``EvaluationRecord.from_json``.

    Raises:
        EvaluationError: naming the first such field.
    """
    hints = get_type_hints(EvaluationRecord)
    for name in values:
        if name not in hints:
            raise EvaluationError(
                f"Evaluation record: unknown field '{name}'.{nearest(name, hints)}"
            )
    for item in fields(EvaluationRecord):
        if item.name not in values and item.default is item.default_factory is MISSING:
            raise _unusable(f"it has no '{item.name}'")
    for name, value in values.items():
        if not is_of(value, hints[name]):
            where, found = _culprit(name, value, hints[name])
            raise _unusable(f"{where} is {found}, but has to be {described(hints[name])}")
    episodes = len(values["episodes"])
    if not episodes:
        raise _unusable("'episodes' is empty")
    for name, value in values.items():
        if isinstance(value, tuple) and len(value) != episodes and name not in _SENTENCES:
            raise _unusable(f"'{name}' has {len(value)} entries for {episodes} episodes")
    if not all(values["lengths"]):
        raise _unusable("'lengths' has a 0, but an episode has a step at least")


def _culprit(name: str, value: Any, hint: Any) -> tuple[str, str]:
    """Return where a wrong value stands, a list's first wrong entry or itself, and its text."""
    where = f"'{name}'"
    is_list = any(get_origin(kind) is tuple for kind in (hint, *get_args(hint)))
    for number, each in enumerate(value if is_list and isinstance(value, tuple) else ()):
        if not is_of((each,), hint):
            where, value = f"entry {number} of '{name}'", each
            break
    return where, reason(ValueError(json.dumps(value)), 60)


def _unusable(why: str) -> EvaluationError:
    return EvaluationError(
        f"Not an evaluation record: {why}: evaluate the checkpoint again, or leave the record out."
    )
