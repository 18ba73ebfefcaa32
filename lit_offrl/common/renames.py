"""The one table of options that have another name now, for files and commands that have the old.

Whatever reads options translates them by it: the command line's parser (config files and flags),
the reader of checkpoints, the comparison of an experiment's inputs with those of an earlier day,
and the reader of MLflow runs.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from lit_offrl.common.errors import ConfigError

_TAU = {"polyak_rate": "tau"}
_SNIPPETS = {"window_every": "snippet_every"}
RENAMED: dict[str, dict[str, str]] = {
    "ACDModule": _TAU,
    "ACGModule": _TAU,
    "AWRModule": _TAU,
    "DQLModule": _TAU,
    "IDQLModule": _TAU,
    "IQLModule": _TAU,
    "LDCQStage2Module": _SNIPPETS,
    "LDCQStage3Module": _TAU | _SNIPPETS,
}
"""New names of options by their old ones, by the name of the library's class that has them."""

_OURS = "lit_offrl."


def renames_of(kind: object) -> dict[str, str]:
    """Return the new names of a class's options by their old ones.

    A class derived from one of the table has that one's, but for what it calls so itself.

    Args:
        kind: The class, or its name as files have it: a dotted path, or the bare name of one of
            the library's. Nothing is imported for a name.
    """
    if isinstance(kind, str):
        package, _, name = kind.rpartition(".")
        named = getattr(sys.modules.get(package or f"{_OURS}modules"), name, None)
        if not isinstance(named, type):
            ours = not package or package.startswith(_OURS)
            return dict(RENAMED.get(name, {})) if ours else {}
        kind = named
    found: dict[str, str] = {}
    own: set[str] = set()
    for each in reversed(kind.__mro__ if isinstance(kind, type) else ()):
        if each.__module__.startswith(_OURS):
            found |= RENAMED.get(each.__name__, {})
        if inspect.isfunction(init := vars(each).get("__init__")):
            own |= {*inspect.signature(init).parameters}
    return {old: new for old, new in found.items() if old not in own}


def translated(options: Mapping[str, Any], kind: object) -> dict[str, Any]:
    """Return options of a class with those of an old name under their new one.

    Args:
        options: Values by name.
        kind: The class or its name, see ``renames_of``.

    Raises:
        ConfigError: An option is given by both names.
    """
    renames = renames_of(kind)
    for old, new in renames.items():
        if old in options and new in options:
            name = kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__  # type: ignore[attr-defined]
            raise ConfigError(
                f"{name}: {old} is the former name of {new}, and both are given: give {new} alone."
            )
    return {renames.get(name, name): value for name, value in options.items()}


def translated_config(config: Mapping[str, Any], method: str | None = None) -> dict[str, Any]:
    """Return a tree of fit's options with the method's and the data's under their new names.

    Args:
        config: The tree.
        method: The name of the method's class where the tree does not name it.

    Raises:
        ConfigError: An option is given by both names.
    """
    made = dict(config)
    for section, default in (("model", method), ("data", None)):
        part = made.get(section)
        if isinstance(part, Mapping) and isinstance(kind := part.get("class_path", default), str):
            made[section] = part = translated(part, kind)  # `model.tau` is short for its init_args
            if isinstance(options := part.get("init_args"), Mapping):
                part["init_args"] = translated(options, kind)
    return made


def translated_name(name: str, method: str | None) -> str:
    """Return the new name of an option, by its dotted name: ``model.init_args.tau``.

    Args:
        name: The dotted name of an option of fit.
        method: The name of the method's class, if it is known.
    """
    section, _, below = name.partition(".")
    if section != "model" or not below or method is None:
        return name
    prefix = "init_args." if below.startswith("init_args.") else ""
    key, dot, rest = below.removeprefix(prefix).partition(".")
    return f"model.{prefix}{renames_of(method).get(key, key)}{dot}{rest}"


def translated_hyperparameters(options: Mapping[str, Any], kind: object) -> dict[str, Any]:
    """Return a checkpoint's hyperparameters, and those of the stages within, under new names.

    Raises:
        ConfigError: An option is there by both names.
    """
    made = translated(options, kind)
    for name, value in made.items():
        if isinstance(value, Mapping) and isinstance(value.get("hyper_parameters"), Mapping):
            below = translated_hyperparameters(value["hyper_parameters"], value.get("class_path"))
            made[name] = {**value, "hyper_parameters": below}
    return made
