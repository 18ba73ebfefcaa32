"""Checks of a sweep's file; every complaint is one line that names the file and the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_offrl.errors import ConfigError
from lit_offrl.jobs.plain import yaml_text
from lit_offrl.jobs.reading import SUFFIXES, FileReader, Part

KEYS = ("name", "methods", "datasets", "seeds", "options", "evaluate", "slurm")


class Reader(FileReader):
    """Checks parts of a sweep's file; every complaint names it.

    Args:
        path: of the file.
    """

    owner = "the sweep"

    def methods(self, given: Any) -> list[Part]:
        """Read ``label: {config: FILE or files, options: {...}}``."""
        if not isinstance(given, dict) or not given:
            raise self.wrong("methods", given, "a mapping, such as bc: {config: bc.yaml}")
        parts = []
        for label, method in given.items():
            key = f"methods.{label}"
            self.known(method, key, ("config", "options"))
            if "config" not in method:
                raise ConfigError(f"{self.path}: {key}: has no 'config'; give a file of fit's.")
            parts.append(self.part(label, key, method))
        return parts

    def datasets(self, given: Any) -> list[Part]:
        """Read a list of names and files, or label: name, or label: {dataset, config, options}."""
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
            if name.endswith(SUFFIXES) and ":" not in name:
                name = str(self.file(f"{key}.dataset", name))
            parts.append(self.part(label, key, dataset, {"data.init_args.dataset": name}))
        return parts

    def seeds(self, given: Any) -> list[int]:
        """Read a list of different numbers."""
        numbers: list[Any] = given if isinstance(given, list) and given else [None]
        if any(type(seed) is not int or seed < 0 for seed in numbers):
            raise self.wrong("seeds", given, "a list of numbers from 0 upwards, such as [0, 1, 2]")
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
                axes[short] = [
                    Part(_text_of(value), (), self.options("options", {name: value}))
                    for value in values
                ]
            else:
                constants |= self.options("options", {name: values})
        return constants, axes


def _label(dataset: str) -> str:
    return Path(dataset).stem if dataset.endswith(SUFFIXES) else dataset


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else yaml_text(value)
