"""Pipelines: stages that take each other's checkpoints, and evaluations; from a file to jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lit_offrl.common.configs import read_yaml
from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.experiments.config import NAME, FileReader, merge
from lit_offrl.experiments.inputs import digest
from lit_offrl.experiments.job import METHOD_TAG, STAGE_TAG, Job, Tracking

CHECKPOINT = "ckpt_path"
"""The option of evaluate that takes a stage's checkpoint."""
DATASET = "data.init_args.dataset"
"""The option of fit that a file's dataset stands for."""
SECTIONS = ("model", "data", "trainer", "checkpoint", "evaluation")
"""What options of fit begin with; no stage can be called so."""
# The keys of a file, and how deep each is merged with that of a file below; what lies deeper, as
# the value of an option, is replaced.
_KEYS = {"base": 0, "name": 0, "seed": 0, "dataset": 0, "config": 0, "options": 1, "needs": 1,
         "stages": 3, "evaluate": 1, "evaluations": 2}  # fmt: skip
_STAGE_KEYS = ("config", "options", "checkpoints", "needs")
_RESERVED = (*SECTIONS, "evaluate", "seed_everything", "config", "ckpt_path")


@dataclass(frozen=True)
class Part:
    """What a name in a file brings: a stage, an evaluation, or a label of a sweep's axis.

    Attributes:
        label: The name.
        configs: Files for ``fit --config``; later ones win.
        options: Options of fit, which win over files, or of evaluate.
        takes: By option, the stage whose checkpoint it is given.
        needs: What it takes of a machine; see ``Job``.
    """

    label: str
    configs: tuple[Path, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    takes: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_stage(self) -> bool:
        """Whether it is no evaluation."""
        return CHECKPOINT not in self.takes


@dataclass(frozen=True)
class Pipeline:
    """What a file says.

    Attributes:
        name: The MLflow experiment, and the folder.
        seed: The seed of all trainings.
        parts: Stages, each after those whose checkpoints it takes, and then evaluations.
    """

    name: str
    seed: int
    parts: tuple[Part, ...]

    def only(self, names: Sequence[str]) -> Pipeline:
        """Return named stages and evaluations, with all stages that they need; all for no name.

        Raises:
            ConfigError: There is no such stage or evaluation.
        """
        known, needed = [part.label for part in self.parts], {*names}
        for name in names:
            if name not in known:
                hint = nearest(name, known) or f" There are {', '.join(known)}."
                raise ConfigError(f"--only {name}: there is no such stage or evaluation.{hint}")
        for part in reversed(self.parts):
            needed |= {*part.takes.values()} if part.label in needed else set()
        chosen = tuple(part for part in self.parts if part.label in needed or not names)
        return replace(self, parts=chosen)

    def override(
        self,
        options: Mapping[str, Any],
        reader: FileReader,
        key: str = "",
        configs: Sequence[Path] = (),
        needs: Mapping[str, float] | None = None,
    ) -> Pipeline:
        """Return the pipeline with options and files of fit that win over its own.

        Args:
            options: ``STAGE.OPTION`` for one stage, ``OPTION`` of fit for all of them,
                ``EVALUATION.OPTION`` for one evaluation, ``evaluate.OPTION`` for all of them.
            reader: Checks them, and names their origin in messages.
            key: Begins their names in messages.
            configs: Files for all stages.
            needs: What each of them takes of a machine.

        Raises:
            ConfigError: A name begins otherwise, or is no option.
        """
        names = [part.label for part in self.parts]
        known = (*names, *SECTIONS, "evaluate")
        given: dict[str, dict[str, Any]] = {name: {} for name in (*names, "options", "evaluate")}
        for name, value in options.items():
            first, dot, rest = name.partition(".")
            if first not in known or not dot:
                raise reader.unknown(f"{key}{name}", "there is no", first, known)
            first, rest = ("options", name) if first in SECTIONS else (first, rest)
            given[first][rest] = value
        fit = reader.options(f"{key}options", given["options"])
        evaluate = reader.evaluate(f"{key}evaluate", given["evaluate"])
        parts = []
        for part in self.parts:
            check, common = (reader.options, fit) if part.is_stage else (reader.evaluate, evaluate)
            own = check(f"{key}{part.label}", given[part.label])
            part = replace(part, options={**part.options, **common, **own})
            if part.is_stage:
                needed = {**part.needs, **(needs or {})}
                part = replace(part, configs=(*part.configs, *configs), needs=needed)
            parts.append(_checked(part, reader))
        return replace(self, parts=tuple(parts))

    def jobs(self, root: Path, tracking: Tracking, seed: int, hashed: bool = False) -> list[Job]:
        """Return the jobs of all parts, in order.

        Args:
            root: The folder of their folders.
            tracking: Where they are logged; each has a run and tags of its own there.
            seed: The seed of all.
            hashed: Whether a folder's name tells what its stage is made from but seed and data, so
                that pipelines share equal stages and keep apart those that differ.

        Raises:
            ConfigError: A config cannot be read.
        """
        jobs: dict[str, Job] = {}
        for part in self.parts:
            tags = {STAGE_TAG if part.is_stage else METHOD_TAG: part.label, **tracking.tags}
            job = Job(
                verb="fit" if part.is_stage else "evaluate",
                name=part.label,
                folder=root / part.label,
                tracking=replace(tracking, run_name=f"{part.label}-seed{seed}", tags=tags),
                configs=part.configs,
                options=part.options,
                seed=seed,
                takes={option: jobs[name] for option, name in part.takes.items()},
                needs=part.needs,
            )
            if hashed and part.is_stage:
                job = replace(job, folder=root / f"{part.label}-{digest(job.definition())}")
            jobs[part.label] = job
        return list(jobs.values())


def _checked(part: Part, reader: FileReader) -> Part:
    for option, source in part.takes.items():
        if option in part.options:
            raise ConfigError(
                f"{reader.path}: {part.label}: '{option}' takes the checkpoint of '{source}', and"
                " is among the options too: give one of them."
            )
    return part


def read_pipeline(paths: Sequence[Path]) -> Pipeline:
    """Read a file, and others laid over it key by key; paths in each are relative to it.

    Raises:
        ConfigError: One line names the file and the key.
    """
    given: dict[str, Any] = {}
    for path in paths:
        given = _over(given, _load(path, ()))
    reader = FileReader(paths[-1], "the pipeline")
    name = reader.name(given.get("name", paths[0].stem))
    seed = reader.seed("seed", given.get("seed", 0))
    stages = _stages(reader, given)
    return Pipeline(name, seed, (*stages.values(), *_evaluations(reader, given, name, [*stages])))


def _stages(reader: FileReader, given: Mapping[str, Any]) -> dict[str, Part]:
    sections = {name: each for name, each in given["stages"].items() if each is not None}
    if not sections:
        raise reader.wrong("stages", sections, "a mapping of stages in their order")
    dataset = {DATASET: given["dataset"]} if "dataset" in given else {}
    stages: dict[str, Part] = {}
    for name, section in sections.items():
        key = f"stages.{name}"
        _require_name(reader, key, name)
        configs = (*section.get("config", ()), *given.get("config", ()))
        if not configs:
            raise ConfigError(f"{reader.path}: {key}: has no 'config'; give a file of fit's.")
        for option, source in section["checkpoints"].items():
            at = f"{key}.checkpoints.{option}"
            if reader.text(at, source) not in sections:
                raise reader.unknown(at, "there is no stage", source, list(sections))
            if source not in stages:
                raise ConfigError(
                    f"{reader.path}: {at}: stage '{source}' does not come before this one: a"
                    " checkpoint can only be taken of a stage above."
                )
        options = {**given["options"], **dataset, **section["options"]}
        needs = {**given["needs"], **section["needs"]}
        stages[name] = _checked(Part(name, configs, options, section["checkpoints"], needs), reader)
    return stages


def _evaluations(
    reader: FileReader, given: Mapping[str, Any], name: str, stages: list[str]
) -> list[Part]:
    sections = given.get("evaluations")
    sections = {name.replace(".", "-"): {}} if sections is None else sections
    parts = []
    for label, section in sections.items():
        if section is None:
            continue
        key = f"evaluations.{label}"
        _require_name(reader, key, label)
        if label in stages:
            raise ConfigError(
                f"{reader.path}: {key}: a stage has this name, too: choose another name."
            )
        options = {**given["evaluate"], **section}
        stage = options.pop("stage", stages[-1])
        if stage not in stages:
            raise reader.unknown(f"{key}.stage", "there is no stage", stage, stages)
        parts.append(Part(label, options=options, takes={CHECKPOINT: stage}))
    return parts


def _require_name(reader: FileReader, key: str, name: Any) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name) or "." in name:
        raise reader.wrong(key, name, "a name of letters, digits, '_' and '-'")
    if name in _RESERVED:
        raise ConfigError(f"{reader.path}: {key}: options begin with '{name}': call it otherwise.")


def _load(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Read one file over its base, with absolute paths in it."""
    reader = FileReader(path, "the pipeline")
    given = reader.section("", reader.known(read_yaml(path), "the file", tuple(_KEYS)))
    given["evaluate"] = reader.evaluate("evaluate", given.get("evaluate"))
    if "dataset" in given:
        given["dataset"] = reader.dataset("dataset", given["dataset"])
    stages = {}
    for name, stage in reader.mapping("stages", given.get("stages")).items():
        if stage is not None:
            key = f"stages.{name}"
            stage = reader.section(f"{key}.", reader.known(stage, key, _STAGE_KEYS))
            stage["checkpoints"] = reader.options(f"{key}.checkpoints", stage.get("checkpoints"))
        stages[name] = stage
    given["stages"] = stages
    for name, section in reader.mapping("evaluations", given.get("evaluations")).items():
        if section is not None:
            reader.evaluate(f"evaluations.{name}", section, ("stage",))
    if given.get("base") is None:
        return given
    base = reader.files("base", given.pop("base"))[0]
    chain = (*above, path.resolve())
    if base in chain:
        raise ConfigError(f"{path}: base: {base} is built on this file: name another one.")
    return _over(_load(base, chain), given)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one file's content over another's."""
    merged = {**below, **{k: merge(below.get(k), v, _KEYS[k]) for k, v in above.items()}}
    for name, stage in below.get("stages", {}).items():
        over = above["stages"].get(name)
        if stage is None and over and "config" not in over:
            merged["stages"][name] = None  # an overlay for all pipelines must not bring it back
    return merged
