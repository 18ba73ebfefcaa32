"""Code of the user's own, which only the user's own command may name.

A module is imported only because the command line or a config of the user's names it, never because
a data file, a checkpoint or a tracking store does: importing runs what is in it.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from lit_offrl.common.errors import ConfigError, reason

_imports: list[str] = []


def take_imports(argv: Sequence[str]) -> list[str]:
    """Import the modules that ``--import MODULE`` names in a command, and return the rest.

    A checkpoint of a method of one's own names a class that is not imported for the checkpoint's
    sake, see ``named_classes``; so the user names its module.

    Raises:
        ConfigError: there is no such module, it fails, or none is named.
    """
    _imports.clear()
    arguments, rest = iter(argv), []
    for word in arguments:
        name, given, module = word.partition("=")
        if name != "--import":
            rest.append(word)
            continue
        module = module if given else next(arguments, "")
        if not module or module.startswith("-"):
            raise ConfigError("--import needs the name of a module: --import my_methods.")
        import_named(module, f"--import {module}")
        _imports.append(module)
    return rest


def import_words() -> list[str]:
    """Return the arguments with which another command imports the same modules as this one."""
    return [word for module in _imports for word in ("--import", module)]


def command_line(argv: Sequence[str]) -> str:
    """Return a command of lit-offrl's, the verb first, in such a way that it can be repeated."""
    return shlex.join(["lit-offrl", *import_words(), *argv])


def import_named(module: str, given: str) -> ModuleType:
    """Import a module that the user has named; the working folder counts, as for ``python -m``.

    Raises:
        ConfigError: there is no such module, or it fails; the line begins with what the user has
            ``given``, and names the module's file and line.
    """
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # it stays: environments import their parts when they are made
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{given}: there is no module '{module}', neither in {here} nor among the installed"
                " packages: run the command beside its file, or install it."
            ) from None
        raise ConfigError(f"{given}: {_failure(module, error)}") from error
    except (Exception, SystemExit) as error:  # whatever a user's file may raise
        raise ConfigError(f"{given}: {_failure(module, error)}") from error


def _failure(module: str, error: BaseException) -> str:
    said = reason(error, named=True)
    if isinstance(error, SyntaxError):  # its text has the file and the line as well
        said = f"{type(error).__name__}: {error.msg}"
    return f"importing '{module}' failed: {said}{place(error)}."


def place(error: BaseException) -> str:
    """Return `` (FILE, line N)`` of an error: the innermost line that is of no installed package.

    Where all lines are of packages, the innermost one of all.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_installed(frame.filename)]
    for frame in reversed(own or frames):
        return f" ({frame.filename}, line {frame.lineno})"
    return ""


def _is_installed(filename: str) -> bool:
    """Whether a file is Python's, a package's or this library's; frozen code has no file."""
    if filename.startswith("<"):
        return True
    folders = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    folders.add(str(Path(__file__).parents[1]))
    return any(Path(filename).is_relative_to(folder) for folder in folders if folder)
