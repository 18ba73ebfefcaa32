"""What mkdocs does not do itself: folders in the navigation, and formulas without a script.

A folder in the navigation stands for all of its pages. Formulas become MathML, which browsers show
by themselves, so that a page needs nothing from elsewhere.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

# As pymdownx.arithmatex writes them.
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


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


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found["tag"] == "div" else "inline"
    latex = html.unescape(found["latex"]).replace(r"\arg", r"\mathrm{arg}\,")  # it knows no \arg
    return convert(latex, display=display)


def on_page_content(content: str, **_: Any) -> str:
    """Return a page's HTML with its formulas as MathML."""
    return _FORMULA.sub(_mathml, content)
