"""A cell on disk: its folder, the state that its files are in, and its two commands."""

from __future__ import annotations

import enum
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_offrl.common.configs import merge_configs, read_config
from lit_offrl.common.errors import DatasetError
from lit_offrl.common.files import write_whole
from lit_offrl.jobs import children
from lit_offrl.jobs.files import (
    failure_reason,
    mean_score,
    read_stored,
    steps_done,
)
from lit_offrl.jobs.mlflow_runs import CELL_TAG
from lit_offrl.jobs.parts import Parts
from lit_offrl.jobs.plain import difference
from lit_offrl.jobs.words import evaluate_words, fit_words
from lit_offrl.pipelines.inputs import data_file, data_sha256, own_environment
from lit_offrl.sweeps.grid import Cell
from lit_offrl.tracking.store import redacted


class State(enum.StrEnum):
    """What the files of a cell say."""

    NEW = "not begun"
    CHANGED = "changed"
    CUT = "interrupted"
    TRAINED = "trained"
    FAILED = "failed"
    DONE = "done"


@dataclass(frozen=True)
class CellFolder:
    """A cell, and where and how it is worked on.

    The folder holds ``cell.json`` (the definition that everything else in it was made by),
    ``fit/`` (the run's folder with ``last.ckpt``), ``fit.log``, ``trained`` once fit has succeeded,
    ``evaluate.log``, ``evaluation.json`` once evaluate has succeeded, and after an error
    ``failed.json``. Files alone say how far it is; each appears whole or not at all.

    Attributes:
        cell: its place and options.
        path: the folder.
        sweep: the experiment's name.
        tracking_uri: the MLflow store.
        evaluate: options of evaluate; None where a cell is done once it is trained.
        program: begins both commands.
    """

    cell: Cell
    path: Path
    sweep: str
    tracking_uri: str
    evaluate: Mapping[str, Any] | None
    program: tuple[str, ...] = field(default_factory=children.program)

    # ---- files ---------------------------------------------------------------------------------

    @property
    def run(self) -> Path:
        """The folder of the fit."""
        return self.path / "fit"

    @property
    def checkpoint(self) -> Path:
        """What a killed fit goes on from, and what is evaluated."""
        return self.run / "last.ckpt"

    @property
    def trained(self) -> Path:
        """The mark that fit has succeeded."""
        return self.path / "trained"

    @property
    def record(self) -> Path:
        """The evaluation's record, in its place once evaluate has succeeded."""
        return self.path / "evaluation.json"

    @property
    def draft(self) -> Path:
        """Where evaluate writes the record; of the same name, since MLflow keeps the name."""
        return self.path / "evaluate" / self.record.name

    @property
    def failure(self) -> Path:
        """What went wrong in the last attempt."""
        return self.path / "failed.json"

    def log(self, verb: str) -> Path:
        """What a command has printed."""
        return self.path / f"{verb}.log"

    def parts(self, verb: str) -> Parts:
        """How long a command took."""
        return Parts(self.path / f"{verb}-parts.json", (self.log(verb), self.run / "last.ckpt"))

    # ---- what it is ----------------------------------------------------------------------------

    def definition(self) -> dict[str, Any]:
        """All that a result depends on, as plain JSON: contents of configs, not their paths.

        Raises:
            ConfigError: a config cannot be read.
        """
        definition = {
            **self.training(),
            "data_sha256": self._data_sha256(),
            "seed": self.cell.seed,
            "experiment": self.sweep,
            "tracking_uri": redacted(self.tracking_uri),
            "evaluate": None if self.evaluate is None else dict(self.evaluate),
        }
        return json.loads(json.dumps(definition, default=str))

    def training(self) -> dict[str, Any]:
        """What the training is made from, beside seed and data."""
        configs = [read_config(path) for path in self.cell.configs]
        return {"config": configs, "options": dict(self.cell.options)}

    def config(self) -> dict[str, Any]:
        """The tree of the training's options."""
        return merge_configs(self.cell.configs, self.cell.options)

    def configs(self) -> list[dict[str, Any]]:
        """The trees of all trainings' options."""
        return [self.config()]

    def _data_sha256(self) -> str | None:
        """None where the data are not here: what has been made of them stays what it is."""
        config = self.config()
        try:
            data_file(config)
        except DatasetError:
            return None
        return data_sha256(config)

    def stored(self) -> dict[str, Any] | None:
        """What ``begin`` has written; None in a folder where nothing has begun.

        Raises:
            ConfigError: the file cannot be read.
        """
        return read_stored(self.path / "cell.json", "definition")

    def begin(self, id: str | None = None) -> None:
        """Write the definition that everything in the folder is made by."""
        self.path.mkdir(parents=True, exist_ok=True)
        stored = {"id": id or uuid.uuid4().hex, "definition": self.definition()}
        write_whole(self.path / "cell.json", json.dumps(stored, indent=1) + "\n")

    def change(self) -> str:
        """Say how the definition differs from that of the folder's files; "" where it does not."""
        return "" if self.stored() is None else difference(*self.definitions())

    def definitions(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The definition of the folder's files and this one; unknown data are those of the other.

        Raises:
            ConfigError: a config or the file cannot be read.
        """
        stored = self.stored()
        assert stored is not None
        before, after = stored["definition"], self.definition()
        if None in (before.get("data_sha256"), after["data_sha256"]):
            before["data_sha256"] = after["data_sha256"] = None
        return before, after

    def is_trained(self) -> bool:
        """Whether fit has succeeded, and what it made is there still."""
        return self.trained.is_file() and self.checkpoint.is_file()

    def state(self) -> State:
        """Tell from the files how far the cell is; whether somebody works on it, a lock says."""
        if self.stored() is None:
            return State.NEW
        if self.change():
            return State.CHANGED
        if self.record.is_file() or (self.evaluate is None and self.is_trained()):
            return State.DONE
        if self.failure.is_file():
            return State.FAILED
        if self.is_trained():
            return State.TRAINED
        return State.CUT if self.log("fit").is_file() else State.NEW

    def score(self) -> float | None:
        """Mean normalised score of the record, or mean return where there are no references."""
        return mean_score(self.record)

    def steps(self) -> str:
        """How far the fit's log is, ``1200/5500``; "" before its first step."""
        return steps_done(self.log("fit"))

    def reason(self) -> str:
        """Say why the last attempt failed."""
        return failure_reason(self.failure)

    # ---- commands ------------------------------------------------------------------------------

    def fit(self, *, id: str, resume: bool) -> list[str]:
        """Words of the training's command, after the program's."""
        logger = {
            "tracking_uri": self.tracking_uri,
            "experiment_name": self.sweep,
            "run_name": self.cell.name.replace("/", "-"),
            "tags": json.dumps(self.tags(id)),
        }
        return fit_words(
            self.cell.configs,
            self.cell.options,
            seed=self.cell.seed,
            run=self.run,
            resume=self.checkpoint if resume else None,
            logger=logger,
        )

    def tags(self, id: str) -> dict[str, str]:
        """What MLflow's run of the result is found by."""
        labels = self.cell.labels
        tags = {"sweep": self.sweep, "method": labels["method"], "dataset": labels["dataset"]}
        tags |= {f"option.{axis}": label for axis, label in self.cell.axes.items()}
        return {f"lit_offrl.{name}": label for name, label in tags.items()} | {CELL_TAG: id}

    def trainings(self) -> list[list[str]]:
        """Words of the trainings from their beginning, whose options are to be checked."""
        return [self.fit(id="checked", resume=False)]

    def commands(self, id: str) -> list[list[str]]:
        """Words of all commands, in order."""
        fit = self.fit(id=id, resume=self.checkpoint.is_file())
        return [fit] if self.evaluate is None else [fit, self.evaluation(id)]

    def evaluation(self, id: str) -> list[str]:
        """Words of the evaluation's command, after the program's."""
        return evaluate_words(
            self.checkpoint, self.draft, self.evaluate_options(), tracking_uri=self.tracking_uri
        )

    def evaluate_options(self) -> dict[str, Any]:
        """The options of evaluate, with the environment where the data's options name one's own."""
        return {**own_environment(self.config()), **(self.evaluate or {})}
