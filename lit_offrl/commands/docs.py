"""``lit-offrl docs``: list and print the documentation, which comes with the library."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import get_terminal_size

from lit_offrl.commands.parsing import OneLineParser
from lit_offrl.common.errors import ConfigError, nearest

_PACKAGE = Path(__file__).parent.parent
FOLDER = next(f for f in (_PACKAGE / "docs", _PACKAGE.parent / "docs") if f.is_dir())
"""Where the pages are: a link in a clone, files in an installed package."""

_HEADING = re.compile(r"^(#+) +(.+)$")
_LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")


def main(argv: Sequence[str]) -> int:
    """Run ``lit-offrl docs [PAGE]``."""
    parser = OneLineParser(
        prog="lit-offrl docs",
        description="The documentation. Without a page, the names of all pages are printed.",
    )
    parser.add_argument(
        "page",
        nargs="?",
        metavar="PAGE",
        help="A page, such as export, or a section of it, such as datasets#ogbench.",
    )
    options = parser.parse_args(list(argv))
    if options.page is None:
        _list()
    else:
        _show(section(options.page))
    return 0


def names() -> list[str]:
    """Return the pages' names: ``export``, ``methods/acd``; those made from code are no texts."""
    found = (path.relative_to(FOLDER).with_suffix("") for path in FOLDER.rglob("*.md"))
    return sorted(path.as_posix() for path in found if path.parts[0] != "api")


def section(given: str) -> str:
    """Return the text of a page, or of one of its sections by the anchor that the site gives it.

    Raises:
        ConfigError: There is no such page or section.
    """
    page, _, anchor = given.partition("#")
    page = page.removeprefix("docs/").removesuffix(".md")
    if page not in names():
        hint = nearest(page, names()) or " `lit-offrl docs` prints all names."
        raise ConfigError(f"there is no page '{page}'.{hint}")
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    if not anchor:
        return text
    lines = text.splitlines(keepends=True)
    headings = [*_headings(lines)]
    for place, (begin, level, title) in enumerate(headings):
        if slug(title) == anchor:
            ends = (line for line, other, _ in headings[place + 1 :] if other <= level)
            return "".join(lines[begin : next(ends, len(lines))])
    known = [slug(title) for _, _, title in headings]
    raise ConfigError(f"the page '{page}' has no section '{anchor}'.{nearest(anchor, known)}")


def slug(title: str) -> str:
    """Return the anchor of a heading, as the site has it."""
    plain = _LINK.sub(r"\1", title).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain).strip().lower().replace(" ", "-")


def _headings(lines: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yield line, level and title of each heading; a comment in a block of code is none."""
    in_code = False
    for number, line in enumerate(lines):
        in_code ^= line.startswith("```")
        found = None if in_code else _HEADING.match(line)
        if found:
            yield number, len(found[1]), found[2].strip()


def _list() -> None:
    """Print each page's name with its first sentence."""
    width = max(map(len, names())) + 2
    for name in names():
        _, _, rest = section(name).partition("\n")
        first = " ".join(rest.strip().split("\n\n")[0].split())
        sentence = re.split(r"(?<=[.:]) ", _LINK.sub(r"\1", first))[0]
        columns = max(get_terminal_size().columns, width + 40)
        print(textwrap.fill(f"{name:<{width}}{sentence}", columns, subsequent_indent=" " * width))


def _show(text: str) -> None:
    """Print Markdown: laid out in a terminal, as it is elsewhere."""
    if not sys.stdout.isatty():
        print(text, end="")
        return
    from rich.console import Console
    from rich.markdown import Markdown

    shown = re.sub(r"<!--[\s\S]*?-->\n?|^!\[.*\)$", "", text, flags=re.MULTILINE)
    Console().print(Markdown(shown, hyperlinks=False))  # of pages, so that one sees their names
