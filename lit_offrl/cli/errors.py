"""The parser of the Trainer's verbs: every complaint is one line that names the nearest option.

jsonargparse reports a mistake inside a class as a tree of all that it tried, one thing a line. The
line that matters is in there; this file finds it.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, get_args, get_origin

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lit_offrl.cli.help import adapt_class_help, kinds_of
from lit_offrl.commands.parsing import OneLineParser, nearest_option, unknown
from lit_offrl.common.configs import METHODS, for_method, from_yaml, read_config
from lit_offrl.common.errors import ConfigError, LitOffRLError, nearest
from lit_offrl.common.named_classes import subclasses
from lit_offrl.common.renames import renames_of, translated
from lit_offrl.common.signatures import hints_of, parameters_of
from lit_offrl.modules import OfflineModule

_QUOTED = re.compile(r"'([^']+)'")
_TYPE = re.compile(r"<class '(?:\w+\.)*(\w+)'>|typing\.")
_LONGEST = 300  # letters of a message that is not known


class OneLineArgumentParser(OneLineParser, LightningArgumentParser):
    """Raises ConfigError with one line where jsonargparse prints usage and a dump.

    Options of a class may have the name of an earlier version, see ``renames``.
    """

    method: str | None = None
    """The path of the method's class, for which configs may hold values of their own."""
    renamed: ClassVar[dict[str, bool]] = {}
    """Lines about options that were given by their former name, and whether they were printed."""
    _shown: type | None = None  # the class whose help it prints, where it is made for that alone
    _kind: type | None = None  # the class whose options it parses, where it is made for one alone

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """Read a config, whose mistakes jsonargparse says without the file."""
        if read_config(Path(path)) is None:
            raise ConfigError(f"{path}: is empty: write fit's options in it, or leave it out.")
        return super().parse_path(path, *args, **kwargs)

    def parse_string(
        self, content: str, path: str | os.PathLike[str] = "", **kwargs: Any
    ) -> Namespace:
        """Read a config's text, with the values for the method at hand in their places."""
        if METHODS in content and isinstance(config := from_yaml(content), dict):
            own = for_method(config, self.method, str(path))
            require_methods(config.get(METHODS) or {}, str(path))
            content = yaml.safe_dump(own, sort_keys=False)
        return super().parse_string(content, path, **kwargs)

    def add_class_arguments(
        self, theclass: type, nested_key: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Add a class's options, and remember the class if there is no other."""
        if nested_key is None:
            self._kind = theclass
        else:
            self._shown = theclass
        return super().add_class_arguments(theclass, nested_key, *args, **kwargs)

    def print_help(self, file: Any = None) -> None:
        """Print the help; that of a method or of data alone, ``--model.help NAME``, by groups."""
        if getattr(self, "_inner_parser", False) and self._shown is not None:
            adapt_class_help(self, self._shown)
        super().print_help(file)

    def parse_object(self, obj: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Parse options that are given as an object, such as a config's ``init_args``."""
        options = vars(obj) if isinstance(obj, Namespace) else obj
        if renames := self._renames_in(options):
            obj = type(obj)(**translated(options, self._kind))
            self._note(renames)
        return super().parse_object(obj, *args, **kwargs)

    def parse_args(  # type: ignore[override]
        self, args: Any = None, *rest: Any, **kwargs: Any
    ) -> Namespace:
        """Parse arguments; those for a class come one by one, as ``--name=value``."""
        if self._kind is not None and args:
            name, given, value = args[0].removeprefix("--").partition("=")
            key, dot, below = name.partition(".")
            if renames := self._renames_in({key: value}):
                args = [f"--{renames[key]}{dot}{below}{given}{value}", *args[1:]]
                self._note(renames)
        return super().parse_args(args, *rest, **kwargs)

    def _renames_in(self, options: Mapping[str, Any]) -> dict[str, str]:
        renames = {} if self._kind is None else renames_of(self._kind)
        return {old: new for old, new in renames.items() if old in options}

    def _note(self, renames: Mapping[str, str]) -> None:
        for old, new in renames.items():
            line = f"{self._kind.__name__}: {old} is called {new} now"  # type: ignore[union-attr]
            self.renamed.setdefault(line, False)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong, unless this is a parser within jsonargparse's own attempts."""
        if not self.exit_on_error:
            LightningArgumentParser.error(self, message, ex)
        if ex is not None and (ours := find_ours(ex)) is not None:
            raise ours from None
        parser = getattr(ex, "subcommand_parser", None) or self
        raise ConfigError(explain(message, parser.option_names())) from None


def require_methods(names: Iterable[str], where: str) -> None:
    """Refuse a misspelt class of a method, whose values would be for no method.

    A class of the user's own that no ``--import`` has named is not known here: what is unlike all
    that are, or has the whole name of one at its end, may be one.

    Args:
        names: Classes that a config has values for.
        where: The file, for messages.

    Raises:
        ConfigError: A name is nearly that of a method.
    """
    known = {kind.__name__.lower(): kind.__name__ for kind in subclasses(OfflineModule)}
    for name in map(str, names):
        if name.endswith(tuple(known.values())):
            continue
        written = name.lower()
        near = [f"{written}module", *difflib.get_close_matches(written, known, n=1, cutoff=0.9)]
        if meant := next((known[each] for each in near if each in known), None):
            raise ConfigError(
                f"{where}: {METHODS}.{name}: is no method. Did you mean '{meant}'?"
                " A class of your own is made known by --import."
            )


def find_ours(error: BaseException) -> LitOffRLError | None:
    """Return the error of this library behind an error of jsonargparse's, if there is one."""
    return next((one for one in _behind(error) if isinstance(one, LitOffRLError)), None)


def find_lightnings(error: BaseException) -> BaseException | None:
    """Return the error that Lightning's own code has raised, at or behind an error, if any."""
    for one in _behind(error):
        frames = list(traceback.walk_tb(one.__traceback__))
        if frames and str(frames[-1][0].f_globals.get("__name__")).startswith("lightning."):
            return one
    return None


def _behind(error: BaseException) -> Iterator[BaseException]:
    met: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in met:
            met.append(one)
            waiting += [one.__context__, one.__cause__]
            yield one


def explain(message: str, options: list[str]) -> str:
    """Make one line of jsonargparse's message: of the first line in it that says what is wrong.

    Raises:
        ConfigError: It is about a file that is no YAML, which names that.
    """
    keys: list[str] = []  # the way to the option: trainer, callbacks
    owner = types = ""  # the class whose options are looked at, and the types that a value may have
    for line in (each.strip().removeprefix("- ") for each in message.splitlines()):
        if line.startswith('Parser key "'):
            key, _, line = line.removeprefix('Parser key "').partition('":')
            keys.append(key)
            line = line.strip()
        place, quoted = ".init_args.".join(keys), _QUOTED.findall(line)
        first, _, last = line.partition(": ")
        if line.startswith("Problem with given class_path"):
            owner = quoted[0]
        elif first == "Subtypes":
            types = last
        elif line.startswith("Unable to load config '"):
            if not Path(quoted[0]).exists():
                return f"--{place} {quoted[0]}: there is no such file."
            read_config(Path(quoted[0]))  # names the file if it is no YAML
        elif first.startswith("Invalid content in sub-config file"):
            read_config(Path(first.split()[-1]))
        elif first == "unrecognized arguments":
            return unknown(last, options)
        elif "does not accept option" in line:  # of a verb or a group of options
            name = quoted[1] if line.startswith("Subcommand") else ".".join(quoted)
            return f"there is no option '{name}'.{nearest_option(name, options)}"
        elif line.endswith("is not accepted") and owner:
            hint = nearest(quoted[0], parameters_of(_find(owner)) if _find(owner) else ())
            return f"{owner.rpartition('.')[2]} has no option '{quoted[0]}'.{hint}"
        elif line.endswith("is not accepted"):
            return f"there is no option '{quoted[0]}'.{nearest_option(quoted[0], options)}"
        elif "has no attribute" in line and owner:
            module, name = quoted
            hint = nearest(name, vars(sys.modules[module]) if module in sys.modules else ())
            return f"{place}: module '{module}' has no class '{name}'.{hint}"
        elif first == "the following arguments are required":
            names = [f"{place}.init_args.{name}" if keys else name.partition(".")[2]
                     for name in last.split(", ")]  # fmt: skip
            needed = " and ".join(f"--{name}" for name in names)
            return f"{needed} must be given, by an option or in a --config file."
        elif first == "Expected a dot import path string":
            return f"{place}: there is no class '{last}'.{_known(types, last)}"
        elif "does not correspond to a subclass of" in line:
            path, base = line.split()[2], line.split()[-1]
            return f"{place}: '{path}' is no {base}.{_known(types, path)}"
        elif line.startswith("Expected ") and ". Got value: " in line:
            wanted, _, value = line.partition(". Got value: ")
            wanted = _choices(owner, keys) or wanted.split(maxsplit=2)[-1]
            return _wrong_value(place, wanted, value)
        elif first == "Given value" and ("Literal" in types or not _bases(types)):
            return _wrong_value(place, types.strip("[]").replace(">, <", "> or <"), last)
    line = " ".join(message.split()).replace('Parser key "config": ', "--config: ")
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"


def _wrong_value(place: str, wanted: str, value: str) -> str:
    """Say which of some values, or of what types as Python prints them, a value should be."""
    literals = re.findall(r"Literal\[(.*?)\]", wanted)
    if literals:
        choices = list(dict.fromkeys(each.strip(" '") for each in ",".join(literals).split(",")))
        return f"{place}: '{value}' is none of {', '.join(choices)}.{nearest(value, choices)}"
    wanted = _TYPE.sub(r"\1", wanted).replace("NoneType", "null")
    return f"{place}: '{value}' does not fit: expected {wanted}."


def _choices(owner: str, keys: list[str]) -> str:
    """Return the Literal of a class's option, of which jsonargparse names no more than a bool."""
    kind = _find(owner)
    hint = hints_of(kind).get(keys[-1]) if isinstance(kind, type) and keys else None
    if get_origin(hint) is not Literal:
        return ""
    words = (str(one).lower() if isinstance(one, bool) else str(one) for one in get_args(hint))
    return f"Literal[{', '.join(words)}]"


def _bases(types: str) -> list[type]:
    """Return the classes among types as Python prints them, without those of plain values."""
    found = [_find(path) for path in re.findall(r"(?:<class '|list\[)([\w.]+)", types)]
    return [each for each in found if isinstance(each, type)]


def _known(types: str, name: str) -> str:
    """Return a hint at the nearest of the classes that may be named, or at all of them."""
    bases = _bases(types)
    known = sorted({each.__name__ for each in kinds_of(bases[0])}) if bases else []
    return nearest(name, known) or (f" Known: {', '.join(known)}." if known else "")


def _find(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None) if module else None
    except (ImportError, ValueError):
        return None
