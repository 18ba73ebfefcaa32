"""What ``--help`` says of a Trainer's verb where Lightning's own words do not hold here."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator

from lightning.pytorch.cli import LightningArgumentParser

import lit_offrl.modules

_DOES = {
    "fit": "Train a method, or resume from a checkpoint.",
    "validate": "Measure the losses of a checkpoint on held-out episodes.",
    "test": "Measure the losses of a checkpoint on held-out episodes, apart from a fit's curves.",
    "predict": "Write the actions that a checkpoint's policy takes in the states of a dataset.",
}
_MORE = "--model.help NAME and --data.help NAME show the options of a method and of data."
_CHECKPOINT = {
    "fit": "A checkpoint of fit, to go on from; options given beside it win over its own.",
    "validate": "A checkpoint of fit: whose losses are measured.",
    "test": "A checkpoint of fit: whose losses are measured.",
    "predict": "A checkpoint of fit: whose policy acts.",
}


def adapt_help(parser: LightningArgumentParser, verb: str) -> None:
    """Say what the verb does; list the methods without their common bases.

    A checkpoint is a file here and no keyword.
    """
    parser.usage = f"lit-offrl {verb} [--config CONFIG ...] [--OPTION VALUE ...]"
    parser.description = f"{_DOES[verb]} {_MORE}"
    for action in parser._actions:
        if action.dest == "model":
            said = ", known subclasses: " + ", ".join(map(_public_path, kinds_of(_METHOD)))
            action.extra_help = lambda said=said: said  # type: ignore[attr-defined]
        elif action.dest == "ckpt_path":
            action.help = _CHECKPOINT[verb]
        elif action.dest == "weights_only":  # each has been read so before
            action.help = argparse.SUPPRESS
        action.help = _plain(action.help)


def adapt_class_help(parser: LightningArgumentParser, kind: type) -> None:
    """Group a class's options by the class that states them, its own first.

    Those that follow from the data and from ``seed_everything`` are left out, since nobody gives
    them. So is the usage, which would name each option once more.
    """
    parser.usage = argparse.SUPPRESS
    linked = OF_DATA if issubclass(kind, _METHOD) else _OF_SEED
    groups = {kind: next(g for g in parser._action_groups if g._group_actions)}
    for action in list(groups[kind]._group_actions):
        name = action.dest.rpartition(".")[2]
        owner = owner_of(kind, name)
        if owner not in groups:
            line = (inspect.getdoc(owner) or "").partition("\n")[0].rstrip(".")
            groups[owner] = parser.add_argument_group(f"{owner.__name__}: {line}")
        if owner is not kind:
            groups[kind]._group_actions.remove(action)
            groups[owner]._group_actions.append(action)
        action.help = argparse.SUPPRESS if name in linked else _plain(action.help)


def owner_of(kind: type, name: str) -> type:
    """Return the class, of a class and its bases, whose constructor states an option."""
    return next((each for each in kind.__mro__ if name in _stated(each)), kind)


def _stated(kind: type) -> list[str]:
    """Return the names of the parameters that a class's own constructor states."""
    init = vars(kind).get("__init__")
    return list(inspect.signature(init).parameters) if inspect.isfunction(init) else []


def _plain(text: str | None) -> str | None:
    """Return a docstring's text without the marks around code."""
    return None if text is None else text.replace("``", "")


def kinds_of(base: type) -> list[type]:
    """Return the classes that may be named where one is wanted, those derived from it.

    Without abstract ones and those that the library keeps for its own methods to share.
    """
    return [kind for kind in dict.fromkeys(_below(base)) if not _is_shared(kind)]


_METHOD = lit_offrl.modules.OfflineModule
_OF_SEED = ("seed",)
OF_DATA = ("observation_dim", "action_dim", "action_low", "action_high", *_OF_SEED)
"""Options of a method that nobody gives: they follow from the data, or from ``seed_everything``."""


def _is_shared(kind: type) -> bool:
    if inspect.isabstract(kind):
        return True
    ours = kind.__module__.startswith(f"{lit_offrl.modules.__name__}.")
    return ours and kind.__name__ not in lit_offrl.modules.__all__


def _below(kind: type) -> Iterator[type]:
    children: list[type] = kind.__subclasses__()
    for below in children:
        yield below
        yield from _below(below)


def _public_path(kind: type) -> str:
    ours = kind.__module__.startswith(f"{lit_offrl.modules.__name__}.")
    return f"{lit_offrl.modules.__name__ if ours else kind.__module__}.{kind.__name__}"
