"""``lit-offrl configs``: list, show and copy the configs that come with the library."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from lit_offrl.commands.parsing import OneLineParser
from lit_offrl.common.configs import FOLDER, names
from lit_offrl.common.errors import ConfigError, FileError, nearest
from lit_offrl.common.files import refusals


def main(argv: Sequence[str]) -> int:
    """Run ``lit-offrl configs VERB …``."""
    options = _parser().parse_args(list(argv))
    if options.verb == "list":
        _list(options.pattern)
    elif options.verb == "show":
        print(_path(options.name).read_text(encoding="utf-8"), end="")
    else:
        _copy(options.name, options.to, force=options.force)
    return 0


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="lit-offrl configs",
        description="The configs that come with the library. --config takes their names.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verb = verbs.add_parser("list", help="print the name and the first line of each config")
    verb.add_argument("pattern", nargs="?", default="", help="Part of the names to print.")
    verb = verbs.add_parser("show", help="print a config")
    verb.add_argument("name", help="Name of the config, such as data/antmaze.")
    verb = verbs.add_parser("copy", help="copy a config into a file, to be changed")
    verb.add_argument("name", help="Name of the config, such as data/antmaze.")
    verb.add_argument(
        "to",
        nargs="?",
        type=Path,
        default=Path(),
        metavar="FILE",
        help="File or folder to copy to. (default: the working directory)",
    )
    verb.add_argument("--force", action="store_true", help="Replace a file that is there.")
    return parser


def _list(pattern: str) -> None:
    chosen = [name for name in names() if pattern in name]
    if not chosen:
        raise ConfigError(f"no config has '{pattern}' in its name.{nearest(pattern, names())}")
    width = max(map(len, chosen))
    for name in chosen:
        first = _path(name).read_text(encoding="utf-8").partition("\n")[0]
        print(f"{name:<{width}}  {first.removeprefix('# ')}")


def _path(name: str) -> Path:
    known = names()
    short = name.removeprefix("configs/").removesuffix(".yaml")
    if short not in known:
        hint = nearest(short, known) or " `lit-offrl configs list` prints all names."
        raise ConfigError(f"there is no config '{name}'.{hint}")
    return FOLDER / f"{short}.yaml"


def _copy(name: str, to: Path, *, force: bool) -> None:
    source = _path(name)
    target = to / source.name if to.is_dir() else to
    if target.exists() and not force:
        raise FileError(f"{target}: is there already: give --force to replace it, or another FILE.")
    if target.exists() and target.samefile(source):
        raise FileError(f"{target}: is the library's own file: give another FILE.")
    with refusals(target):
        shutil.copyfile(source, target)
    print(f"{target}: a copy of {name}")
