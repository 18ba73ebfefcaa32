"""The parser of all verbs, whose complaints are one line, and types of their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.common.ranges import SEEDS, lies_in

T = TypeVar("T", int, float)


class OneLineParser(argparse.ArgumentParser):
    """Raises a ConfigError of one line where argparse prints its usage and exits.

    Subparsers made by ``add_subparsers().add_parser()`` are of this class too. Options must be
    written out, since an abbreviation that is unique today may name another option tomorrow.

    Args:
        *args: Those of ``argparse.ArgumentParser``.
        **options: Those of ``argparse.ArgumentParser``; ``allow_abbrev`` is False unless given.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong."""
        del ex
        _, is_unknown, rest = message.partition("unrecognized arguments: ")
        line = unknown(rest, self.option_names()) if is_unknown else " ".join(message.split())
        end = "" if line.endswith(("?", ".")) else "."
        raise ConfigError(f"{line}{end} (see {self.prog} --help)") from None

    def option_names(self) -> list[str]:
        """Return every option of this parser and of the verbs below it, without the dashes."""
        found = []
        for action in self._actions:
            found += [name.removeprefix("--") for name in action.option_strings if name[:2] == "--"]
            for below in getattr(action, "_name_parser_map", {}).values():
                found += below.option_names()
        return found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # argparse's own message lists every choice but never says which one was probably meant.
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        what = "verb" if isinstance(action, argparse._SubParsersAction) else "choice"
        raise argparse.ArgumentError(
            None if what == "verb" else action,
            f"unknown {what} '{value}' (known: {', '.join(choices)}).{nearest(value, choices)}",
        )


def unknown(arguments: str, options: Iterable[str]) -> str:
    """Say which argument is unknown, with the nearest option to the first that looks like one."""
    for argument in arguments.split():
        if argument.startswith("-"):
            name = argument.partition("=")[0].lstrip("-")
            hint = nearest_option(name, options).replace("'", "'--", 1)
            return f"there is no option '--{name}'.{hint}"
    return f"nothing is known to do with '{arguments}'; options begin with --."


def nearest_option(name: str, options: Iterable[str]) -> str:
    """Return a hint at the nearest option, or at that of the first part of a dotted name."""
    options = list(options)
    root, roots = name.partition(".")[0], sorted({each.partition(".")[0] for each in options})
    hint = nearest(name, options)
    if not hint or (root != name and f"'{root}" not in hint and root in roots):
        hint = nearest(name, [each for each in options if each.startswith(f"{root}.")]) or hint
    return hint or nearest(root, roots)


def _number(kind: type[T], interval: str, name: str) -> Callable[[str], T]:
    """Return a reader of numbers in an interval, an argparse ``type`` that messages name so."""

    def read(text: str) -> T:
        number = kind(text)
        if not lies_in(interval, number):
            raise ValueError
        return number

    read.__name__ = name
    return read


def path(text: str) -> Path:
    """Read a path; an empty text, as of a variable that is not set, is none."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: give the path of a file or a folder")
    return Path(text)


positive = _number(int, "[1, inf)", "positive integer")
seed_number = _number(int, SEEDS, f"seed in {SEEDS}")
discount = _number(float, "[0, 1]", "number in [0, 1]")
