"""A pipeline's stages in order, and the evaluations that it ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.jobs.reading import FileReader

SECTIONS = ("model", "data", "trainer", "checkpoint", "evaluation")
"""What options of fit begin with; no stage can be called so."""


@dataclass(frozen=True)
class Stage:
    """One training.

    Attributes:
        name: of the stage.
        configs: files for ``fit --config``, later ones win.
        options: options of ``fit``, which win over files.
        checkpoints: by option, the earlier stage whose checkpoint is given to it.
    """

    name: str
    configs: tuple[Path, ...]
    options: Mapping[str, Any]
    checkpoints: Mapping[str, str]


@dataclass(frozen=True)
class Evaluation:
    """One way to act by a stage's checkpoint, scored.

    Attributes:
        name: what the method is called in tables.
        stage: whose checkpoint acts.
        options: of ``lit-offrl evaluate``.
    """

    name: str
    stage: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Pipeline:
    """What a file says.

    Attributes:
        name: of the MLflow experiment, and of the folder.
        seed: of all trainings.
        stages: each after those whose checkpoints it takes.
        evaluations: of stages.
    """

    name: str
    seed: int
    stages: tuple[Stage, ...]
    evaluations: tuple[Evaluation, ...]

    def only(self, names: Sequence[str]) -> Pipeline:
        """Return named stages and evaluations, with all stages that they need; all for none.

        Raises:
            ConfigError: there is no such stage or evaluation.
        """
        if not names:
            return self
        stages = {stage.name: stage for stage in self.stages}
        evaluations = {evaluation.name: evaluation for evaluation in self.evaluations}
        known = [*stages, *evaluations]
        for name in names:
            if name not in known:
                hint = nearest(name, known) or f" There are {', '.join(known)}."
                raise ConfigError(f"--only {name}: there is no such stage or evaluation.{hint}")
        needed: set[str] = set()
        waiting = [evaluations[name].stage if name in evaluations else name for name in names]
        while waiting:
            name = waiting.pop()
            needed.add(name)
            waiting += [each for each in stages[name].checkpoints.values() if each not in needed]
        return replace(
            self,
            stages=tuple(stage for stage in self.stages if stage.name in needed),
            evaluations=tuple(each for each in self.evaluations if each.name in names),
        )

    def overlay(self, configs: Sequence[Path]) -> Pipeline:
        """Return the pipeline with further files of fit over those of each stage."""
        stages = [replace(stage, configs=(*stage.configs, *configs)) for stage in self.stages]
        return replace(self, stages=tuple(stages))

    def override(self, options: Mapping[str, Any], reader: FileReader, key: str) -> Pipeline:
        """Return the pipeline with options that win over the file's.

        Args:
            options: ``STAGE.OPTION`` for one stage, ``OPTION`` of fit for all of them,
                ``EVALUATION.OPTION`` for one evaluation, ``evaluate.OPTION`` for all of them.
            reader: checks them, and names their origin in messages.
            key: of the mapping, for messages.

        Raises:
            ConfigError: a name that begins otherwise, or is no option.
        """
        stages = {stage.name: dict[str, Any]() for stage in self.stages}
        evaluations = {each.name: dict[str, Any]() for each in self.evaluations}
        common: dict[str, Any] = {}
        evaluate: dict[str, Any] = {}
        places = {**stages, **evaluations, **dict.fromkeys(SECTIONS, common), "evaluate": evaluate}
        for name, value in options.items():
            first, dot, rest = name.partition(".")
            if first not in places or not dot:
                hint = nearest(first, places) or f" Begin with {', '.join(places)}."
                raise ConfigError(f"{reader.path}: {key}{name}: there is no '{first}'.{hint}")
            places[first][name if first in SECTIONS else rest] = value
        for first, given in (("evaluate", evaluate), *evaluations.items()):
            reader.evaluate(f"{key}{first}", given)
        common = reader.options(f"{key}options", common)
        return replace(
            self,
            stages=tuple(
                checked(
                    replace(
                        stage,
                        options={
                            **stage.options,
                            **common,
                            **reader.options(f"{key}{stage.name}", stages[stage.name]),
                        },
                    ),
                    reader,
                )
                for stage in self.stages
            ),
            evaluations=tuple(
                replace(each, options={**each.options, **evaluate, **evaluations[each.name]})
                for each in self.evaluations
            ),
        )


def checked(stage: Stage, reader: FileReader) -> Stage:
    """Return a stage none of whose options is given twice.

    Raises:
        ConfigError: an option of its own takes a checkpoint too.
    """
    for option, source in stage.checkpoints.items():
        if option in stage.options:
            raise ConfigError(
                f"{reader.path}: {stage.name}: '{option}' takes the checkpoint of '{source}', and"
                " is among the options too: give one of them."
            )
    return stage
