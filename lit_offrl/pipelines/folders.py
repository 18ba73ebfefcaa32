"""Stages and evaluations on disk: their commands, and what these depend on and leave behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_offrl.common.configs import merge_configs
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import file_sha256, write_whole
from lit_offrl.jobs.files import mean_score
from lit_offrl.jobs.mlflow_runs import CELL_TAG
from lit_offrl.jobs.words import evaluate_words, fit_words
from lit_offrl.pipelines.inputs import (
    data_sha256,
    digest,
    named_checkpoints,
    own_environment,
)
from lit_offrl.pipelines.plan import Evaluation, Pipeline, Stage
from lit_offrl.pipelines.steps import State, StepFolder, Where

STAGE_TAG = "lit_offrl.stage"
SECONDS_TAG = "lit_offrl.seconds."


@dataclass(frozen=True)
class StageFolder(StepFolder):
    """One stage.

    Attributes:
        stage: what it is.
        source_of: by option, whose checkpoint it takes.
    """

    stage: Stage
    source_of: Mapping[str, StageFolder]

    verb = "fit"

    @property
    def sources(self) -> tuple[StageFolder, ...]:
        """The stages whose checkpoints it takes."""
        return tuple(self.source_of.values())

    @property
    def run(self) -> Path:
        """The folder of the fit."""
        return self.path / "fit"

    @property
    def checkpoint(self) -> Path:
        """What a killed fit goes on from, and what later stages take."""
        return self.run / "last.ckpt"

    @property
    def mark(self) -> Path:
        """Says which checkpoint the stage ended with."""
        return self.path / "done.json"

    def config(self) -> dict[str, Any]:
        """The tree of its options.

        Raises:
            ConfigError: a config cannot be read.
        """
        return merge_configs(self.stage.configs, self.stage.options)

    def definition(self) -> dict[str, Any]:
        """What it is made from but the seed, without looking at data and checkpoints.

        Raises:
            ConfigError: a config cannot be read.
        """
        return {
            "config": self.config(),
            "checkpoints": {name: each.definition() for name, each in self.source_of.items()},
        }

    def inputs(self) -> dict[str, Any]:
        """The config, the seed, and the sha256 of the data and of the checkpoints."""
        config = self.config()
        return {
            "config": config,
            "seed": self.where.seed,
            "data_sha256": data_sha256(config),
            "checkpoints": named_checkpoints(config)
            | {name: each.sha256() for name, each in self.source_of.items()},
        }

    def require_data(self) -> None:
        """See that the data are there.

        Raises:
            DatasetError: they are not.
        """
        data_sha256(self.config())

    def sha256(self) -> str:
        """The checkpoint's; from ``done.json`` as long as the file has not changed."""
        stat = self.checkpoint.stat()
        known = self._ended_with()
        same = known.get("identity") == [stat.st_size, stat.st_mtime_ns]
        return known["sha256"] if same else file_sha256(self.checkpoint)

    def _ended_with(self) -> dict[str, Any]:
        try:
            return json.loads(self.mark.read_text())
        except (OSError, ValueError):
            return {}

    def is_as_it_ended(self) -> bool:
        """Whether the checkpoint is the one that the stage ended with."""
        return self._ended_with().get("sha256") == self.sha256()

    def state(self) -> State:
        """As any step's; without its checkpoint a stage is not done."""
        state = super().state()
        return State.CUT if state == State.DONE and not self.checkpoint.is_file() else state

    def words(self, id: str, *, anew: bool = False) -> list[str]:
        """Words of the training's command, which goes on from its checkpoint if there is one."""
        logger = None
        if self.where.tracking_uri is not None:
            tags = {**self.where.tags, STAGE_TAG: self.name, CELL_TAG: id}
            logger = {
                "tracking_uri": self.where.tracking_uri,
                "experiment_name": self.where.experiment,
                "run_name": f"{self.name}-seed{self.where.seed}",
                "tags": json.dumps(tags),
            }
        taken = {name: str(each.checkpoint) for name, each in self.source_of.items()}
        return fit_words(
            self.stage.configs,
            {**self.stage.options, **taken},
            seed=self.where.seed,
            run=self.run,
            resume=self.checkpoint if self.checkpoint.is_file() and not anew else None,
            logger=logger,
        )

    def finish(self) -> None:
        """Write down which checkpoint it is.

        Raises:
            ConfigError: there is none.
        """
        if not self.checkpoint.is_file():
            raise ConfigError(
                f"{self.checkpoint}: the fit wrote no checkpoint: leave"
                " trainer.enable_checkpointing and trainer.fast_dev_run alone."
            )
        stat = self.checkpoint.stat()
        done = {
            "sha256": file_sha256(self.checkpoint),
            "identity": [stat.st_size, stat.st_mtime_ns],
        }
        write_whole(self.mark, json.dumps(done) + "\n")


@dataclass(frozen=True)
class EvaluationFolder(StepFolder):
    """One evaluation.

    Attributes:
        evaluation: what it is.
        source: whose checkpoint acts.
    """

    evaluation: Evaluation
    source: StageFolder

    verb = "evaluate"

    @property
    def sources(self) -> tuple[StageFolder, ...]:
        """The stage whose checkpoint acts."""
        return (self.source,)

    @property
    def mark(self) -> Path:
        """The record."""
        return self.path / "evaluation.json"

    @property
    def draft(self) -> Path:
        """Where evaluate writes the record; of the same name, since MLflow keeps the name."""
        return self.path / "evaluate" / self.mark.name

    def inputs(self) -> dict[str, Any]:
        """The checkpoint's sha256 and the options."""
        options = json.loads(json.dumps(dict(self.evaluation.options)))
        return {"checkpoint": self.source.sha256(), "options": options}

    def words(self, id: str, *, anew: bool = False) -> list[str]:
        """Words of the evaluation's command, logged to a run of its own."""
        tags = {"lit_offrl.method": self.name, **self.where.tags, CELL_TAG: id}
        return evaluate_words(
            self.source.checkpoint,
            self.draft,
            self.evaluate_options(),
            tracking_uri=self.where.tracking_uri,
            run_name=f"{self.name}-seed{self.where.seed}",
            run_tags={**tags, **seconds_tags(self.source)},
        )

    def evaluate_options(self) -> dict[str, Any]:
        """The options of evaluate, with the environment where the data's options name one's own."""
        return {**own_environment(self.source.config()), **self.evaluation.options}

    def finish(self) -> None:
        """Put the record in its place."""
        self.draft.replace(self.mark)
        self.draft.parent.rmdir()

    def score(self) -> float | None:
        """Mean normalised score of the record, or mean return where there are no references."""
        return mean_score(self.mark)


def lineage(stage: StageFolder) -> list[StageFolder]:
    """Return the stages that a stage's checkpoint comes from, in order, and itself."""
    found: list[StageFolder] = []
    for source in stage.sources:
        found += [each for each in lineage(source) if each not in found]
    return [*found, stage]


def seconds_tags(stage: StageFolder) -> dict[str, str]:
    """Return tags that say how long each stage behind a checkpoint took."""
    return {f"{SECONDS_TAG}{each.name}": f"{each.parts.seconds():.0f}" for each in lineage(stage)}


def stage_folders(
    pipeline: Pipeline, root: Path, where: Where, *, hashed: bool = False
) -> dict[str, StageFolder]:
    """Return the stages' folders by name.

    Args:
        pipeline: what to lay out.
        root: the folder that they are in.
        where: results go.
        hashed: whether a folder's name tells what its stage is made from but the seed, so that
            pipelines share stages that are the same and keep apart those that are not.

    Raises:
        ConfigError: a config cannot be read.
    """
    folders: dict[str, StageFolder] = {}
    for stage in pipeline.stages:
        source_of = {option: folders[name] for option, name in stage.checkpoints.items()}
        folder = StageFolder(stage.name, root / stage.name, where, stage, source_of)
        if hashed:
            path = root / f"{stage.name}-{digest(folder.definition())}"
            folder = StageFolder(stage.name, path, where, stage, source_of)
        folders[stage.name] = folder
    return folders


def step_folders(pipeline: Pipeline, root: Path, where: Where) -> list[StepFolder]:
    """Return the folders of all stages, and then of all evaluations, each named as it is."""
    stages = stage_folders(pipeline, root, where)
    evaluations = [
        EvaluationFolder(each.name, root / each.name, where, each, stages[each.stage])
        for each in pipeline.evaluations
    ]
    return [*stages.values(), *evaluations]
