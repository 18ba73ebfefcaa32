"""The parser of the Trainer's verbs: every complaint is one line that names the nearest option.

jsonargparse reports a mistake inside a class as a tree of all that it tried. The line that matters
is in there; this file finds it.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lit_offrl.cli.help import kinds_of
from lit_offrl.common.configs import METHODS, for_method, from_yaml, read_config
from lit_offrl.common.errors import ConfigError, LitOffRLError, nearest
from lit_offrl.common.renames import renames_of, translated
from lit_offrl.common.signatures import parameters_of

_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_UNKNOWN_PARAMETER = re.compile(r"(?:Option|Key) '([^']+)' is not accepted")
_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_NO_SUBCLASS = re.compile(r"Import path (\S+) does not correspond to a subclass of (\w+)")
_NO_ATTRIBUTE = re.compile(r"given class_path '([\w.]+)\.(\w+)':\s+module '\1' has no attribute")
_MISSING = re.compile(r"the following arguments are required: ([^\n]+)")
_UNKNOWN_OPTION = re.compile(r"(?:Subcommand|Group) '([^']+)' does not accept option '([^']+)'")
_TYPES = re.compile(r"Subtypes: \[(?:list\[[\w.]+\], )?<class '([^']+)'>")
_EXPECTED = re.compile(r"(Expected (?:a|an|one of) [^\n]*?)\. Got value: ([^\n]*)")
_LITERAL = re.compile(r"typing\.Literal\[(.*?)\]")
_PLAIN = re.compile(r"Subtypes: \[((?:<class '(?:bool|int|float|str|NoneType)'>(?:, )?)+)\]")
_NO_FILE = re.compile(r"^Parser key \"([\w.]+)\":\s+Unable to load config '([^']+)'")
_GIVEN = re.compile(r"Given value: ([^\n]*)")
_VALUE = re.compile(r"Given value: (.+)\s*$")
_ARTICLE = re.compile(r"^Expected an? ")
_LENGTH = 300


class OneLineArgumentParser(LightningArgumentParser):
    """Raises ConfigError with one line where jsonargparse prints usage and a dump.

    Options must be written out: an abbreviation that is unique today may name another option
    tomorrow. Those of a class may have the name of an earlier version, see ``renames``.
    """

    method: str | None = None
    """The path of the method's class, for which configs may hold values of their own."""
    renamed: ClassVar[dict[str, bool]] = {}
    """Lines about options that were given by their former name, and whether they were printed."""
    _kind: type | None = None  # the class whose options it parses, where it is made for one alone

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """Read a config, whose mistakes jsonargparse says without the file.

        Raises:
            ConfigError: it is no YAML, or holds no options.
        """
        if read_config(Path(path)) is None:
            raise ConfigError(f"{path}: is empty: write fit's options in it, or leave it out.")
        return super().parse_path(path, *args, **kwargs)

    def parse_string(
        self, content: str, path: str | os.PathLike[str] = "", **kwargs: Any
    ) -> Namespace:
        """Read a config's text, with the values for the method at hand in their places."""
        if METHODS in content and isinstance(config := from_yaml(content), dict):
            content = yaml.safe_dump(for_method(config, self.method, str(path)), sort_keys=False)
        return super().parse_string(content, path, **kwargs)

    def add_class_arguments(
        self, theclass: type, nested_key: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Add a class's options, and remember the class if there is no other."""
        if nested_key is None:
            self._kind = theclass
        return super().add_class_arguments(theclass, nested_key, *args, **kwargs)

    def parse_object(self, obj: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Parse options that are given as an object, such as a config's ``init_args``.

        Raises:
            ConfigError: one is given by its former name and its new one.
        """
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
        """Say what is wrong.

        Raises:
            ConfigError: always, unless this is a parser within jsonargparse's own attempts.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        if ex is not None and (ours := find_ours(ex)) is not None:
            raise ours from None
        parser = getattr(ex, "subcommand_parser", None) or self
        raise ConfigError(explain(message, option_names(parser))) from None

    def print_usage(self, file: Any = None) -> None:
        """Nothing: an error is one line."""


def find_ours(error: BaseException) -> LitOffRLError | None:
    """Return the error of this library behind an error of jsonargparse's, if there is one."""
    return next((one for one in _behind(error) if isinstance(one, LitOffRLError)), None)


def find_lightnings(error: BaseException) -> BaseException | None:
    """Return the error that Lightning's own code has raised, at or behind an error, if any."""
    return next((one for one in _behind(error) if _is_lightnings(one)), None)


def _behind(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in seen:
            seen.append(one)
            waiting += [one.__context__, one.__cause__]
            yield one


def _is_lightnings(error: BaseException) -> bool:
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and str(frames[-1][0].f_globals.get("__name__")).startswith("lightning.")


def option_names(parser: LightningArgumentParser) -> list[str]:
    """Return all options of a parser and of its verbs, as keys: ``trainer.max_steps``."""
    names = []
    for action in parser._actions:
        names += [o.removeprefix("--") for o in action.option_strings if o.startswith("--")]
        for below in getattr(action, "_name_parser_map", {}).values():
            names += option_names(below)
    return names


def explain(message: str, options: Iterable[str]) -> str:
    """Make one line of jsonargparse's message.

    Args:
        message: what jsonargparse says.
        options: the options that there are.

    Raises:
        ConfigError: it is about a file that is no YAML, which names that.
    """
    options = list(options)
    if found := _NO_FILE.search(message):
        key, path = found.groups()
        if not Path(path).exists():
            return f"--{key} {path}: there is no such file."
        read_config(Path(path))  # names the file if it is no YAML
    if message.startswith("unrecognized arguments: "):
        return _unknown_words(message.partition(": ")[2], options)
    if found := _UNKNOWN_OPTION.search(message):
        group, option = found.groups()
        option = option if group in ("fit", "validate", "test", "predict") else f"{group}.{option}"
        return f"there is no option '{option}'.{_nearest_option(option, options)}"
    if found := _UNKNOWN_PARAMETER.search(message):
        owner = [m for m in _CLASS.finditer(message) if m.start() < found.start()]
        if owner:
            path = owner[-1][1]
            hint = nearest(found[1], _parameters(path))
            return f"{path.rpartition('.')[2]} has no option '{found[1]}'.{hint}"
        return f"there is no option '{found[1]}'.{_nearest_option(found[1], options)}"
    if found := _NO_ATTRIBUTE.search(message):
        module, name = found.groups()
        hint = nearest(name, vars(sys.modules[module]) if module in sys.modules else ())
        return f"{_place(message, found.start())} module '{module}' has no class '{name}'.{hint}"
    if found := _MISSING.search(message):
        return _missing(found[1].split(", "), _keys(message, found.start()))
    if found := _UNKNOWN_CLASS.search(message):
        hint = _nearest_class(message, found.start(), found[1])
        return f"{_place(message, found.start())} there is no class '{found[1]}'.{hint}"
    if found := _NO_SUBCLASS.search(message):
        hint = _nearest_class(message, found.start(), found[1])
        return f"{_place(message, found.start())} '{found[1]}' is no {found[2]}.{hint}"
    if (found := _PLAIN.search(message)) and (given := _GIVEN.search(message, found.end())):
        kinds = " or ".join(re.findall(r"'(\w+)'", found[1])).replace("NoneType", "null")
        return _wrong_value(message, found.start(), f"Expected a {kinds}", given[1])
    if found := _EXPECTED.search(message):
        return _wrong_value(message, found.start(), found[1], found[2])
    if (found := _VALUE.search(message)) and _LITERAL.search(message):
        return _wrong_value(message, found.start(), message, found[1])
    line = " ".join(message.split()).replace('Parser key "config": ', "--config: ")
    return line if len(line) <= _LENGTH else f"{line[:_LENGTH]} …"


def _missing(names: Iterable[str], keys: Sequence[str]) -> str:
    """Say what must be given, in the class that stands at the end of ``keys``, or to the verb."""
    place = ".init_args.".join([*keys, ""])
    full = [place + name if keys else name.partition(".")[2] for name in names]
    needed = " and ".join(f"--{name}" for name in full)
    return f"{needed} must be given, by an option or in a --config file."


def _nearest_class(message: str, end: int, name: str) -> str:
    bases = [found[1] for found in _TYPES.finditer(message, 0, end)]
    known = _subclasses(bases[-1]) if bases else []
    return nearest(name, known) or (f" Known: {', '.join(known)}." if known else "")


def _unknown_words(words: str, options: list[str]) -> str:
    for word in words.split():
        if word.startswith("-"):
            name = word.partition("=")[0].lstrip("-")
            hint = _nearest_option(name, options).replace("'", "'--", 1)
            return f"there is no option '--{name}'.{hint}"
    return f"nothing is known to do with '{words}'; options begin with --."


def _nearest_option(name: str, options: list[str]) -> str:
    """Find the nearest option, or that of the first part of a dotted name."""
    hint = nearest(name, options)
    root = name.partition(".")[0]
    if not hint or (root != name and f"'{root}" not in hint and root in _roots(options)):
        hint = nearest(name, [o for o in options if o.startswith(f"{root}.")]) or hint
    return hint or nearest(root, _roots(options))


def _roots(options: Iterable[str]) -> list[str]:
    return sorted({option.partition(".")[0] for option in options})


def _wrong_value(message: str, end: int, expected: str, value: str) -> str:
    place = _place(message, end)
    literals = ",".join(found[1] for found in _LITERAL.finditer(expected)).split(",")
    choices = list(dict.fromkeys(choice.strip().strip("'\"") for choice in literals))
    if choices != [""]:
        hint = nearest(value, choices)
        return f"{place} '{value}' is none of {', '.join(choices)}.{hint}"
    wanted = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", expected).replace("typing.", "")
    return f"{place} '{value}' does not fit: {_ARTICLE.sub('expected ', wanted)}."


def _place(message: str, end: int) -> str:
    """Name the option that a part of the message is about: ``data.init_args.view:``."""
    keys = _keys(message, end)
    return f"{'.init_args.'.join(keys)}:" if keys else ""


def _keys(message: str, end: int) -> list[str]:
    return [found[1] for found in _KEY.finditer(message, 0, end)]


def _find(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None


def _parameters(class_path: str) -> list[str]:
    kind = _find(class_path)
    return [] if kind is None else list(parameters_of(kind))


def _subclasses(class_path: str) -> list[str]:
    """Return names of the classes that may be given where ``class_path`` is asked for."""
    kind = _find(class_path)
    if not isinstance(kind, type):
        return []
    return sorted({one.__name__ for one in kinds_of(kind)})
