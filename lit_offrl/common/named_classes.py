"""Classes that a file names: looked up among those that are there, never fetched for the file.

Importing a module runs it, and calling what a name stands for may do anything. A checkpoint may
come from anybody, so a name in one is no reason to do either. A class that a file names is taken
only

* if it has been imported already, being this library's or named by the user's own command; or
* if it is of an installed package that requires lit-offrl, as a package of further methods does.

It must then derive from the class that is wanted in its place. Nothing else is imported: no other
installed package, and no file of the working directory or of ``PYTHONPATH``.
"""

from __future__ import annotations

import enum
import importlib
import importlib.metadata
import importlib.util
import json
import re
import site
import sys
import sysconfig
import types
import urllib.parse
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from lit_offrl.common.errors import ConfigError, reason
from lit_offrl.common.signatures import hints_of

T = TypeVar("T")

_REQUIRES_US = re.compile(r"lit[-_.]offrl\b", re.IGNORECASE)
_KEYS = ("class_path", "init_args", "dict_kwargs")
_LONGEST = 80  # letters of a value in a message


def class_named(name: object, base: type[T], where: str) -> type[T]:
    """Return the class that a file names.

    Args:
        name: Value in the file, which has to be a dotted path.
        base: Class that the named class must derive from.
        where: File and key, for messages.

    Raises:
        ConfigError: it is no name, the class may not be imported or is not there, or it is of
            another kind.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: {_shown(name)} is the name of no class.")
    for kind in () if base is object else (base, *subclasses(base)):
        if name == f"{kind.__module__}.{kind.__qualname__}":
            return kind
    package, _, short = name.rpartition(".")
    cannot = f"{where}: the class {name[:_LONGEST]} cannot be imported"
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{cannot}: this is no name of a class.")
    if package not in sys.modules:
        if not _requires_us(package):
            raise ConfigError(
                f"{cannot}: only a file names it, and it is neither of lit-offrl nor of an"
                " installed package that requires lit-offrl. If it is your own, or you trust it,"
                f" give --import {package or name}."
            )
        try:
            importlib.import_module(package)
        except Exception as error:  # whatever the package's own code raises
            raise ConfigError(f"{cannot} ({reason(error)}).") from error
    found = vars(sys.modules[package]).get(short)  # getattr may import what is loaded lazily
    if found is None:
        raise ConfigError(f"{cannot}: {package} has none of that name.")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{where}: {name[:_LONGEST]} is no {base.__name__}.")
    return found


def checked_part(part: object, base: type[Any], parts: type[Any], where: str) -> dict[str, Any]:
    """Check ``{class_path, init_args}`` of a file before anything is made of it.

    Args:
        part: Value in the file.
        base: Class that the part's class must derive from.
        parts: Base classes of the classes that its arguments may name.
        where: File and key, for messages.

    Returns:
        The same, with a mapping for each class that is named only by a text.

    Raises:
        ConfigError: it has another form, or a class in it may not be used.
    """
    if not isinstance(part, Mapping) or not {*part} <= {*_KEYS}:
        raise ConfigError(f"{where} is {_shown(part)}, where class_path and init_args are needed.")
    name = part.get("class_path")
    kind: Any = class_named(name, base, f"{where}.class_path")
    hints = hints_of(kind)
    checked: dict[str, Any] = {"class_path": name}
    for key in _KEYS[1:]:
        arguments = part.get(key) or {}
        if not isinstance(arguments, Mapping) or not all(isinstance(n, str) for n in arguments):
            raise ConfigError(f"{where}.{key} is {_shown(arguments)}, where options are needed.")
        if arguments or key == "init_args":
            checked[key] = {
                own: _checked(value, _takes(hints.get(own, Any)), parts, f"{where}.{key}.{own}")
                for own, value in arguments.items()
            }
    return checked


def checked_value(value: object, parts: type[Any], where: str) -> object:
    """Check all classes in a value that may be of any kind; see ``checked_part``.

    Raises:
        ConfigError: a class in it may not be used.
    """
    return _checked(value, "any", parts, where)


# ---- values ------------------------------------------------------------------------------------

_Takes = Literal["plain", "any", "class"]
_ORDER: tuple[_Takes, ...] = ("plain", "any", "class")


def _checked(value: object, takes: _Takes, parts: type[Any], where: str) -> object:
    """Check all classes in an argument, however deep they are in it.

    It takes ``plain`` values, ``any`` ones, in which jsonargparse makes an object of each
    ``{class_path, init_args}``, or those of a ``class``, whose bare name it imports.
    """
    if isinstance(value, Mapping):
        if "class_path" in value and "hyper_parameters" not in value:  # the record of a stage
            return checked_part(value, parts, parts, where)
        takes = "any" if takes == "plain" else takes
        return {key: _checked(one, takes, parts, f"{where}.{key}") for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_checked(one, takes, parts, where) for one in value]
    if isinstance(value, str) and takes == "class":
        class_named(value, parts, where)
        return {"class_path": value}
    if isinstance(value, str) and takes == "any":
        hidden = _spelt(value)
        if hidden is not value:
            _checked(hidden, takes, parts, where)
    return value


def _spelt(text: str) -> object:
    """Return the mapping or list that a text spells, or a file of its name, else the text.

    jsonargparse looks for both. A checkpoint is a file too, and an archive, never a text.
    """
    try:
        file = Path(text)
        if file.is_file():
            if zipfile.is_zipfile(file):
                return text
            text = file.read_text(encoding="utf-8")
        found = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return text
    return found if isinstance(found, Mapping | list) else text


def _takes(hint: Any) -> _Takes:
    """Tell what an argument of a type takes; see ``_checked``."""
    origin, below = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _takes(below[0])
    if hint is Any or isinstance(hint, TypeVar):
        return "any"
    if origin is Literal or hint in (str, int, float, bool, type(None), Path, ...):
        return "plain"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "plain"
    if origin in (Union, types.UnionType) or _is_a(origin, Sequence) or _is_a(origin, set):
        return max(map(_takes, below), key=_ORDER.index)
    if _is_a(origin, Mapping):
        return max(("any", *map(_takes, below)), key=_ORDER.index)
    return "any" if hint in (list, tuple, dict, set) else "class"


def _is_a(origin: Any, kind: type) -> bool:
    return isinstance(origin, type) and issubclass(origin, kind)


# ---- classes and packages ----------------------------------------------------------------------


def subclasses(kind: type[T]) -> Iterator[type[T]]:
    """Yield all classes below one, those made last first."""
    for below in reversed(kind.__subclasses__()):
        yield below
        yield from subclasses(below)


def _requires_us(package: str) -> bool:
    """Whether a package that is not imported is of a distribution that requires lit-offrl.

    What would be imported counts, and where it lies: a distribution that lies in the working
    directory is none.
    """
    top = package.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)  # of a name without a dot: nothing is imported
    except (ImportError, ValueError):
        return False
    if spec is None or top == "lit_offrl":  # what of this library is not loaded is not there
        return False
    places = spec.submodule_search_locations or [spec.origin or ""]
    roots = {Path(place).resolve().parent for place in places}
    folders = {Path(folder).resolve() for folder in _site_folders()}
    for found in importlib.metadata.distributions(path=[*map(str, folders)]):
        if not any(map(_REQUIRES_US.match, found.requires or ())):
            continue
        brought = {Path(str(file)).parts[0].removesuffix(".py") for file in found.files or ()}
        if top in brought and roots <= folders:
            return True
        project = _editable_project(found)
        names = (found.read_text("top_level.txt") or top).split()
        if project is not None and top in names:
            return all(root.is_relative_to(project) for root in roots)
    return False


def _site_folders() -> Iterable[str]:
    """Folders into which packages are installed, none of which is the working directory's."""
    own = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    paths = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    return [folder for folder in [*paths, *site.getsitepackages(), *own] if Path(folder).is_dir()]


def _editable_project(found: importlib.metadata.Distribution) -> Path | None:
    """Return the folder of a project that ``pip install -e`` has installed."""
    try:
        direct = json.loads(found.read_text("direct_url.json") or "{}")
        if not direct["dir_info"]["editable"]:
            return None
        return Path(urllib.parse.unquote(urllib.parse.urlsplit(direct["url"]).path)).resolve()
    except (ValueError, KeyError, TypeError):
        return None


def _shown(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
