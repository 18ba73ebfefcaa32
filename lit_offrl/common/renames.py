"""The one table of options that have another name now, for files and commands that have the old.

Whatever reads options translates them by it: the command line's parser (config files and flags),
the reader of checkpoints, the comparison of an experiment's inputs with those of an earlier day,
and the reader of MLflow runs.

Beside it stands what held before there was an option for it, which the reader of checkpoints alone
fills in: a method acts and goes on training as it was trained, whatever the default is by now.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.signatures import parameters_of

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

_CLIPPED = {"clipping": "estimate", "variance": "beta"}
BEFORE: dict[str, dict[str, Any]] = {
    "ACDModule": _CLIPPED,
    "DiffusionBCModule": _CLIPPED,
    "DQLModule": _CLIPPED
    | {"denoiser": "residual", "activation": "relu", "climbed": "rows", "acts": "average"}
    | {"actor_ema_every": 1, "actor_ema_start": 0, "critic_decay": False},
    "IDQLModule": _CLIPPED,
}
"""What held before there were options for it, by the name of the library's class that has them; of
those alone whose default is another."""

_OURS = "lit_offrl."


def renames_of(kind: object) -> dict[str, str]:
    """Return the new names of a class's options by their old ones.

    A class derived from one of the table has that one's, but for what it calls so itself.

    Args:
        kind: The class, or its name as files have it: a dotted path, or the bare name of one of
            the library's. Nothing is imported for a name.
    """
    known, found = _class_of(kind), _entries(RENAMED, kind)
    own = _own_options(known) if known and found else ()
    return {old: new for old, new in found.items() if old not in own}


@cache
def _own_options(kind: type) -> frozenset[str]:
    """Return the names of what a class's constructor and its bases' take."""
    inits = (vars(each).get("__init__") for each in kind.__mro__)
    names = (inspect.signature(init).parameters for init in inits if inspect.isfunction(init))
    return frozenset().union(*names)


def values_before(kind: object) -> dict[str, Any]:
    """Return what held for a class before there were options for it, by their names.

    Args:
        kind: The class or its name, see ``renames_of``. A class has what those of the table have
            that it is derived from, but for what it gives them itself.
    """
    found, known = _entries(BEFORE, kind), _class_of(kind)
    return {name: v for name, v in found.items() if not known or name in parameters_of(known)}


def _class_of(kind: object) -> type | None:
    """Return the class of a name, if it has been imported."""
    if isinstance(kind, str):
        package, _, name = kind.rpartition(".")
        kind = getattr(sys.modules.get(package or f"{_OURS}modules"), name, None)
    return kind if isinstance(kind, type) else None


def _entries(table: Mapping[str, Mapping[str, Any]], kind: object) -> dict[str, Any]:
    """Return what a table by the library's classes holds for a class, or a name, and its bases."""
    if known := _class_of(kind):
        ours = (each for each in reversed(known.__mro__) if each.__module__.startswith(_OURS))
        return {key: value for each in ours for key, value in table.get(each.__name__, {}).items()}
    package, _, name = kind.rpartition(".") if isinstance(kind, str) else ("-", "", "")
    return dict(table.get(name, {})) if not package or package.startswith(_OURS) else {}


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


def translated_config(
    config: Mapping[str, Any], method: str | None = None, stored: bool = False
) -> dict[str, Any]:
    """Return a tree of fit's options with the method's and the data's under their new names.

    Args:
        config: The tree.
        method: The name of the method's class where the tree does not name it.
        stored: Whether a checkpoint keeps it, so that it has all options there were.

    Raises:
        ConfigError: An option is given by both names.
    """
    made = dict(config)
    for section, default in (("model", method), ("data", None)):
        part = made.get(section)
        if isinstance(part, Mapping) and isinstance(kind := part.get("class_path", default), str):
            made[section] = part = translated(part, kind)  # `model.tau` is short for its init_args
            if isinstance(options := part.get("init_args"), Mapping):
                before = values_before(kind) if stored and section == "model" else {}
                part["init_args"] = before | translated(options, kind)
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

    What they lack is what held before there was an option for it.

    Raises:
        ConfigError: An option is there by both names.
    """
    made = values_before(kind) | translated(options, kind)
    for name, value in made.items():
        if isinstance(value, Mapping) and isinstance(value.get("hyper_parameters"), Mapping):
            below = translated_hyperparameters(value["hyper_parameters"], value.get("class_path"))
            made[name] = {**value, "hyper_parameters": below}
    return made
