"""YAML about experiments: reading, checking and merging it, and writing its values as options."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lit_offrl.common.configs import find_configs
from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.common.ranges import SEEDS, lies_in

EVALUATE_KEYS = ("episodes", "seed", "num_envs", "env", "max_episode_steps", "gamma", "device")
EVALUATE_FLAGS = ("log_model",)
"""Options of evaluate that are given, or not, without a value."""
NAME = re.compile(r"[\w][\w.-]*")
SUFFIXES = (".hdf5", ".h5")
# Options that whoever runs a fit gives to it.
_OWN = ("seed_everything", "ckpt_path", "config", "trainer.logger", "checkpoint.dirpath")
_OPTION = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


class Section(BaseModel):
    """A mapping of a file, with a field for each key, whose description says what to give."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


_Section = TypeVar("_Section", bound=Section)


def yaml_text(value: Any) -> str:
    """Return a value as it is written behind an option: text that YAML reads back as the same."""
    # JSON's 1e-05 is text to YAML 1.1; PyYAML writes 1.0e-05.
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def value_label(value: Any) -> str:
    """Return the text that stands for a value of an axis."""
    return value if isinstance(value, str) else yaml_text(value)


def all_differ(values: Iterable[Any]) -> bool:
    """Whether no two values of an axis are one to fit: 1e-3, which is text to YAML, is 0.001."""
    kept: set[float | str] = set()
    texts = [*map(value_label, values)]
    for text in texts:
        try:
            kept.add(float(text))
        except ValueError:
            kept.add(text)
    return len(kept) == len(texts)


def merge(below: Any, above: Any, depth: int) -> Any:
    """Return one tree laid over another; mappings are merged down to a depth, the rest replaced."""
    if depth == 0 or not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return {**below, **{k: merge(below.get(k), v, depth - 1) for k, v in above.items()}}


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings and lists with their paths, ``options.gamma``."""
    if not isinstance(tree, dict | list) or not tree:
        yield prefix, tree
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))


def difference(before: Any, after: Any) -> str:
    """Return the first leaf in which two trees differ, ``options.gamma: 0.9 → 0.99``, or ""."""
    old, new = dict(leaves(before)), dict(leaves(after))
    for key in [*new, *old]:
        if old.get(key) != new.get(key) or (key in old) != (key in new):
            sides = (str(side.get(key, "not given"))[:80] for side in (old, new))
            return f"{key}: {' → '.join(sides)}"
    return ""


class FileReader:
    """Checks the parts of one file; every complaint is one line that names the file and the key.

    Args:
        path: The file.
        owner: Who gives to each fit what the file must not: "the sweep", "the pipeline".
        data: What the paths of datasets are relative to; the file's folder by default.
    """

    def __init__(self, path: Path, owner: str = "the command", data: Path | None = None) -> None:
        self.path, self._owner, self._data = path, owner, data or path.parent

    def wrong(self, key: str, value: Any, wanted: str) -> ConfigError:
        """Return the error about a value that cannot be."""
        return ConfigError(f"{self.path}: {key}: {value!r} is given; give {wanted}.")

    def unknown(self, key: str, what: str, name: Any, known: Sequence[str]) -> ConfigError:
        """Return the error about a name that there is not, with the nearest one."""
        hint = nearest(str(name), known) or f" There are {', '.join(known)}."
        return ConfigError(f"{self.path}: {key}: {what} '{name}'.{hint}")

    def mapping(self, key: str, given: Any, wanted: str = "a mapping by name") -> dict[Any, Any]:
        """Return a mapping; an empty one for None."""
        if given is not None and not isinstance(given, dict):
            raise self.wrong(key, given, wanted)
        return given or {}

    def known(
        self, given: Any, key: str, names: Sequence[str], prefix: str = "\0"
    ) -> dict[str, Any]:
        """Return a mapping; refuse keys that are none of ``names`` and lack the prefix."""
        given = self.mapping(key, given, f"a mapping with the keys {', '.join(names)}")
        for name in given:
            if name not in names and not str(name).startswith(prefix):
                raise self.unknown(key, "unknown key", name, names)
        return given

    def read(self, key: str, kind: type[_Section], given: Any) -> _Section:
        """Return a mapping as the section that it is."""
        try:
            return kind.model_validate(self.known(given, key, list(kind.model_fields)))
        except ValidationError as error:
            problem = error.errors()[0]
            name, value = str(problem["loc"][0]), problem["input"]
            field = kind.model_fields[name]
            if problem["type"] == "literal_error":
                names = get_args(field.annotation)
                raise self.unknown(f"{key}.{name}", f"unknown {name}", value, names) from None
            raise self.wrong(f"{key}.{name}", value, str(field.description)) from None

    def options(self, key: str, given: Any) -> dict[str, Any]:
        """Return options of fit: plain values by their dotted names."""
        given = self.mapping(key, given, "a mapping of fit's options, trainer.max_steps: 100")
        for name in given:
            if not isinstance(name, str) or not _OPTION.fullmatch(name):
                raise ConfigError(f"{self.path}: {key}: '{name}' is no option of fit.")
            if any(name == own or name.startswith(f"{own}.") for own in _OWN):
                raise ConfigError(f"{self.path}: {key}: '{name}' is given by {self._owner} itself.")
        return self._plain(key, given)

    def evaluate(self, key: str, given: Any, more: Sequence[str] = ()) -> dict[str, Any]:
        """Return options of evaluate; refuse what is neither one nor among ``more``."""
        known = (*EVALUATE_KEYS, *EVALUATE_FLAGS, *more)
        options = self._plain(key, self.known(given, key, known, prefix="policy."))
        for name in EVALUATE_FLAGS:
            if type(options.get(name, False)) is not bool:
                raise self.wrong(f"{key}.{name}", options[name], "true or false")
        return options

    def _plain(self, key: str, given: dict[str, Any]) -> dict[str, Any]:
        for name, value in given.items():
            try:
                json.dumps(value)
            except TypeError:  # a date, as YAML has them
                wanted = "numbers, text, lists or mappings"
                raise self.wrong(f"{key}.{name}", value, wanted) from None
        return dict(given)

    def section(self, key: str, given: dict[str, Any]) -> dict[str, Any]:
        """Return a mapping with its ``config``, ``options`` and ``needs`` as they are used."""
        needs = self.known(given.get("needs"), f"{key}needs", ("memory_gb", "gpu_memory_gb"))
        for name, value in needs.items():
            if type(value) not in (int, float) or not value > 0:
                raise self.wrong(f"{key}needs.{name}", value, "a number above 0")
        options = self.options(f"{key}options", given.get("options"))
        made = {**given, "needs": needs, "options": options}
        if (config := made.pop("config", None)) is not None:
            made["config"] = self.files(f"{key}config", config)
        return made

    def name(self, given: Any) -> str:
        """Return the name of an experiment."""
        if not isinstance(given, str) or not NAME.fullmatch(given):
            raise self.wrong("name", given, "letters, digits, '_', '-' and '.'")
        return given

    def seed(self, key: str, given: Any) -> int:
        """Return a seed."""
        if type(given) is not int or not lies_in(SEEDS, given):
            raise self.wrong(key, given, f"a whole number in {SEEDS}")
        return given

    def files(self, key: str, given: Any) -> tuple[Path, ...]:
        """Return a config or a list of configs of the library or of files that must be there."""
        names = [given] if isinstance(given, str) else given or []
        if not isinstance(names, list):
            raise self.wrong(key, given, "a file or a list of files")
        found: list[Path] = []
        for name in names:
            try:
                found += find_configs(self.text(key, name), self.path.parent)
            except ConfigError as error:
                raise ConfigError(f"{self.path}: {key}: {error}") from None
        return tuple(path.resolve() for path in found)

    def dataset(self, key: str, given: Any, may_be_missing: bool = False) -> str:
        """Return a dataset's name, or the path of its file, which is relative to this one."""
        name = self.text(key, given)
        if not name.endswith(SUFFIXES) or ":" in name:
            return name
        path = (self._data / name).resolve()
        if not path.is_file() and not may_be_missing:
            hint = nearest(path.name, [p.name for p in path.parent.glob("*") if p.is_file()])
            raise ConfigError(f"{self.path}: {key}: there is no file {path}.{hint}")
        return str(path)

    def text(self, key: str, value: Any) -> str:
        """Return a text that is not empty."""
        if not isinstance(value, str) or not value:
            raise self.wrong(key, value, "text")
        return value
