"""A cell whose method is a pipeline: its stages lie where other methods find them too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_offrl.jobs.words import evaluate_words
from lit_offrl.pipelines.folders import StageFolder, lineage, seconds_tags, stage_folders
from lit_offrl.pipelines.steps import State as StageState
from lit_offrl.pipelines.steps import Where
from lit_offrl.sweeps.cell import CellFolder, State
from lit_offrl.sweeps.grid import Cell, Sweep


@dataclass(frozen=True)
class StagedCell(CellFolder):
    """A cell that evaluates what a pipeline has trained, in an MLflow run of its own.

    Its folder holds what that of any cell holds but the fit.

    Attributes:
        source: the stage whose checkpoint acts.
    """

    source: StageFolder | None = None

    @property
    def stages(self) -> list[StageFolder]:
        """The stages that the checkpoint comes from, in order."""
        assert self.source is not None
        return lineage(self.source)

    @property
    def checkpoint(self) -> Path:
        """What is evaluated."""
        return self.stages[-1].checkpoint

    def training(self) -> dict[str, Any]:
        """What the last stage is made from, and those before it."""
        return {"stage": self.stages[-1].definition()}

    def config(self) -> dict[str, Any]:
        """The tree of the last stage's options."""
        return self.stages[-1].config()

    def configs(self) -> list[dict[str, Any]]:
        """The trees of all stages' options."""
        return [stage.config() for stage in self.stages]

    def state(self) -> State:
        """As any cell's; as long as the stages are not all trained, they say how far it is."""
        state = super().state()
        if state not in (State.NEW, State.CUT):
            return state
        states = [stage.state() for stage in self.stages]
        if StageState.FAILED in states:
            return State.FAILED
        return State.NEW if {*states} <= {StageState.NEW, StageState.DONE} else State.CUT

    def reason(self) -> str:
        """Say why the last attempt failed, of a stage or of the evaluation."""
        for stage in self.stages:
            if stage.failure.is_file():
                return f"{stage.name}: {stage.reason()}"
        return super().reason()

    def steps(self) -> str:
        """How far the first stage is that is not done, ``stage1 1200/5500``."""
        for stage in self.stages:
            if not stage.mark.is_file():
                return f"{stage.name} {stage.steps()}".strip()
        return ""

    def trainings(self) -> list[list[str]]:
        """Words of the trainings that have yet to begin."""
        stages = [stage for stage in self.stages if not stage.checkpoint.is_file()]
        return [stage.words("checked") for stage in stages]

    def commands(self, id: str) -> list[list[str]]:
        """Words of all commands, in order."""
        stages = []
        for stage in self.stages:
            stored = stage.stored()
            stages.append(stage.words(stored["id"] if stored else "ID"))
        return stages if self.evaluate is None else [*stages, self.evaluation(id)]

    def evaluation(self, id: str) -> list[str]:
        """Words of the evaluation's command, which logs to a run of its own."""
        return evaluate_words(
            self.checkpoint,
            self.draft,
            self.evaluate_options(),
            tracking_uri=self.tracking_uri,
            run_name=self.cell.name.replace("/", "-"),
            run_tags={**self.tags(id), **seconds_tags(self.stages[-1])},
        )


def cell_folder(cell: Cell, sweep: Sweep, output: Path, tracking_uri: str) -> CellFolder:
    """Return the folder of a cell of either kind.

    Args:
        cell: of the sweep.
        sweep: what it is of.
        output: the sweep's folder.
        tracking_uri: the MLflow store.

    Raises:
        ConfigError: a config of a stage cannot be read.
    """
    path = output / cell.name
    if cell.pipeline is None:
        return CellFolder(cell, path, sweep.name, tracking_uri, sweep.evaluate)
    tags = {"lit_offrl.sweep": sweep.name, "lit_offrl.dataset": cell.labels["dataset"]}
    where = Where(sweep.name, tracking_uri, tags, cell.seed)
    stages = stage_folders(cell.pipeline, output / cell.shared, where, hashed=True)
    (evaluation,) = cell.pipeline.evaluations
    options = None if sweep.evaluate is None else {**evaluation.options, **sweep.evaluate}
    source = stages[evaluation.stage]
    return StagedCell(cell, path, sweep.name, tracking_uri, options, source=source)
