"""Checks of a sweep's file; every complaint is one line that names the file and the key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_offrl.errors import ConfigError, nearest
from lit_offrl.sweeps.plain import is_plain, yaml_text

KEYS = ("name", "methods", "datasets", "seeds", "options", "evaluate", "slurm")
EVALUATE_KEYS = ("episodes", "seed", "num_envs", "env", "max_episode_steps", "gamma", "device")
# What the sweep itself gives to each fit.
_OWN = ("seed_everything", "ckpt_path", "config", "trainer.logger", "checkpoint.dirpath")
NAME = re.compile(r"[\w][\w.-]*")
_OPTION = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_SUFFIXES = (".hdf5", ".h5")


@dataclass(frozen=True)
class Part:
    """What one label of an axis brings."""

    label: str
    configs: tuple[Path, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


class Reader:
    """Checks parts of one file; every complaint names it.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def wrong(self, key: str, value: Any, wanted: str) -> ConfigError:
        """Make the error for a value that cannot be."""
        return ConfigError(f"{self.path}: {key}: {value!r} is given; give {wanted}.")

    def known(self, given: Any, key: str, names: Sequence[str], open_prefix: str = "\0") -> None:
        """Refuse a mapping with other keys than ``names`` and those that begin with a prefix."""
        if not isinstance(given, dict):
            raise self.wrong(key, given, f"a mapping with the keys {', '.join(names)}")
        for name in given:
            if name not in names and not str(name).startswith(open_prefix):
                hint = nearest(str(name), names) or f" Known: {', '.join(names)}."
                raise ConfigError(f"{self.path}: {key}: unknown key '{name}'.{hint}")

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
            parts.append(self._part(label, key, method))
        return parts

    def datasets(self, given: Any) -> list[Part]:
        """Read a list of names and files, or label: name, or label: {dataset, config, options}."""
        if isinstance(given, list) and given:
            names = [self._text("datasets", name) for name in given]
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
            name = self._text(f"{key}.dataset", dataset.get("dataset", label))
            if name.endswith(_SUFFIXES) and ":" not in name:
                name = str(self._file(f"{key}.dataset", name))
            parts.append(self._part(label, key, dataset, {"data.init_args.dataset": name}))
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
                    Part(str(label), (), self._options(f"{key}.{label}", options))
                    for label, options in values.items()
                ]
            elif isinstance(values, list) and values:
                axes[short] = [
                    Part(_text_of(value), (), self._options("options", {name: value}))
                    for value in values
                ]
            else:
                constants |= self._options("options", {name: values})
        return constants, axes

    def _part(
        self, label: Any, key: str, given: Mapping[str, Any], first: Mapping[str, Any] | None = None
    ) -> Part:
        configs = given.get("config") or []
        files = [configs] if isinstance(configs, str) else configs
        if not isinstance(files, list):
            raise self.wrong(f"{key}.config", configs, "a file or a list of files")
        options = self._options(f"{key}.options", given.get("options") or {})
        paths = tuple(self._file(f"{key}.config", file) for file in files)
        return Part(str(label), paths, {**(first or {}), **options})

    def _options(self, key: str, given: Any) -> dict[str, Any]:
        if not isinstance(given, dict):
            raise self.wrong(key, given, "a mapping of fit's options, trainer.max_steps: 100")
        for name, value in given.items():
            if not isinstance(name, str) or not _OPTION.fullmatch(name):
                raise ConfigError(f"{self.path}: {key}: '{name}' is no option of fit.")
            if any(name == own or name.startswith(f"{own}.") for own in _OWN):
                raise ConfigError(f"{self.path}: {key}: '{name}' is given by the sweep itself.")
            if not is_plain(value):
                raise self.wrong(f"{key}.{name}", value, "numbers, text, lists or mappings")
        return dict(given)

    def _file(self, key: str, name: Any) -> Path:
        path = (self.path.parent / self._text(key, name)).resolve()
        if not path.is_file():
            there = [p.name for p in path.parent.glob("*") if p.is_file()]
            raise ConfigError(
                f"{self.path}: {key}: there is no file {path}.{nearest(path.name, there)}"
            )
        return path

    def _text(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise self.wrong(key, value, "text")
        return value


def _label(dataset: str) -> str:
    return Path(dataset).stem if dataset.endswith(_SUFFIXES) else dataset


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else yaml_text(value)
