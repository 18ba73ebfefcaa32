"""Errors that are shown as one line, without a traceback, and end with ``exit_code``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class LitOffRLError(Exception):
    """A fault that the user can correct. The message says what is wrong and what to do."""

    exit_code = 2


class DatasetError(LitOffRLError, ValueError):
    """A dataset cannot be used; the message names file, column and row."""


class DownloadError(LitOffRLError):
    """A dataset could not be downloaded; the message names the way round."""


class ConfigError(LitOffRLError, ValueError):
    """An option, or a combination of options, cannot work."""


class FileError(LitOffRLError):
    """A file cannot be written; the message names it and the reason."""


class EvaluationError(LitOffRLError):
    """A policy cannot be evaluated as requested."""


class TrainingError(LitOffRLError):
    """Training met a number that is not finite and stopped."""

    exit_code = 3  # no mistake of the command's: a script may want to tell the two apart


def install(extra: str) -> str:
    """Return the command that installs an extra of lit-offrl's: in its clone, or from its wheel."""
    clone = (Path(__file__).parents[2] / "pyproject.toml").is_file()
    return f"`pip install {'-e .' if clone else 'lit-offrl'}[{extra}]`"


def reason(error: BaseException, limit: int = 200, named: bool = False) -> str:
    """Return an error's text as the part of a line, ``named`` by its class: ``limit`` letters."""
    text = f"{type(error).__name__}: {error}" if named else str(error)
    return " ".join(text.split())[:limit] or type(error).__name__


def root(error: BaseException) -> BaseException:
    """Return the error behind an error, where a library has wrapped it in its own."""
    while (behind := error.__cause__ or error.__context__) is not None:
        error = behind
    return error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, without the full stop, or its class's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def nearest(word: str, candidates: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the candidate nearest to ``word``, or ``""``."""
    found = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""
