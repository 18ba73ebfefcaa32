"""Packages that only some commands need, and that an extra of this library installs."""

from __future__ import annotations

import importlib
from typing import Any

from lit_offrl.common.errors import ConfigError


def needed(name: str, extra: str, what: str) -> Any:
    """Import a package that an extra installs.

    Args:
        name: Name of the package.
        extra: Name of the extra.
        what: What needs it, for the message.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{what} needs {name.partition('.')[0]}, which is not installed: pip install"
            f" 'lit-offrl[{extra}]'."
        ) from error
