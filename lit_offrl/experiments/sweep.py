"""Sweeps: a grid of methods, datasets, further axes and seeds; from a file to cells with jobs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from lit_offrl.common.configs import read_yaml
from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.common.ranges import SEEDS, lies_in
from lit_offrl.experiments.config import SUFFIXES, FileReader, all_differ, value_label
from lit_offrl.experiments.executors.ray import RayOptions
from lit_offrl.experiments.job import METHOD_TAG, Cell, Job, Parent, Tracking, lineage
from lit_offrl.experiments.pipeline import CHECKPOINT, DATASET, Part, Pipeline, read_pipeline
from lit_offrl.experiments.search import read_axes, read_search
from lit_offrl.experiments.trials import Study

_PACKAGE = Path(__file__).parent.parent
FOLDER = next(f for f in (_PACKAGE / "sweeps", _PACKAGE.parent / "sweeps") if f.is_dir())
"""Where the library's sweeps are: a link in a clone, files in an installed package."""
STAGES = "stages"
"""The folder of the stages that methods share."""
_KEYS = ("name", "methods", "datasets", "seeds", "options", "needs", "evaluate", "slurm", "ray",
         "search")  # fmt: skip
_TAGS = {"method": METHOD_TAG, "dataset": "lit_offrl.dataset"}


@dataclass(frozen=True)
class Experiment:
    """What is to be run.

    Attributes:
        name: The MLflow experiment.
        output: The folder.
        uri: MLflow's store; None logs nothing.
        cells: Seed by seed, so that the first results are of the whole grid; of a search, examples
            of its cells, in which each end of each axis occurs.
        searches: One for each line of the grid.
        evaluate: Options of evaluate for all cells; None for no evaluations.
        slurm: Parameters for submitit.
        ray: Resources of jobs, and retries.
        parent: The MLflow run that all runs are children of.
    """

    name: str
    output: Path
    uri: str | None
    cells: tuple[Cell, ...] = ()
    searches: tuple[Study, ...] = ()
    evaluate: Mapping[str, Any] | None = None
    slurm: Mapping[str, Any] = field(default_factory=dict)
    ray: RayOptions = field(default_factory=RayOptions)
    parent: Parent = field(default_factory=Parent)


def find_sweep(given: Path) -> Path:
    """Return a sweep's file: that of a path, else the library's of that name, else a folder.

    Raises:
        ConfigError: There is neither.
    """
    if given.exists() and not given.is_dir():
        return given
    names = sorted(each.stem for each in FOLDER.glob("*.yaml"))
    name = given.name.removesuffix(".yaml")
    if name in names and given.parent.name in ("", "sweeps"):
        return FOLDER / f"{name}.yaml"
    if given.exists():
        return given
    near = nearest(given.name, [each.name for each in given.parent.glob("*.yaml")])
    hint = near or nearest(name, names) or f" The library's: {', '.join(names)}."
    raise ConfigError(f"--config {given}: there is no such file, and no sweep of that name.{hint}")


def read_sweep(
    path: Path, only: Sequence[str] = (), *, output: Path | None = None, uri: str | None = None
) -> Experiment:
    """Read a file; paths in it are relative to it.

    Args:
        path: The file; what one of the library's collects is in the folder ``sweeps``.
        only: Filters of the cells, as for ``select``; the datasets of others may be missing.
        output: The sweep's folder; ``sweeps/NAME`` if it is None.
        uri: MLflow's store.

    Raises:
        ConfigError: One line names the file and the key, or the filter.
    """
    # what a sweep of the library collects is no part of an installed package
    reader = _Reader(path, "the sweep", Path("sweeps") if path.parent == FOLDER else None)
    given = reader.known(read_yaml(path), "the file", _KEYS)
    name = reader.name(given.get("name", path.stem))
    drawn, options = read_axes(reader, given.get("options"))
    search = read_search(reader, given.get("search"), drawn) if drawn or "search" in given else None
    constants, axes = reader.options_and_axes(options)
    common = reader.section("", {"needs": given.get("needs"), "options": constants})
    methods = reader.methods(given.get("methods"), common)
    datasets = reader.datasets(given.get("datasets"))
    seeds = reader.seeds(given.get("seeds"))
    evaluate = given.get("evaluate")
    if search is not None and not search.is_online:
        evaluate = False if search.metric == "ope" or evaluate is None else evaluate
    experiment = Experiment(
        name,
        (output or Path("sweeps") / name).resolve(),
        uri,
        evaluate=None if evaluate is False else reader.evaluate("evaluate", evaluate),
        slurm=reader.mapping("slurm", given.get("slurm"), "a mapping of submitit's parameters"),
        ray=reader.read("ray", RayOptions, given.get("ray")),
    )
    lines = [
        (pipeline, {"method": method, "dataset": dataset, **dict(zip(axes, place, strict=True))})
        for place in itertools.product(*axes.values())
        for dataset, (method, pipeline) in itertools.product(datasets, methods)
    ]
    make = partial(_cell, experiment, reader)
    searches: dict[str, Study] = {}
    if search is None:
        cells = [make(pipeline, parts, seed) for seed in seeds for pipeline, parts in lines]
        _require_own_folders(path, cells)
    else:
        cells = []
        for pipeline, parts in lines:
            study = Study(search, drawn, partial(_trial, partial(make, pipeline), parts, seeds))
            cells += study.examples()
            searches[cells[-1].name] = study
        _require_own_folders(path, cells[:: len(cells) // len(lines)])  # one of each line
    chosen = select(cells, only)
    reader.require_datasets(datasets, {cell.labels["dataset"] for cell in chosen})
    names = {cell.name for cell in chosen}
    found = tuple(study for name, study in searches.items() if name in names)
    return replace(experiment, cells=tuple(chosen), searches=found)


def select(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """Return the cells of a sweep that fit all filters; of filters with one key, one suffices.

    Args:
        cells: Cells of one sweep.
        only: ``KEY=PATTERN`` each, where ``*`` stands for anything.

    Raises:
        ConfigError: A filter names no axis or fits nothing.
    """
    wanted: dict[str, list[str]] = {}
    for text in only:
        key, given, pattern = text.partition("=")
        known = list(cells[0].labels)
        if not given or key not in known:
            hint = nearest(key, known) or f" Keys: {', '.join(known)}."
            raise ConfigError(f"--only {text}: give KEY=PATTERN, such as method=dvf.{hint}")
        labels = list(dict.fromkeys(cell.labels[key] for cell in cells))
        if not any(fnmatchcase(label, pattern) for label in labels):
            hint = nearest(pattern, labels) or f" There are {', '.join(labels)}."
            raise ConfigError(f"--only {text}: no {key} fits '{pattern}'.{hint}")
        wanted.setdefault(key, []).append(pattern)
    for key, patterns in wanted.items():
        cells = [c for c in cells if any(fnmatchcase(c.labels[key], each) for each in patterns)]
    return list(cells)


def _require_own_folders(path: Path, cells: Sequence[Cell]) -> None:
    """Refuse a file two of whose cells have one folder, also where letters' cases are one."""
    folders: dict[str, Cell] = {}
    for cell in cells:
        if (other := folders.setdefault(cell.name.lower(), cell)) is not cell:
            raise ConfigError(
                f"{path}: {dict(other.labels)} and {dict(cell.labels)} would share the folder"
                f" {cell.name}: give other labels."
            )


def _cell(
    experiment: Experiment,
    reader: FileReader,
    pipeline: Pipeline | None,
    parts: Mapping[str, Part],
    seed: int,
) -> Cell:
    """Return the cell in ``METHOD/DATASET/AXIS=LABEL/seedSEED``.

    The stages of its pipeline lie in ``stages/DATASET/seedSEED``, where other methods find them.
    """
    labels = {axis: part.label for axis, part in parts.items()}
    words = [label if axis in _TAGS else f"{axis}={label}" for axis, label in labels.items()]
    name = "/".join([*map(_folder_name, words), f"seed{seed}"])
    configs = tuple(config for part in parts.values() for config in part.configs)
    options = {key: value for part in parts.values() for key, value in part.options.items()}
    needs, uri = parts["method"].needs, experiment.uri
    shared = {"lit_offrl.sweep": experiment.name, _TAGS["dataset"]: labels["dataset"]}
    tags = {_TAGS.get(axis, f"lit_offrl.option.{axis}"): label for axis, label in labels.items()}
    parent, run_name = experiment.parent, name.replace("/", "-")
    tracking = Tracking(uri, experiment.name, run_name, {**shared, **tags}, parent)
    own: dict[str, Any] = {"name": name, "folder": experiment.output / name, "of_cell": True}
    own |= {"seed": seed, "needs": needs}
    evaluate: Mapping[str, Any] = {}
    if pipeline is None:
        fit = Job(verb="fit", configs=configs, options=options, tracking=tracking, **own)
        tracking = replace(tracking, run_name=None)  # its scores go to the run of the training
    else:
        key = f"options of methods.{labels['method']}: "
        pipeline = pipeline.override(options, reader, key, configs, needs)
        root = experiment.output / STAGES / _folder_name(labels["dataset"]) / f"seed{seed}"
        of_stages = Tracking(uri, experiment.name, tags=shared, parent=parent)
        *_, last = pipeline.jobs(root, of_stages, seed, hashed=True)
        fit, evaluate = last.training, last.options
    target = fit
    if experiment.evaluate is not None:
        own["needs"] = {key: value for key, value in needs.items() if key == "memory_gb"}
        evaluate = {**evaluate, **experiment.evaluate}
        takes = {CHECKPOINT: fit}
        target = Job(verb="evaluate", options=evaluate, takes=takes, tracking=tracking, **own)
    return Cell(name, {**labels, "seed": str(seed)}, tuple(lineage(target)))


def _trial(
    make: Callable[[Mapping[str, Part], int], Cell],
    parts: Mapping[str, Part],
    seeds: Sequence[int],
    label: str,
    options: Mapping[str, Any],
) -> list[Cell]:
    """Return the cells of a trial, one a seed, in ``METHOD/DATASET/AXIS=LABEL/trial=LABEL``."""
    return [make({**parts, "trial": Part(label, options=options)}, seed) for seed in seeds]


class _Reader(FileReader):
    """Checks the parts of a sweep's file."""

    def methods(self, given: Any, common: Mapping[str, Any]) -> list[tuple[Part, Pipeline | None]]:
        """Read ``label: {config: FILE or files, options: {...}}``, over what all have in common.

        In place of ``config`` there may be ``pipeline: FILE or files`` and ``evaluation: NAME``.
        """
        if not isinstance(given, dict) or not given:
            raise self.wrong("methods", given, "a mapping, such as bc: {config: bc.yaml}")
        methods = []
        for label, method in given.items():
            key = f"methods.{label}"
            if "/" in str(label) or "\\" in str(label):
                raise self.wrong("methods", label, "a label without '/', as a folder is called so")
            names = ("config", "options", "needs", "pipeline", "evaluation")
            method = self.known(method, key, names)
            if ("config" in method) == ("pipeline" in method):
                has = "has both 'config' and" if "config" in method else "has no 'config' and no"
                raise ConfigError(f"{self.path}: {key}: {has} 'pipeline'; give a file of either.")
            if "evaluation" in method and "pipeline" not in method:
                raise ConfigError(f"{self.path}: {key}: 'evaluation' goes with 'pipeline' alone.")
            pipeline = self._pipeline(key, method) if "pipeline" in method else None
            methods.append((self._part(label, key, method, common), pipeline))
        if STAGES in map(str, given) and any(pipeline for _, pipeline in methods):
            raise self.wrong("methods", STAGES, "another label: the methods' stages go there")
        return methods

    def datasets(self, given: Any) -> list[Part]:
        """Read a list of names and files, or label: name, or label: {dataset, config, options}.

        Files may be missing; see ``require_datasets``.
        """
        if isinstance(given, list) and given:
            names = [self.text("datasets", name) for name in given]
            given = {Path(n).stem if n.endswith(SUFFIXES) else n: n for n in names}
            if len(given) < len(names):
                raise self.wrong("datasets", names, "each once, or labels of their own")
        if not isinstance(given, dict) or not given:
            raise self.wrong("datasets", given, "a list of names or files, or label: name")
        parts = []
        for label, dataset in given.items():
            key = f"datasets.{label}"
            dataset = {"dataset": dataset} if isinstance(dataset, str) else dataset
            dataset = self.known(dataset, key, ("dataset", "config", "options"))
            name = self.dataset(f"{key}.dataset", dataset.get("dataset", label), True)
            parts.append(self._part(label, key, dataset, {"options": {DATASET: name}}))
        return parts

    def require_datasets(self, parts: Sequence[Part], labels: set[str]) -> None:
        """Refuse those of ``datasets`` with certain labels whose files are missing."""
        for part in parts:
            if part.label in labels:
                self.dataset(f"datasets.{part.label}.dataset", part.options[DATASET])

    def seeds(self, given: Any) -> list[int]:
        """Read a list of different numbers."""
        numbers: list[Any] = given if isinstance(given, list) and given else [None]
        if not all(type(seed) is int and lies_in(SEEDS, seed) for seed in numbers):
            raise self.wrong("seeds", given, f"a list of numbers in {SEEDS}, such as [0, 1, 2]")
        if len(set(numbers)) < len(numbers):
            raise self.wrong("seeds", given, "each once")
        return numbers

    def options_and_axes(self, given: Any) -> tuple[dict[str, Any], dict[str, list[Part]]]:
        """Split constants from axes, which are lists of values, or label: options mappings."""
        given = self.mapping("options", given, "a mapping of fit's options")
        constants: dict[str, Any] = {}
        axes: dict[str, list[Part]] = {}
        last = [str(name).rpartition(".")[2] for name in given]
        for name, values in given.items():
            axis = str(name).rpartition(".")[2]
            axis = axis if last.count(axis) == 1 else str(name)
            if axis in ("method", "dataset", "seed", "trial"):
                raise ConfigError(f"{self.path}: options.{name}: '{axis}' is an axis already.")
            if isinstance(values, dict) and values:
                of_label = {str(k): (f"options.{name}.{k}", v) for k, v in values.items()}
            elif isinstance(values, list) and values:
                texts = [*map(value_label, values)]
                if not all_differ(values):
                    once = "each value once: a list is an axis, and so a list that is one value"
                    raise self.wrong(f"options.{name}", values, f"{once} needs a label before it")
                of_label = {
                    text: ("options", {name: value})
                    for text, value in zip(texts, values, strict=True)
                }
            else:
                constants |= self.options("options", {name: values})
                continue
            axes[axis] = [
                Part(label, options=self.options(key, options))
                for label, (key, options) in of_label.items()
            ]
        return constants, axes

    def _part(self, label: Any, key: str, given: dict[str, Any], common: Mapping[str, Any]) -> Part:
        if not str(label).strip("."):
            raise self.wrong(key.partition(".")[0], label, "a label that names a folder")
        given = self.section(f"{key}.", given)
        options = {**common["options"], **given["options"]}
        needs = {**common.get("needs", {}), **given["needs"]}
        return Part(str(label), given.get("config", ()), options, needs=needs)

    def _pipeline(self, key: str, given: Mapping[str, Any]) -> Pipeline:
        files = self.files(f"{key}.pipeline", given["pipeline"])
        if not files:
            raise self.wrong(f"{key}.pipeline", given["pipeline"], "a file or a list of files")
        pipeline = read_pipeline(files)
        names = [part.label for part in pipeline.parts if not part.is_stage]
        name = given.get("evaluation", names[0] if len(names) == 1 else None)
        if name not in names:
            hint = nearest(str(name), names) or f" There are {', '.join(names)}."
            raise ConfigError(
                f"{self.path}: {key}.evaluation: {name!r} is none of {files[-1].name}.{hint}"
            )
        return pipeline.only([name])


def _folder_name(label: str) -> str:
    return re.sub(r"[^\w.=,+-]+", "_", label)
