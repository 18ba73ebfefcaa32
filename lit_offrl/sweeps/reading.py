"""Checks of a sweep's file; every complaint is one line that names the file and the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.common.ranges import SEEDS, lies_in
from lit_offrl.jobs.plain import yaml_text
from lit_offrl.jobs.reading import SUFFIXES, FileReader
from lit_offrl.pipelines.plan import Pipeline
from lit_offrl.pipelines.reading import read_pipeline

KEYS = ("name", "methods", "datasets", "seeds", "options", "evaluate", "slurm")

DATASET = "data.init_args.dataset"
"""The option of fit that a dataset of the file stands for."""

STAGES = "stages"
"""The folder of what methods share."""


@dataclass(frozen=True)
class Part:
    """What one label of an axis brings."""

    label: str
    configs: tuple[Path, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    pipeline: Pipeline | None = None


class Reader(FileReader):
    """Checks parts of a sweep's file; every complaint names it.

    Args:
        path: of the file.
    """

    owner = "the sweep"

    def methods(self, given: Any) -> list[Part]:
        """Read ``label: {config: FILE or files, options: {...}}``.

        In place of ``config`` there may be ``pipeline: FILE or files`` and ``evaluation: NAME``.
        """
        if not isinstance(given, dict) or not given:
            raise self.wrong("methods", given, "a mapping, such as bc: {config: bc.yaml}")
        parts = []
        for label, method in given.items():
            key = f"methods.{label}"
            if "/" in str(label) or "\\" in str(label):
                raise self.wrong("methods", label, "a label without '/', as a folder is called so")
            self.known(method, key, ("config", "options", "pipeline", "evaluation"))
            if ("config" in method) == ("pipeline" in method):
                has = "has both 'config' and" if "config" in method else "has no 'config' and no"
                raise ConfigError(f"{self.path}: {key}: {has} 'pipeline'; give a file of either.")
            if "evaluation" in method and "pipeline" not in method:
                raise ConfigError(f"{self.path}: {key}: 'evaluation' goes with 'pipeline' alone.")
            parts.append(self.part(label, key, method))
        if STAGES in map(str, given) and any(part.pipeline for part in parts):
            raise self.wrong("methods", STAGES, "another label: the methods' stages go there")
        return parts

    def datasets(self, given: Any) -> list[Part]:
        """Read a list of names and files, or label: name, or label: {dataset, config, options}.

        Whether files are there is :meth:`require_datasets`' matter.
        """
        if isinstance(given, list) and given:
            names = [self.text("datasets", name) for name in given]
            given = {_label(name): {"dataset": name} for name in names}
            if len(given) < len(names):
                raise self.wrong("datasets", names, "each once, or labels of their own")
        if not isinstance(given, dict) or not given:
            raise self.wrong("datasets", given, "a list of names or files, or label: name")
        parts = []
        for label, dataset in given.items():
            key = f"datasets.{label}"
            dataset = {"dataset": dataset} if isinstance(dataset, str) else dataset
            self.known(dataset, key, ("dataset", "config", "options"))
            name = self.text(f"{key}.dataset", dataset.get("dataset", label))
            if _is_file(name):
                name = str(self.place(f"{key}.dataset", name))
            parts.append(self.part(label, key, dataset, {DATASET: name}))
        return parts

    def require_datasets(self, parts: Sequence[Part]) -> None:
        """Refuse files that are missing.

        Args:
            parts: of :meth:`datasets`, those that are used.
        """
        for part in parts:
            if _is_file(part.options[DATASET]):
                self.file(f"datasets.{part.label}.dataset", part.options[DATASET])

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
        if not isinstance(given, dict):
            raise self.wrong("options", given, "a mapping of fit's options")
        constants: dict[str, Any] = {}
        axes: dict[str, list[Part]] = {}
        shorts = [str(name).rpartition(".")[2] for name in given]
        for name, values in given.items():
            short = str(name).rpartition(".")[2]
            short = short if shorts.count(short) == 1 else str(name)
            if short in ("method", "dataset", "seed"):
                raise ConfigError(f"{self.path}: options.{name}: '{short}' is an axis already.")
            if isinstance(values, dict) and values:
                key = f"options.{name}"
                axes[short] = [
                    Part(str(label), (), self.options(f"{key}.{label}", options))
                    for label, options in values.items()
                ]
            elif isinstance(values, list) and values:
                if len(set(map(_text_of, values))) < len(values):
                    once = "each value once: a list is an axis, and so a list that is one value"
                    raise self.wrong(f"options.{name}", values, f"{once} needs a label before it")
                axes[short] = [
                    Part(_text_of(value), (), self.options("options", {name: value}))
                    for value in values
                ]
            else:
                constants |= self.options("options", {name: values})
        return constants, axes

    def part(
        self, label: Any, key: str, given: Mapping[str, Any], first: Mapping[str, Any] | None = None
    ) -> Part:
        """Read ``config`` and ``options``, or what stands for ``config``, of a mapping."""
        if not str(label).strip("."):
            raise self.wrong(key.partition(".")[0], label, "a label that names a folder")
        options = self.options(f"{key}.options", given.get("options") or {})
        paths = self.files(f"{key}.config", given.get("config"))
        pipeline = self._pipeline(key, given) if "pipeline" in given else None
        return Part(str(label), paths, {**(first or {}), **options}, pipeline)

    def _pipeline(self, key: str, given: Mapping[str, Any]) -> Pipeline:
        files = self.files(f"{key}.pipeline", given["pipeline"])
        if not files:
            raise self.wrong(f"{key}.pipeline", given["pipeline"], "a file or a list of files")
        pipeline = read_pipeline(files)
        names = [each.name for each in pipeline.evaluations]
        name = given.get("evaluation", names[0] if len(names) == 1 else None)
        if name not in names:
            hint = nearest(str(name), names) or f" There are {', '.join(names)}."
            raise ConfigError(
                f"{self.path}: {key}.evaluation: {name!r} is none of {files[-1].name}.{hint}"
            )
        return pipeline.only([name])


def _is_file(dataset: str) -> bool:
    return dataset.endswith(SUFFIXES) and ":" not in dataset


def _label(dataset: str) -> str:
    return Path(dataset).stem if dataset.endswith(SUFFIXES) else dataset


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else yaml_text(value)
