"""What the arguments of a Trainer's verb say that must be known before they are parsed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_offrl.common.configs import flat, read_config
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.renames import translated


class Argv:
    """The options on a command line and in its configs, in their order."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._options = [
            (name.rstrip("+").replace(".init_args.", "."), value, given)
            for name, value, given in _options(argv)
        ]

    @property
    def checkpoint(self) -> str | None:
        """The value of ``--ckpt_path``."""
        given = (value for _, value, given in self._options if given.startswith("--ckpt_path"))
        return next(given, None)

    @property
    def tracking_uri(self) -> str | None:
        """The MLflow store that the logger is given."""
        name = "trainer.logger.tracking_uri"
        return next((v for n, v, _ in reversed(self._options) if n == name), None)

    @property
    def method(self) -> str | None:
        """The path of the method's class, as the last option or config to name one has it."""
        return next((path for path, _ in reversed([*self._classes("model")])), None)

    def give(self, option: str) -> bool:
        """Whether an option, by its dotted name, or a part of it is given here or in a config."""
        short = option.replace(".init_args.", ".")
        return any(f"{name}.".startswith(f"{short}.") for name, _, _ in self._options)

    def require_one_name(self, section: str, class_path: str) -> None:
        """Refuse flags that give an option of a class by its former name and by its new one.

        Raises:
            ConfigError: There are such flags.
        """
        flags = [name for name, _, given in self._options if given.startswith("--")]
        own = [name.partition(".")[2] for name in flags if name.startswith(f"{section}.")]
        translated(dict.fromkeys(own), class_path)

    def modules(self) -> Iterator[tuple[str, str]]:
        """Yield the Python modules of the method and the data, each with what names it.

        Raises:
            ConfigError: A file is named that is not there.
        """
        for path, given in (*self._classes("model"), *self._classes("data")):
            if "." not in path or Path(path).is_file():
                continue
            if path.endswith((".yaml", ".yml", ".json")):
                raise ConfigError(f"{given}: there is no such file.")
            if all(part.isidentifier() for part in path.split(".")):
                yield path.rpartition(".")[0], given

    def _classes(self, section: str) -> Iterator[tuple[str, str]]:
        for name, value, given in self._options:
            if name in (section, f"{section}.class_path") and isinstance(value, str):
                yield value, given


def _options(argv: Sequence[str]) -> Iterator[tuple[str, Any, str]]:
    """Yield names, values (None where the next argument is an option, too) and what was written."""
    for word, following in zip(argv, [*argv[1:], "--"], strict=True):
        if not word.startswith("--"):
            continue
        name, is_joined, joined = word.removeprefix("--").partition("=")
        value = joined if is_joined else None if following.startswith("--") else following
        if name == "config":
            with contextlib.suppress(ConfigError):  # which the parser will say
                for key, below in flat(read_config(Path(value or "")) or {}).items():
                    if below is not None:
                        yield key, below, f"{key} {below}"
        else:
            yield name, value, f"--{name} {value}"


def with_checkpoint(argv: Sequence[str], path: str) -> list[str]:
    """Return arguments in which ``--ckpt_path`` has another value."""
    words = list(argv)
    for place, word in enumerate(words):
        if word.startswith("--ckpt_path="):
            words[place] = f"--ckpt_path={path}"
        elif word == "--ckpt_path":
            words[place + 1] = path
    return words
