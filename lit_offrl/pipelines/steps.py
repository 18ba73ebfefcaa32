"""A step on disk, a stage or an evaluation: its folder and the state that the files are in.

A folder holds ``inputs.json`` (all that its result depends on), the log, ``parts.json`` (how long
it took) and after an error ``failed.json``; a stage's also ``fit/`` with ``last.ckpt`` and, once
fit has succeeded, ``done.json``; an evaluation's, once evaluate has succeeded, ``evaluation.json``.
Files alone say how far it is; each appears whole or not at all.
"""

from __future__ import annotations

import enum
import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lit_offrl.common.files import write_whole
from lit_offrl.jobs import children
from lit_offrl.jobs.files import failure_reason, read_stored, steps_done
from lit_offrl.jobs.parts import Parts
from lit_offrl.jobs.plain import difference

INPUTS = "inputs.json"


class State(enum.StrEnum):
    """What the files of a folder say."""

    NEW = "not begun"
    CHANGED = "changed"
    CUT = "interrupted"
    FAILED = "failed"
    DONE = "done"


@dataclass(frozen=True)
class Where:
    """Where results go.

    Attributes:
        experiment: MLflow's.
        tracking_uri: its store; None logs nothing.
        tags: of all runs.
        seed: of all trainings.
        program: begins all commands.
    """

    experiment: str
    tracking_uri: str | None
    tags: Mapping[str, str]
    seed: int
    program: tuple[str, ...] = field(default_factory=children.program)


@dataclass(frozen=True)
class StepFolder(ABC):
    """A command that is run until it has succeeded.

    Attributes:
        name: of the stage or evaluation.
        path: the folder.
        where: its results go.
    """

    name: str
    path: Path
    where: Where

    verb: ClassVar[str]

    # ---- what a kind of step gives -------------------------------------------------------------

    @property
    @abstractmethod
    def sources(self) -> tuple[StepFolder, ...]:
        """The stages whose checkpoints it takes."""

    @property
    @abstractmethod
    def mark(self) -> Path:
        """The file that is there once the command has succeeded."""

    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """All that the result depends on, as plain JSON.

        Raises:
            LitOffRLError: a config or the data cannot be read.
        """

    @abstractmethod
    def words(self, id: str, *, anew: bool = False) -> list[str]:
        """Words of the command, after the program's.

        Args:
            id: that MLflow gets.
            anew: whether it begins anew, also where there is something to go on from.
        """

    @abstractmethod
    def finish(self) -> None:
        """Set the mark."""

    # ---- files ---------------------------------------------------------------------------------

    @property
    def log(self) -> Path:
        """What the command has printed."""
        return self.path / f"{self.verb}.log"

    @property
    def failure(self) -> Path:
        """What went wrong in the last attempt."""
        return self.path / "failed.json"

    @property
    def parts(self) -> Parts:
        """How long it took."""
        return Parts(self.path / "parts.json", (self.log, self.path / "fit" / "last.ckpt"))

    def stored(self) -> dict[str, Any] | None:
        """What ``begin`` has written; None in a folder where nothing has begun.

        Raises:
            ConfigError: the file cannot be read.
        """
        return read_stored(self.path / INPUTS, "inputs")

    def begin(self) -> str:
        """Write what everything in the folder is made from; return the id that MLflow gets."""
        id = uuid.uuid4().hex
        stored = {"id": id, "inputs": self.inputs()}
        write_whole(self.path / INPUTS, json.dumps(stored, indent=1) + "\n")
        return id

    # ---- state ---------------------------------------------------------------------------------

    def change(self) -> str:
        """Say how the inputs differ from those of the folder's files; "" where they do not."""
        stored = self.stored()
        if stored is None:
            return ""
        for source in self.sources:
            if source.state() != State.DONE:
                return f"the checkpoint of {source.name} is not there yet"
        return difference(stored["inputs"], self.inputs())

    def state(self) -> State:
        """Tell from the files how far it is; whether somebody works on it, a lock says."""
        if self.stored() is None:
            return State.NEW
        if self.change():
            return State.CHANGED
        if self.mark.is_file():
            return State.DONE
        if self.failure.is_file():
            return State.FAILED
        return State.CUT if self.log.is_file() else State.NEW

    def steps(self) -> str:
        """How far a fit's log is, ``1200/5500``; "" before its first step."""
        return steps_done(self.log)

    def reason(self) -> str:
        """Say why the last attempt failed, and where more is to be read."""
        return f"{failure_reason(self.failure)} (see {self.log})"
