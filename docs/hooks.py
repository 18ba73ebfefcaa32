"""What mkdocs does not do itself: a folder in the navigation stands for all of its pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def _expanded(entry: Any, docs: Path) -> list[Any]:
    """Return the entries of the navigation that one entry stands for."""
    if isinstance(entry, dict):
        return [{title: _all(below, docs) for title, below in entry.items()}]
    if isinstance(entry, str) and entry.endswith("/"):
        pages = sorted((docs / entry).glob("*.md"), key=lambda page: (page.stem != "index", page))
        return [page.relative_to(docs).as_posix() for page in pages]
    return [entry]


def _all(below: Any, docs: Path) -> Any:
    if not isinstance(below, list):
        return below
    return [each for entry in below for each in _expanded(entry, docs)]


def on_config(config: Any) -> Any:
    """Put every page of a folder into the navigation, ``index.md`` first, others by name."""
    config["nav"] = _all(config["nav"], Path(config["docs_dir"]))
    return config
