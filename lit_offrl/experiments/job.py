"""Jobs: a training or an evaluation, its command, and the folder whose files say how far it is.

A job writes in its folder alone, and reads beside it those of the jobs that it depends on. Each
file appears whole or not at all:

    inputs.json              all that the result depends on, and the id of the job's MLflow run
    fit.log, evaluate.log    what the command has printed
    parts.json               wall times
    failed.json              why the last attempt failed
    fit/last.ckpt            what a killed fit is resumed from; done.json once fit has succeeded
    evaluation.json          the record, once evaluate has succeeded

A cell of a sweep has its training and its evaluation in one folder; there the names of the
evaluation's own files begin with ``evaluate-``.
"""

from __future__ import annotations

import enum
import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_offrl.common.configs import merge_configs
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import write_whole
from lit_offrl.experiments import process
from lit_offrl.experiments.config import EVALUATE_FLAGS, difference, yaml_text
from lit_offrl.experiments.inputs import data_sha256, named_checkpoints, own_environment, sha256
from lit_offrl.experiments.walltime import WallTime
from lit_offrl.tracking.runs import PARENT_TAG, forget_runs
from lit_offrl.tracking.store import is_own, redacted

CELL_TAG = "lit_offrl.cell"
"""The MLflow tag with a job's id."""
METHOD_TAG = "lit_offrl.method"
STAGE_TAG = "lit_offrl.stage"
SECONDS_TAG = "lit_offrl.seconds."
CHANGES = "changes.log"
PRUNED = "pruned.json"
"""In the folder of a fit that its watch has stopped."""
_INPUTS = "inputs.json"
_EARLIER = "cell.json"  # in folders of versions without this module
_KEPT = (".lock", CHANGES)  # the lock is held


class State(enum.StrEnum):
    """What the files of a job say."""

    NEW = "not begun"
    CHANGED = "changed"
    CUT = "interrupted"
    TRAINED = "trained"
    FAILED = "failed"
    PRUNED = "pruned"
    DONE = "done"


@dataclass
class Parent:
    """The MLflow run that the runs of jobs are children of, once it is known.

    Attributes:
        run_id: Its id; None where there is none.
    """

    run_id: str | None = None

    def tags(self) -> dict[str, str]:
        """Return the tags of a child."""
        return {} if self.run_id is None else {PARENT_TAG: self.run_id}


@dataclass(frozen=True)
class Tracking:
    """Where a job's results are logged.

    Attributes:
        uri: MLflow's store; None logs nothing.
        experiment: The MLflow experiment.
        run_name: The job's own run; None logs an evaluation to the run of its checkpoint.
        tags: The tags of that run, beside the job's id.
        parent: The run that it is a child of.
    """

    uri: str | None
    experiment: str
    run_name: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    parent: Parent = field(default_factory=Parent)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command that is run until it has succeeded.

    Attributes:
        verb: ``fit`` or ``evaluate``.
        name: The name in tables and messages.
        folder: The folder that it works in.
        tracking: Where its results are logged.
        configs: Files for ``fit --config``; later ones win.
        options: Options of the verb, which win over files.
        seed: The seed of a training.
        takes: By option, the training whose checkpoint it is given: ``ckpt_path`` of evaluate.
        of_cell: Whether it belongs to one cell of a sweep alone. Then nobody waits for another
            process that works on it, another MLflow store is another input, and an evaluation is
            known by what its training is made from, so that its checkpoint may be deleted.
        needs: What it takes of a machine: ``memory_gb`` and ``gpu_memory_gb``.
        watch: Says, in the process that waits for a training, whether it is to stop for good; the
            file PRUNED is there then.
        program: Begins the command.
    """

    verb: str
    name: str
    folder: Path
    tracking: Tracking
    configs: tuple[Path, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    takes: Mapping[str, Job] = field(default_factory=dict)
    of_cell: bool = False
    needs: Mapping[str, float] = field(default_factory=dict)
    watch: Callable[[Job], bool] | None = None
    program: tuple[str, ...] = field(default_factory=process.program)

    @property
    def is_fit(self) -> bool:
        """Whether it is a training."""
        return self.verb == "fit"

    @property
    def depends_on(self) -> tuple[Job, ...]:
        """The trainings whose checkpoints it takes."""
        return tuple(self.takes.values())

    @property
    def training(self) -> Job:
        """The training: itself, or the one whose checkpoint it evaluates."""
        return self if self.is_fit else self.takes["ckpt_path"]

    @property
    def key(self) -> str:
        """A text that no other job has."""
        return f"{self.verb} {self.folder}"

    # ---- files ---------------------------------------------------------------------------------

    @property
    def _prefix(self) -> str:
        return "" if self.is_fit or self.folder != self.training.folder else "evaluate-"

    @property
    def run(self) -> Path:
        """The folder of the fit."""
        return self.training.folder / "fit"

    @property
    def checkpoint(self) -> Path:
        """What a killed fit is resumed from, what other jobs take, and what is evaluated."""
        return self.run / "last.ckpt"

    @property
    def log(self) -> Path:
        """What the command has printed."""
        return self.folder / f"{self.verb}.log"

    @property
    def mark(self) -> Path:
        """The file that is there once the command has succeeded."""
        return self.folder / ("done.json" if self.is_fit else "evaluation.json")

    @property
    def failure(self) -> Path:
        """What went wrong in the last attempt."""
        return self.folder / f"{self._prefix}failed.json"

    @property
    def times(self) -> WallTime:
        """How long it took."""
        path = self.folder / f"{self._prefix}parts.json"
        return WallTime(path, (self.log, self.folder / "fit" / "last.ckpt"))

    def stored(self) -> dict[str, Any] | None:
        """Return the id and the inputs that ``begin`` has written; None where nothing has begun.

        Raises:
            ConfigError: The file cannot be read, or the folder is of an earlier version.
        """
        path = self.folder / f"{self._prefix}{_INPUTS}"
        try:
            stored = json.loads(path.read_text())
            return {"id": stored["id"], "inputs": _translated(dict(stored["inputs"]))}
        except FileNotFoundError:
            if not (self.folder / _EARLIER).is_file():
                return None
            raise ConfigError(
                f"{self.folder}: is of an earlier version, which wrote {_EARLIER}: finish it with"
                " that version, or move the folder away."
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: cannot be read ({error!r}): move the folder {self.folder} away."
            ) from error

    def begin(self) -> str:
        """Write what everything in the folder is made from; return the new id."""
        made: dict[str, Any] = {"id": uuid.uuid4().hex, "inputs": self.inputs()}
        path = self.folder / f"{self._prefix}{_INPUTS}"
        write_whole(path, json.dumps(made, indent=1) + "\n")
        return made["id"]

    def set_aside(self) -> str:
        """Put away what other inputs have made, unless nothing had come of it; say where it is."""
        stored = self.stored()
        assert stored is not None
        store = stored["inputs"].get("tracking_uri")
        if store is None or is_own(store, self.tracking.uri):  # others' runs count in no table here
            self.forget(stored["id"], stored["inputs"].get("experiment"))
        pattern = "evaluat*" if self._prefix else "*"
        entries = [entry for entry in self.folder.glob(pattern) if entry.name not in _KEPT]
        # What all is made from goes last: killed in between, the rest must not count as new.
        entries.sort(key=lambda entry: entry.name.endswith(_INPUTS))
        if not self.mark.is_file() and not (self.is_fit and self.checkpoint.is_file()):
            for entry in entries:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            return ""
        number = 1
        while (aside := self.folder.with_name(f"{self.folder.name}.before-{number}")).exists():
            number += 1
        aside.mkdir()
        for entry in entries:
            entry.replace(aside / entry.name)
        return f"; what was there is in {aside}"

    def forget(self, id: str, experiment: str | None = None) -> None:
        """Delete the MLflow run of an attempt that does not count, if the job has its own."""
        if self.tracking.uri is not None and self.tracking.run_name is not None:
            forget_runs(self.tracking.uri, experiment or self.tracking.experiment, CELL_TAG, id)

    # ---- state ---------------------------------------------------------------------------------

    def change(self) -> str:
        """Say how the inputs differ from those of the folder's files; "" where they do not.

        Data that are not here, now or then, are no difference: what was made of them stays.
        """
        stored = self.stored()
        if stored is None:
            return ""
        if self.is_fit or not self.of_cell:
            for source in self.depends_on:
                if source.state() != State.DONE:
                    return f"the checkpoint of {source.name} is not there yet"
        before, after = stored["inputs"], self.inputs()
        if None in (before.get("data_sha256"), after.get("data_sha256")):
            before, after = ({**each, "data_sha256": None} for each in (before, after))
        return difference(before, after)

    def state(self) -> State:
        """Read from the files how far it is; whether somebody works on it, the lock says."""
        if self.stored() is None:
            return State.NEW
        if self.change():
            return State.CHANGED
        if self.mark.is_file() and (self.checkpoint.is_file() or not self.is_fit):
            return State.DONE
        if self.is_fit and (self.folder / PRUNED).is_file():
            return State.PRUNED
        if self.failure.is_file():
            return State.FAILED
        return State.CUT if self.log.is_file() else State.NEW

    def progress(self) -> str:
        """Return how far the log is, ``1200/5500``; "" before the first step."""
        return process.steps_done(self.log)

    def reason(self) -> str:
        """Say why the last attempt failed, and where to read more."""
        try:
            said = json.loads(self.failure.read_text())
            why = f"{said['verb']} ended with {said['code']}: {said['line']}"
        except (OSError, ValueError, KeyError, TypeError):
            why = "failed"
        return f"{why} (see {self.log})"

    def fail(self, code: int) -> str:
        """Keep the exit code and the last line of a command that has failed; return the reason."""
        failure = {"verb": self.verb, "code": code, "line": process.last_line(self.log)}
        write_whole(self.failure, json.dumps(failure) + "\n")
        return self.reason()

    def score(self) -> float | None:
        """Return the record's mean normalised score, or mean return where it has no scores."""
        try:
            record = json.loads((self.folder / "evaluation.json").read_text())
            values = record.get("scores") or record["returns"]
            return sum(values) / len(values)
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            return None

    def finish(self) -> None:
        """Set the mark of success: the record, or which checkpoint the training has ended with.

        Raises:
            ConfigError: The training has no checkpoint.
        """
        if not self.is_fit:
            self._draft.replace(self.mark)
            self._draft.parent.rmdir()
        elif self.checkpoint.is_file():
            write_whole(self.mark, json.dumps({"sha256": sha256(self.checkpoint)}) + "\n")
        else:
            raise ConfigError(
                f"{self.checkpoint}: the fit wrote no checkpoint: leave"
                " trainer.enable_checkpointing and trainer.fast_dev_run alone."
            )

    def is_as_it_ended(self) -> bool:
        """Whether a training's checkpoint is the one that it has ended with."""
        try:
            return json.loads(self.mark.read_text())["sha256"] == sha256(self.checkpoint)
        except (OSError, ValueError, KeyError):
            return False

    # ---- what it is made from ------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Return the tree of the training's options.

        Raises:
            ConfigError: A config cannot be read.
        """
        return merge_configs(self.training.configs, self.training.options)

    def definition(self) -> dict[str, Any]:
        """Return what a training is made from but seed and data, without reading checkpoints."""
        taken = {option: source.definition() for option, source in self.takes.items()}
        return {"config": self.config(), "checkpoints": taken}

    def inputs(self) -> dict[str, Any]:
        """Return all that the result depends on, as plain JSON.

        Raises:
            ConfigError: A config cannot be read.
        """
        config, options = self.config(), json.loads(json.dumps(dict(self.options)))
        if self.is_fit:
            taken = {option: sha256(source.checkpoint) for option, source in self.takes.items()}
            made: dict[str, Any] = {"config": config}
            made["checkpoints"] = named_checkpoints(config) | taken
        elif self.of_cell:
            made = {"stage": self.training.definition(), "evaluate": options}
        else:
            return {"checkpoint": sha256(self.checkpoint), "options": options}
        made |= {"seed": self.training.seed, "data_sha256": data_sha256(config)}
        if self.of_cell:
            uri = redacted(str(self.tracking.uri))
            made |= {"experiment": self.tracking.experiment, "tracking_uri": uri}
        return made

    def evaluate_options(self) -> dict[str, Any]:
        """Return options of evaluate, with the environment where the data name the user's own."""
        return {**own_environment(self.config()), **self.options}

    @property
    def _draft(self) -> Path:
        return self.folder / "evaluate" / self.mark.name  # of its name, since MLflow keeps that

    def argv(self, id: str, *, anew: bool = False) -> list[str]:
        """Return the command's verb and options.

        Args:
            id: The id by which MLflow's run is found.
            anew: Whether it begins anew although there is something to resume.
        """
        tags = {**self.tracking.parent.tags(), **self.tracking.tags, CELL_TAG: id}
        uri = self.tracking.uri
        if not self.is_fit:
            return self._evaluate_argv(tags)
        argv = ["fit"]
        if self.checkpoint.is_file() and not anew:
            argv += ["--ckpt_path", str(self.checkpoint)]
        for path in self.configs:
            argv += ["--config", str(path)]
        taken = {option: str(source.checkpoint) for option, source in self.takes.items()}
        for name, value in {**self.options, **taken}.items():
            argv += [f"--{name}", yaml_text(value)]
        argv += ["--seed_everything", str(self.seed), "--trainer.logger"]
        argv += ["false" if uri is None else "lit_offrl.callbacks.MLflowRun"]
        logger = {
            "tracking_uri": uri,
            "experiment_name": self.tracking.experiment,
            "run_name": self.tracking.run_name,
            "tags": json.dumps(tags),
        }
        for name, text in logger.items() if uri is not None else ():
            argv += [f"--trainer.logger.init_args.{name}", str(text)]
        return [*argv, "--checkpoint.dirpath", str(self.run)]

    def _evaluate_argv(self, tags: dict[str, str]) -> list[str]:
        argv = ["evaluate", "--ckpt_path", str(self.checkpoint), "--output", str(self._draft)]
        for name, value in self.evaluate_options().items():
            if name in EVALUATE_FLAGS:
                argv += [f"--{name}"] if value else []
            else:
                argv += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
        if self.tracking.uri is None:
            return [*argv, "--no-mlflow"]
        if self.tracking.run_name is not None:
            for each in lineage(self.training):
                tags[f"{SECONDS_TAG}{each.name}"] = f"{each.times.seconds():.0f}"
            argv += ["--run_name", self.tracking.run_name, "--run_tags", json.dumps(tags)]
        return [*argv, "--tracking_uri", self.tracking.uri, "--mlflow"]


@dataclass(frozen=True)
class Cell:
    """A line of an experiment: a method, data and a seed, or a step of a pipeline.

    Attributes:
        name: The name in messages.
        labels: Its place in tables, by heading, with ``seed`` among them.
        jobs: The jobs that it stands for, in order; the last one is its target.
    """

    name: str
    labels: Mapping[str, str]
    jobs: tuple[Job, ...]

    @property
    def target(self) -> Job:
        """The job that is wanted."""
        return self.jobs[-1]

    def state(self) -> State:
        """Return the target's state; as long as that has not begun, the jobs before it count."""
        state = self.target.state()
        if state not in (State.NEW, State.CUT) or len(self.jobs) == 1:
            return state
        states = {job.state() for job in self.jobs[:-1]}
        if states == {State.DONE}:
            return State.TRAINED
        for worst in (State.FAILED, State.CHANGED, State.PRUNED):
            if worst in states:
                return worst
        return State.NEW if states <= {State.NEW, State.DONE} else State.CUT

    def reason(self) -> str:
        """Say why the first of its jobs has failed, or how its inputs have changed."""
        for job in self.jobs:
            state = job.state()
            if state in (State.FAILED, State.CHANGED):
                why = job.reason() if state == State.FAILED else f"{state}: {job.change()}"
                return why if job.name == self.name else f"{job.name}: {why}"
        return ""


def lineage(job: Job, leave: Callable[[Job], bool] = lambda job: False) -> list[Job]:
    """Return the jobs that a job's inputs come from, in order, and itself.

    A job that is to be left is not there, nor what it alone needs.
    """
    if leave(job):
        return []
    found = [each for source in job.depends_on for each in lineage(source, leave)]
    return list({each.key: each for each in [*found, job]}.values())


def needed(job: Job) -> list[Job]:
    """Return what is yet to be done for a job, in order, itself last; nothing if it is done."""
    return lineage(job, lambda each: each.state() == State.DONE)


def _translated(inputs: Any) -> Any:
    """Return inputs in which configs have the present names of options."""
    if not isinstance(inputs, dict):
        return inputs
    made = {key: _translated(value) for key, value in inputs.items() if key != "config"}
    return made | ({"config": merge_configs([inputs["config"]], {})} if "config" in inputs else {})
