"""What a command line says that must be known before it is parsed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_offrl.common.configs import method_of, read_config
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.renames import translated


class Argv:
    """The arguments of a Trainer's verb, read for what must be known before they are parsed.

    Args:
        argv: The verb and its options.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self._options = list(_options(argv))
        self._configs = [_contents(value) for name, value in self._options if name == "config"]

    @property
    def checkpoint(self) -> str | None:
        """The value of ``--ckpt_path``."""
        return next((value for name, value in self._options if name == "ckpt_path"), None)

    def method(self, below: Mapping[str, Any]) -> str | None:
        """Return the path of the method's class, as the last option or config to name one has it.

        Args:
            below: The config that all others are laid over.
        """
        named = [value for name, value in self._options if name in ("model", "model.class_path")]
        return method_of([below, *self._configs, *({"model": value} for value in named)])

    def give(self, option: str) -> bool:
        """Whether an option, by its dotted name, or a part of it is given here or in a config."""
        short = option.replace(".init_args.", ".")
        names = (name.rstrip("+").replace(".init_args.", ".") for name, _ in self._options)
        if any(f"{name}.".startswith(f"{short}.") for name in names):
            return True
        return any(_at(config, option) is not None for config in self._configs)

    def require_one_name(self, section: str, class_path: str) -> None:
        """Refuse flags that give an option of a class by its former name and by its new one.

        Raises:
            ConfigError: there are such flags.
        """
        names = (name.replace(".init_args.", ".") for name, _ in self._options)
        prefix = f"{section}."
        flags = {n.removeprefix(prefix): None for n in names if n.startswith(prefix)}
        translated(flags, class_path)

    def modules(self) -> Iterator[tuple[str, str]]:
        """Yield the Python modules of the method and the data, each with what names it.

        Raises:
            ConfigError: a file is named that is not there.
        """
        for section in ("model", "data"):
            for name, value in self._options:
                if name in (section, f"{section}.class_path") and value:
                    yield from _module(value, f"--{name} {value}")
            for config in self._configs:
                part = _at(config, section)
                path = part.get("class_path") if isinstance(part, dict) else part
                yield from _module(path, f"{section}.class_path {path}")


def _options(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the options with their values, None where the next word is an option too."""
    for position, word in enumerate(argv):
        if not word.startswith("--"):
            continue
        name, given, value = word.removeprefix("--").partition("=")
        following = next(iter(argv[position + 1 :]), "--")
        yield name, value if given else None if following.startswith("--") else following


def _contents(path: str | None) -> dict[str, Any]:
    try:
        return read_config(Path(path or "")) or {}
    except ConfigError:  # the parser will say so
        return {}


def _at(config: Any, option: str) -> Any:
    for key in option.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _module(path: object, given: str) -> Iterator[tuple[str, str]]:
    """Yield the module of a class that stands there by its dotted path, and not as a file."""
    if not isinstance(path, str) or "." not in path or Path(path).is_file():
        return
    if path.endswith((".yaml", ".yml", ".json")):
        raise ConfigError(f"{given}: there is no such file.")
    if all(part.isidentifier() for part in path.split(".")):
        yield path.rpartition(".")[0], given
