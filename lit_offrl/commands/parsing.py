"""What a command line says wrong, in one line: a parser that names the nearest thing it knows."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, NoReturn

from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.common.ranges import SEEDS, lies_in


class OneLineParser(argparse.ArgumentParser):
    """Says ``prog: what is wrong. Did you mean '--episodes'? (see prog --help)`` and exits with 2.

    Subparsers made by ``add_subparsers().add_parser()`` are of this class too. Options must be
    written out, since an abbreviation that is unique today may name another option tomorrow.

    Args:
        **options: those of ``argparse.ArgumentParser``; ``allow_abbrev`` is False unless given.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Print the one line on stderr and exit with 2."""
        self.exit(2, f"{self.prog}: {self.line(message)} (see {self.prog} --help)\n")

    def line(self, message: str) -> str:
        """Put argparse's message in a line of ours."""
        head, found, rest = message.partition("unrecognized arguments: ")
        if found:
            message = head + _unknown(rest, list(self.option_names()))
        message = " ".join(message.split()).rstrip(".")
        end = "" if message.endswith("?") else "."
        return f"{message}{end}"

    def option_names(self) -> Iterator[str]:
        """Yield every option of this parser and of the subparsers below it."""
        for action in self._actions:
            yield from (name for name in action.option_strings if name.startswith("--"))
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    if isinstance(parser, OneLineParser):
                        yield from parser.option_names()

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # argparse's own message lists every choice but never says which one was probably meant.
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        what = "verb" if isinstance(action, argparse._SubParsersAction) else "choice"
        guess = nearest(str(value), choices)
        known = ", ".join(choices)
        raise argparse.ArgumentError(
            None if what == "verb" else action,
            f"unknown {what} '{value}' (known: {known}).{guess}",
        )


class RaisingParser(OneLineParser):
    """Says what ``OneLineParser`` says in a ``ConfigError``, for arguments nobody has typed yet."""

    def error(self, message: str) -> NoReturn:
        """Raise the one line.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(self.line(message))


def _unknown(words: str, options: list[str]) -> str:
    """Say which words are unknown, with the nearest option to the first that looks like one."""
    for word in words.split():
        if word.startswith("-"):
            name = word.partition("=")[0]
            return f"unknown option '{name}'.{nearest(name, options)}"
    return f"unexpected argument '{words}'"


def positive(text: str) -> int:
    """Read a whole number of at least 1, as argparse's ``type``."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def seed_number(text: str) -> int:
    """Read a seed, as argparse's ``type``."""
    number = int(text)
    if not lies_in(SEEDS, number):
        raise ValueError
    return number


seed_number.__name__ = f"seed in {SEEDS}"
positive.__name__ = "positive integer"  # argparse names the type in its message


def discount(text: str) -> float:
    """Read a discount from text, for ``argparse``."""
    gamma = float(text)
    if not lies_in("[0, 1]", gamma):
        raise ValueError
    return gamma


discount.__name__ = "number in [0, 1]"
