"""Checks of a file about jobs; every complaint is one line that names the file and the key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_offrl.common.configs import find_configs
from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.jobs.plain import is_plain

EVALUATE_KEYS = ("episodes", "seed", "num_envs", "env", "max_episode_steps", "gamma", "device")
NAME = re.compile(r"[\w][\w.-]*")
SUFFIXES = (".hdf5", ".h5")
# What whoever runs a fit gives to it.
_OWN = ("seed_everything", "ckpt_path", "config", "trainer.logger", "checkpoint.dirpath")
_OPTION = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


class FileReader:
    """Checks parts of one file; every complaint names it.

    Args:
        path: of the file.
    """

    owner = "the command"
    """Who gives to each fit what the file must not."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def wrong(self, key: str, value: Any, wanted: str) -> ConfigError:
        """Make the error for a value that cannot be."""
        return ConfigError(f"{self.path}: {key}: {value!r} is given; give {wanted}.")

    def known(self, given: Any, key: str, names: Sequence[str], open_prefix: str = "\0") -> None:
        """Refuse a mapping with other keys than ``names`` and those that begin with a prefix."""
        if not isinstance(given, dict):
            raise self.wrong(key, given, f"a mapping with the keys {', '.join(names)}")
        for name in given:
            if name not in names and not str(name).startswith(open_prefix):
                hint = nearest(str(name), names) or f" Known: {', '.join(names)}."
                raise ConfigError(f"{self.path}: {key}: unknown key '{name}'.{hint}")

    def files(self, key: str, given: Any) -> tuple[Path, ...]:
        """Read a file or a list of files that must be there."""
        names = [given] if isinstance(given, str) else given or []
        if not isinstance(names, list):
            raise self.wrong(key, given, "a file or a list of files")
        return tuple(path for name in names for path in self._configs(key, name))

    def _configs(self, key: str, name: Any) -> tuple[Path, ...]:
        try:
            found = find_configs(self.text(key, name), self.path.parent)
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {key}: {error}") from None
        return tuple(path.resolve() for path in found)

    def options(self, key: str, given: Any) -> dict[str, Any]:
        """Read options of fit: plain values by their dotted names."""
        if not isinstance(given, dict):
            raise self.wrong(key, given, "a mapping of fit's options, trainer.max_steps: 100")
        for name, value in given.items():
            if not isinstance(name, str) or not _OPTION.fullmatch(name):
                raise ConfigError(f"{self.path}: {key}: '{name}' is no option of fit.")
            if any(name == own or name.startswith(f"{own}.") for own in _OWN):
                raise ConfigError(f"{self.path}: {key}: '{name}' is given by {self.owner} itself.")
            if not is_plain(value):
                raise self.wrong(f"{key}.{name}", value, "numbers, text, lists or mappings")
        return dict(given)

    def evaluate(self, key: str, given: Any, more: Sequence[str] = ()) -> None:
        """Refuse what is no option of evaluate and none of ``more``."""
        self.known(given, key, (*EVALUATE_KEYS, *more), open_prefix="policy.")
        for name, value in given.items():
            if not is_plain(value):
                raise self.wrong(f"{key}.{name}", value, "numbers, text, lists or mappings")

    def file(self, key: str, name: Any) -> Path:
        """Read a path, relative to the file's folder, of a file that must be there."""
        path = self.place(key, name)
        if not path.is_file():
            there = [p.name for p in path.parent.glob("*") if p.is_file()]
            raise ConfigError(
                f"{self.path}: {key}: there is no file {path}.{nearest(path.name, there)}"
            )
        return path

    def place(self, key: str, name: Any) -> Path:
        """Read a path, relative to the file's folder, of a file that may be missing."""
        return (self.path.parent / self.text(key, name)).resolve()

    def text(self, key: str, value: Any) -> str:
        """Read a text that is not empty."""
        if not isinstance(value, str) or not value:
            raise self.wrong(key, value, "text")
        return value
