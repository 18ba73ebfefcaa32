"""A sweep's file, and the cells that it spans; nothing heavy is imported to plan one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lit_offrl.common.configs import read_yaml
from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.jobs.reading import NAME
from lit_offrl.pipelines.plan import Pipeline
from lit_offrl.sweeps.reading import KEYS, STAGES, Part, Reader


@dataclass(frozen=True)
class Cell:
    """One training, or a pipeline's stages, and the evaluation.

    Attributes:
        labels: its place in the grid: ``method``, ``dataset``, the further axes, ``seed``.
        configs: files for ``fit --config``, later ones win.
        options: options of ``fit``, which win over files.
        pipeline: stages in place of the one training, with the one evaluation, files and options
            laid over them; None where there is but one training.
    """

    labels: Mapping[str, str]
    configs: tuple[Path, ...]
    options: Mapping[str, Any]
    pipeline: Pipeline | None = None

    @property
    def axes(self) -> dict[str, str]:
        """The labels of the further axes."""
        return {k: v for k, v in self.labels.items() if k not in ("method", "dataset", "seed")}

    @property
    def row(self) -> tuple[str, ...]:
        """All of its place but the seed, as words."""
        further = [f"{name}={label}" for name, label in self.axes.items()]
        return (self.labels["method"], self.labels["dataset"], *further)

    @property
    def seed(self) -> int:
        """Of all of its training."""
        return int(self.labels["seed"])

    @property
    def name(self) -> str:
        """Its folder below the sweep's: ``METHOD/DATASET/AXIS=LABEL/seedSEED``."""
        return "/".join([*map(_folder_name, self.row), f"seed{self.seed}"])

    @property
    def shared(self) -> str:
        """The folder of stages that methods share: ``stages/DATASET/seedSEED``."""
        return f"{STAGES}/{_folder_name(self.labels['dataset'])}/seed{self.seed}"


@dataclass(frozen=True)
class Sweep:
    """What a file says.

    Attributes:
        path: of the file.
        name: of the MLflow experiment, and of the folder.
        cells: seed by seed, so that the first results are of the whole grid.
        evaluate: options of ``lit-offrl evaluate``; None for no evaluations.
        slurm: parameters for submitit.
    """

    path: Path
    name: str
    cells: tuple[Cell, ...]
    evaluate: Mapping[str, Any] | None = field(default_factory=dict)
    slurm: Mapping[str, Any] = field(default_factory=dict)


def read_sweep(path: Path, only: Sequence[str] = ()) -> Sweep:
    """Read a file; paths in it are relative to it.

    Args:
        path: of the file.
        only: filters of the cells, as :func:`select` takes them; datasets of other cells may be
            missing.

    Raises:
        ConfigError: one line that names the file and the key, or the filter.
    """
    given = read_yaml(path)
    reader = Reader(path)
    reader.known(given, "the file", KEYS)
    name = given.get("name", path.stem)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise reader.wrong("name", name, "letters, digits, '_', '-' and '.'")
    constants, axes = reader.options_and_axes(given.get("options") or {})
    methods = reader.methods(given.get("methods"))
    datasets = reader.datasets(given.get("datasets"))
    seeds = [Part(str(seed), (), {}) for seed in reader.seeds(given.get("seeds"))]
    names = ["seed", *axes, "dataset", "method"]
    cells = []
    for parts in itertools.product(seeds, *axes.values(), datasets, methods):
        place = dict(zip(names, parts, strict=True))
        order = [place[name] for name in ("method", "dataset", *axes)]
        labels = {name: place[name].label for name in ("method", "dataset", *axes, "seed")}
        options = dict(constants)
        for part in order:
            options |= part.options
        configs = tuple(config for part in order for config in part.configs)
        pipeline = place["method"].pipeline
        if pipeline is not None:
            key = f"options of methods.{labels['method']}: "
            pipeline = pipeline.overlay(configs).override(options, reader, key)
        cells.append(Cell(labels, configs, options, pipeline))
    _require_distinct(path, cells)
    cells = select(cells, only)
    taken = {cell.labels["dataset"] for cell in cells}
    reader.require_datasets([part for part in datasets if part.label in taken])
    evaluate = None if given.get("evaluate") is False else given.get("evaluate") or {}
    if evaluate is not None:
        reader.evaluate("evaluate", evaluate)
    slurm = given.get("slurm") or {}
    if not isinstance(slurm, dict):
        raise reader.wrong("slurm", slurm, "a mapping of submitit's parameters")
    return Sweep(path, name, tuple(cells), evaluate, slurm)


def select(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """Return the cells that fit all filters; of filters with one key, one suffices.

    Args:
        cells: of a sweep.
        only: ``KEY=PATTERN`` each, where ``*`` stands for anything.

    Raises:
        ConfigError: a filter that names no axis or fits nothing.
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
    return [
        cell
        for cell in cells
        if all(
            any(fnmatchcase(cell.labels[key], pattern) for pattern in patterns)
            for key, patterns in wanted.items()
        )
    ]


def _folder_name(word: str) -> str:
    return re.sub(r"[^\w.=,+-]+", "_", word)


def _require_distinct(path: Path, cells: Sequence[Cell]) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        other = seen.setdefault(cell.name.lower(), cell)
        if other is not cell:
            raise ConfigError(
                f"{path}: {dict(other.labels)} and {dict(cell.labels)} would share the folder"
                f" {cell.name}: give other labels."
            )
