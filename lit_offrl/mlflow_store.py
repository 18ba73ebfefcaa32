"""Where MLflow's runs are kept, without importing MLflow."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_URI = "sqlite:///mlflow.db"
SQLITE = "sqlite:///"


def default_uri() -> str:
    """Return the store that counts where none is named."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def absolute_uri(uri: str) -> str:
    """Make the path of a SQLite store absolute, so that it names the same store from anywhere."""
    if not uri.startswith(SQLITE) or uri.startswith(f"{SQLITE}/") or uri == SQLITE:
        return uri
    return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).resolve()}"
