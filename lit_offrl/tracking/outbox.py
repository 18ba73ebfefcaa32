"""What has yet to be sent to an MLflow run, in memory and in a file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from lit_offrl.common.errors import FileError, reason
from lit_offrl.common.files import write_whole

_FILE = re.compile(r"mlflow-unsent-([\w-]+)\.json")


CONTEXT = "mlflow.data.context"
"""Tag of a dataset: what a run has taken it for."""


_REFUSED = re.compile(r"[^\w/. -]", re.ASCII)  # by MLflow, in a metric's name


def metric_name(name: str) -> str:
    """Return a metric's name without the letters that MLflow refuses."""
    return _REFUSED.sub("", name)


class Point(NamedTuple):
    """A metric's value at an optimiser's step."""

    name: str
    value: float  # not NaN
    step: int
    stamp: int  # when it was logged, in milliseconds since 1970


class Artifact(NamedTuple):
    """A file or folder to be copied to a folder of the run's artifacts, "" for the topmost."""

    path: str
    folder: str


class Input(NamedTuple):
    """A dataset that a run has taken, as MLflow has it."""

    name: str
    digest: str  # at most 36 letters
    source_type: str
    source: str  # as the next two JSON
    schema: str
    profile: str
    context: str  # what for, such as training


class LoggedModel(NamedTuple):
    """A model that comes from a run: its files, and what it has scored."""

    key: str  # by which it is found again
    name: str
    kind: str
    folder: str
    params: dict[str, str]
    tags: dict[str, str]
    step: int
    metrics: dict[str, float]
    dataset: str  # that the metrics are of
    digest: str
    stamp: int


@dataclass
class Outbox:
    """What waits, each kind in the order in which it came.

    It grows as the run's curves do, which are in memory as well.
    """

    points: list[Point] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: list[Artifact] = field(default_factory=list)
    inputs: list[Input] = field(default_factory=list)
    models: list[LoggedModel] = field(default_factory=list)
    note: str | None = None  # the run's description, unless its reader has written another one
    status: str | None = None  # once the run has ended: FINISHED, FAILED or KILLED
    ended: int | None = None  # when it did, in milliseconds since 1970

    def __bool__(self) -> bool:
        return bool(self.status) or not self.is_only_the_end()

    def is_only_the_end(self) -> bool:
        """Whether all that waits is how the run ended."""
        facts = (self.points, self.params, self.tags, self.inputs, self.note)
        return not any((*facts, self.artifacts, self.models))

    def __str__(self) -> str:
        counts = {
            "metric values": len(self.points),
            "parameters and tags": len(self.params) + len(self.tags),
            "files": len(self.artifacts),
            "datasets": len(self.inputs),
            "models": len(self.models),
            "description": int(self.note is not None),
        }
        said = [f"{number} {name}" for name, number in counts.items() if number]
        said += ["how the run ended"] * bool(self.status)
        return ", ".join(said) or "nothing"

    def add(self, other: Outbox) -> None:
        """Take in what another one holds, but for how the run ended."""
        self.points += other.points
        self.artifacts += other.artifacts
        self.inputs += other.inputs
        self.models += other.models
        self.note = self.note if self.note is not None else other.note
        for mine, others in ((self.params, other.params), (self.tags, other.tags)):
            for name, value in others.items():
                mine.setdefault(name, value)

    def copy(self) -> Outbox:
        """Return its current content, even if another thread changes it meanwhile."""
        kinds = ("points", "params", "tags", "artifacts", "inputs", "models")
        return replace(self, **{kind: getattr(self, kind).copy() for kind in kinds})

    def save(self, folder: Path, run_id: str) -> Path:
        """Keep it in a run's folder, whole or not at all; return the file.

        Raises:
            FileError: it cannot be written.
        """
        here = folder.resolve()

        def within(path: str) -> str:
            return os.path.relpath(os.path.realpath(path), here)

        artifacts = [(within(path), to) for path, to in self.artifacts]
        models = [each._replace(folder=within(each.folder)) for each in self.models]
        facts = {"run_id": run_id, **asdict(self), "artifacts": artifacts, "models": models}
        path = unsent_file(folder, run_id)
        write_whole(path, json.dumps(facts) + "\n")
        return path


def unsent_file(folder: Path, run_id: str) -> Path:
    """Return where a run's folder keeps what could not be sent to an MLflow run."""
    return folder / f"mlflow-unsent-{run_id}.json"


def unsent_runs(folder: Path) -> list[str]:
    """Return the ids of the MLflow runs for which a run's folder keeps something."""
    found = (_FILE.fullmatch(path.name) for path in sorted(folder.glob("mlflow-unsent-*.json")))
    return [match[1] for match in found if match is not None]


def load_outbox(folder: Path, run_id: str) -> Outbox:
    """Read what a run's folder keeps for an MLflow run; nothing where there is no file.

    Files that lie outside of the run's folder are left out: a file that came from elsewhere must
    not have the user's own sent anywhere.

    Raises:
        FileError: the file is damaged.
    """
    path = unsent_file(folder, run_id)
    try:
        found = TypeAdapter(Outbox).validate_python(json.loads(path.read_text()))
    except FileNotFoundError:
        return Outbox()
    except (OSError, ValueError) as error:
        raise FileError(
            f"{path}: what MLflow has yet to get cannot be read ({reason(error)}): remove the file;"
            " the checkpoint keeps the metrics."
        ) from None
    here = folder.resolve()
    found.artifacts = [
        Artifact(str(folder / name), place)
        for name, place in found.artifacts
        if (folder / name).resolve().is_relative_to(here)
    ]
    found.models = [
        each._replace(folder=str(folder / each.folder))
        for each in found.models
        if (folder / each.folder).resolve().is_relative_to(here)
    ]
    return found


def curve_points(history: Mapping[str, Iterable[Sequence[float]]], stamp: int) -> list[Point]:
    """Return the points of a checkpoint's curves, by step, as of one time."""
    points = [
        Point(name, float(value), int(step), stamp)
        for name, line in history.items()
        for step, value in line
        if value == value  # not NaN
    ]
    return sorted(points, key=lambda point: point.step)
