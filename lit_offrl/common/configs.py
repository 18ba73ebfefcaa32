"""Config files: finding them by path or name, reading them, and laying them over each other.

A file holds options of ``lit-offrl fit`` in sections (``model``, ``data``, ``trainer``, …). Beside
them it may hold ``methods``, values tuned for single methods, as ``configs/data/*.yaml`` do::

    data: {class_path: D4RLDataModule, init_args: {dataset: antmaze-medium-diverse-v2}}
    methods:
      IQLModule: {model.init_args.beta: 10.0, data.init_args.rewards: minus_one}

They hold for the method at hand alone, as if the file had them in its sections: what later files
and options say wins. The library's own configs are found by name, ``data/antmaze``, wherever it is
installed. Nothing here imports torch.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import Any

import yaml

from lit_offrl.common.errors import ConfigError, nearest, reason
from lit_offrl.common.renames import translated_config, translated_name

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
_SETTLED = 0.1  # seconds: a file that is younger may change within a tick of its system's clock
METHODS = "methods"
"""The key of values for single methods, by the name of the method's class."""

_PACKAGE = Path(__file__).parent.parent
FOLDER = next(f for f in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if f.is_dir())
"""Where the library's configs are: a link in a clone, files in an installed package."""

_SUFFIXES = (".yaml", ".yml", ".json")
_BY_METHOD = ("acd", "acg", "awr", "diffusion_bc", "dql", "idql", "iql")
_BY_STAGE = ("ldcq_stage1", "ldcq_stage2", "ldcq_stage3")
RENAMED = {
    **{f"{name}_pybullet": (name, "data/pybullet") for name in (*_BY_METHOD, "bc", "cql")},
    **{f"{name}_d4rl": (name, "data/maze2d") for name in (*_BY_METHOD, *_BY_STAGE)},
    **{f"{name}_d4rl": (name, "data/adroit") for name in ("bc", "cql")},
}
"""Names of former configs, and those of the configs that together have the same values."""


# ---- finding -------------------------------------------------------------------------------------


def names() -> list[str]:
    """Return the names of the library's configs: ``iql``, ``data/antmaze``."""
    return sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))


def find_configs(given: str, folder: Path | None = None) -> tuple[Path, ...]:
    """Return the files that a path or a name stands for: one, or several for a former config.

    A file that is there wins. Else the library's config of that name is meant, with or without
    ``configs/`` before it and ``.yaml`` behind it, even if there is a folder that is called so, as
    runs' folders may be.

    Args:
        given: A path or a name.
        folder: What a relative path is relative to; the working directory by default.

    Raises:
        ConfigError: There is no such file, and no such config.
    """
    path = Path(given) if folder is None else folder / given
    if path.exists() and not path.is_dir():
        return (path,)
    name = _name(given)
    if name in RENAMED:
        _say_renamed(given, RENAMED[name])
        return tuple(FOLDER / f"{each}.yaml" for each in RENAMED[name])
    if (found := FOLDER / f"{name}.yaml").is_file() and name in names():
        return (found,)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: give a file, or the name of a library's config.")
    there = (each.name for each in path.parent.glob("*") if each.suffix in _SUFFIXES)
    hint = nearest(path.name, there) or nearest(name, names())
    raise ConfigError(
        f"there is no file {path}, and no config of that name.{hint}"
        " `lit-offrl configs list` names the library's."
    )


def _name(given: str) -> str:
    """Return a path without what comes before the last ``configs/`` in it, and its suffix."""
    parts = Path(given).parts
    if "configs" in parts:
        parts = parts[len(parts) - parts[::-1].index("configs") :]
    name = "/".join(parts)
    return next((name.removesuffix(each) for each in _SUFFIXES if name.endswith(each)), name)


def _say_renamed(given: str, now: Iterable[str]) -> None:
    """Say so on stderr, as stdout may be a printed config, and from the first process alone."""
    if all(os.environ.get(name) in (None, "", "0") for name in _RANKS):
        files = " ".join(f"--config configs/{name}.yaml" for name in now)
        line = f"lit-offrl: {given} has become two configs, which are used: {files}"
        print(line, file=sys.stderr)


def expand_argv(argv: Sequence[str]) -> list[str]:
    """Replace names in ``--config NAME`` by paths; texts of YAML stay.

    Raises:
        ConfigError: There is no such file, and no such config.
    """
    made: list[str] = []
    words = iter(argv)
    for word in words:
        option, is_joined, value = word.partition("=")
        if option != "--config":
            made.append(word)
            continue
        value = value if is_joined else next(words, "")
        try:
            found = find_configs(value) if _is_path(value) else (value,)
        except ConfigError as error:
            raise ConfigError(f"--config {value}: {error}") from None
        made += [each for path in found for each in ("--config", str(path))]
    return made


def _is_path(value: str) -> bool:
    try:
        return isinstance(from_yaml(value), str)
    except ValueError:
        return False


# ---- reading -------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a key that a mapping has twice: PyYAML takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                where = f"in lines {lines[name]} and {line}"
                raise yaml.YAMLError(
                    f"the key '{key.value}' is there twice, {where}: leave one out"
                )
            lines[name] = line
        return node


def from_yaml(text: str) -> Any:
    """Return what YAML stands for.

    Raises:
        ValueError: It is none, or a mapping has a key twice; a date that there is not, too, which
            is no error of PyYAML's own.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(reason(error)) from error


def read_yaml(path: Path) -> Any:
    """Return what a file of YAML holds.

    Raises:
        ConfigError: It cannot be read, or is no YAML.
    """
    try:
        stat = path.stat()
        if not S_ISREG(stat.st_mode) or time.time() - stat.st_mtime < _SETTLED:
            return from_yaml(path.read_text(encoding="utf-8"))
        # each job of a sweep asks for the same files, of which reading one takes milliseconds
        return copy.deepcopy(_contents(path.absolute(), stat.st_size, stat.st_mtime_ns))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {reason(error)}.") from error
    except ValueError as error:  # bytes that are no text, too
        raise ConfigError(f"{path}: is no YAML: {reason(error)}") from error


@functools.lru_cache(maxsize=256)
def _contents(path: Path, size: int, modified: int) -> Any:
    del size, modified  # they tell the file from what it was before
    return from_yaml(path.read_text(encoding="utf-8"))


def read_config(path: Path) -> dict[str, Any] | None:
    """Return the options that a config of fit holds; None for an empty file.

    Raises:
        ConfigError: It cannot be read, or holds something else.
    """
    contents = read_yaml(path)
    if contents is not None and not isinstance(contents, dict):
        raise ConfigError(f"{path}: holds no mapping of options, as a run's config.yaml does.")
    return contents


# ---- merging -------------------------------------------------------------------------------------


def merge_configs(
    configs: Sequence[Path | Mapping[str, Any] | None], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the tree that files and options make, later ones winning; defaults are not in it.

    Args:
        configs: Files of fit's options, or what they hold.
        options: Values by their dotted names; they win over the files.

    Raises:
        ConfigError: A file cannot be read.
    """
    contents = [(read_config(each) if isinstance(each, Path) else each) or {} for each in configs]
    method = method_of([*contents, _tree(options)])
    tree: dict[str, Any] = {}
    for config, each in zip(configs, contents, strict=True):
        own = translated_config(for_method(each, method, str(config)), method)
        tree = lay_over(tree, own)
    for name, value in options.items():
        name = translated_name(name, method)
        tree = lay_over(tree, _tree({name: None}))  # a mapping replaces what files say
        tree = lay_over(tree, _tree({name: value}))
    return json.loads(json.dumps(tree, default=str))


def method_of(configs: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the class that the last of several configs to name a model names."""
    named = None
    for config in configs:
        model = config.get("model")
        path = model.get("class_path") if isinstance(model, Mapping) else model
        named = path if isinstance(path, str) else named
    return named


def for_method(config: Mapping[str, Any], method: str | None, where: str) -> dict[str, Any]:
    """Return a config without ``methods``, whose values for one method are in its sections.

    Args:
        config: The contents of a file.
        method: The path of the method's class, or its name alone.
        where: The file, for messages.

    Raises:
        ConfigError: ``methods`` is no mapping of classes to mappings of options.
    """
    own = {key: value for key, value in config.items() if key != METHODS}
    values = config.get(METHODS) or {}
    if not isinstance(values, Mapping) or not all(isinstance(v, Mapping) for v in values.values()):
        raise ConfigError(
            f"{where}: {METHODS}: give a mapping such as IQLModule: {{model.init_args.beta: 10.0}}."
        )
    if method is None or not (chosen := _tree(values.get(method.rpartition(".")[2]) or {})):
        return own
    if "model" in chosen and "model" not in own:  # options of a class follow its name
        own["model"] = {"class_path": method}
    return lay_over(own, chosen)


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their dotted names, ``model.init_args.beta``."""
    if not isinstance(config, Mapping):
        return {prefix: config} if prefix else {}
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def lay_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge one tree of options over another, key by key."""
    made = dict(below)
    for key, value in above.items():
        under: Any = made.get(key)
        if isinstance(value, Mapping) and isinstance(under, str) and key in ("model", "data"):
            under = {"class_path": under}  # `model: BCModule`
        both = isinstance(value, Mapping) and isinstance(under, Mapping)
        made[key] = lay_over(under, value) if both else value
    return made


def _tree(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested mappings in place of dotted names."""
    tree: dict[str, Any] = {}
    for name, value in options.items():
        for key in reversed(str(name).split(".")):
            value = {key: value}
        tree = lay_over(tree, value)
    return tree
