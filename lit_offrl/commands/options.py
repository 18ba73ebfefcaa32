"""Options of a command made from a dataclass: one for each field, with the docstring's help.

    @dataclass(frozen=True, kw_only=True)
    class Values:
        '''Values of states.

        Args:
            states: Number of states, at least 1.        --states STATES
        '''                                                     Number of states, at least 1.
                                                                (default: 512)
        states: Annotated[int, "[1, inf)"] = 512

An annotation says how the option is read: ``list[...]`` takes several values, ``Literal`` one of
those named, ``bool`` makes ``--name`` and ``--no-name``, and a function in ``Annotated`` reads the
text; ``Annotated[list[...], "append"]`` takes one value each time that the option is given.
Intervals in ``Annotated`` are checked by the dataclass, see ``common.ranges``. The file of a
``Checkpoint`` is found, see ``tracking.references``, in the store of ``tracking_uri`` if need be.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import docstring_parser

from lit_offrl.commands.parsing import OneLineParser, path
from lit_offrl.tracking.references import REFERENCE, checkpoint_path

T = TypeVar("T")


def parse(kind: type[T], argv: Sequence[str], verb: str, epilog: str | None = None) -> T:
    """Return the dataclass that a command's arguments make; its docstring describes the command.

    Raises:
        ConfigError: An argument cannot be.
    """
    text = docstring_parser.parse(kind.__doc__ or "")
    said = filter(None, (text.short_description, text.long_description))
    parser = OneLineParser(prog=f"lit-offrl {verb}", description=" ".join(said), epilog=epilog)
    add_options(parser, kind)
    return make(kind, parser.parse_args(list(argv)))


def add_options(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    *kinds: type,
    skip: Iterable[str] = (),
    default: Any = None,
    hyphens: bool = False,
) -> None:
    """Add an option for each field of dataclasses, those of their base classes included.

    Args:
        parser: The parser that the options are added to.
        *kinds: Dataclasses; a field that several of them have is added once.
        skip: Names of fields without an option.
        default: Value of options that are not given, in place of the fields' defaults, which the
            help names all the same; None takes the fields' own.
        hyphens: Whether ``--a_name`` may be written ``--a-name``, too.
    """
    added = set(skip)
    for kind in kinds:
        hints, texts = get_type_hints(kind, include_extras=True), descriptions(kind)
        for field in dataclasses.fields(kind):
            if field.name in added or not field.init:
                continue
            added.add(field.name)
            usual = field.default
            if field.default_factory is not dataclasses.MISSING:
                usual = field.default_factory()
            text = texts[field.name].replace("%", "%%")
            keywords = _keywords(hints[field.name])
            if usual is dataclasses.MISSING:
                keywords["required"] = True
            elif usual not in (None, "", [], {}):
                shown = " ".join(map(str, usual)) if isinstance(usual, list) else usual
                text += f" (default: {shown})"
            if "required" not in keywords:
                keywords["default"] = usual if default is None else default
            names = [field.name, field.name.replace("_", "-")] if hyphens else [field.name]
            flags = [f"--{name}" for name in dict.fromkeys(names)]
            parser.add_argument(*flags, dest=field.name, help=text, **keywords)


def descriptions(kind: type) -> dict[str, str]:
    """Return what the docstrings of a class and of its base classes say of each argument."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        for param in docstring_parser.parse(each.__doc__ or "").params:
            found[param.arg_name] = " ".join((param.description or "").split())
    return found


def make(kind: type[T], options: argparse.Namespace) -> T:
    """Return the dataclass made from parsed options, which may be more than it has fields.

    Raises:
        ConfigError: An option cannot be, or names a run or model that is not there.
    """
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    given = {name: getattr(options, name) for name in names if hasattr(options, name)}
    hints = get_type_hints(kind, include_extras=True)
    uri = getattr(options, "tracking_uri", None)
    return kind(**{name: _found(hints[name], value, uri) for name, value in given.items()})


def _found(hint: Any, value: Any, tracking_uri: str | None) -> Any:
    """Return an option's value, with the files of checkpoints in place of what refers to them."""
    if get_origin(hint) is list:
        return [_found(get_args(hint)[0], each, tracking_uri) for each in value]
    is_one = REFERENCE in getattr(hint, "__metadata__", ())
    return checkpoint_path(value, tracking_uri) if is_one and value is not None else value


def _keywords(hint: Any) -> dict[str, Any]:
    """Return the keywords of ``add_argument`` that an annotation asks for."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated and "append" in inner:
        return {**_keywords(get_args(inner[0])[0]), "action": "append"}
    if origin is Annotated:
        read = next((each for each in inner[1:] if callable(each)), None)
        return {"type": read} if read is not None else _keywords(inner[0])
    if origin in (Union, types.UnionType):
        (hint,) = (each for each in inner if each is not type(None))
        return _keywords(hint)
    if origin is list:
        return {**_keywords(inner[0]), "nargs": "+"}
    if origin is Literal:
        return {"choices": inner}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": path if hint is Path else hint}
