"""``lit-offrl datasets``: list, describe, check and download datasets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_offrl.commands.parsing import OneLineParser
from lit_offrl.datasets.catalog import (
    CATALOG,
    DATA_DIR_VARIABLE,
    Source,
    bundled,
    default_data_dir,
    resolve,
)
from lit_offrl.datasets.checks import examine
from lit_offrl.datasets.download import download
from lit_offrl.datasets.sidecar import read_sidecar
from lit_offrl.errors import ConfigError, DatasetError, nearest


def _console() -> Console:
    # Into a file or a pipe the table is as wide as it likes, so that nothing is cut there.
    return Console() if sys.stdout.isatty() else Console(width=160)


def _list(options: argparse.Namespace) -> int:
    """Print the names there are, and which are on disk."""
    folder = options.data_dir or default_data_dir()
    own = sorted(path.stem for path in folder.glob("*.hdf5") if path.stem not in CATALOG)
    known = [*CATALOG, *bundled(), *own]
    names = [name for name in known if options.filter.lower() in name.lower()]
    if not names:
        parts = [*known, *(part for name in known for part in name.split("-"))]
        hint = nearest(options.filter, parts)
        raise ConfigError(f"no dataset has '{options.filter}' in its name.{hint}")
    table = Table("name", "environment", "rows", "mean return", "where")
    for name in names:
        source = resolve(name, folder)
        entry = source.entry
        where = str(source.path) if source.on_disk else "to be downloaded"
        table.add_row(
            name,
            entry.env_id if entry else _env_id(source),
            f"{entry.rows:,}" if entry else "",
            f"{entry.mean_return:,.2f}" if entry else "",
            "bundled" if source.bundled else escape(where),
        )
    _console().print(table)
    return 0


def _env_id(source: Source) -> str:
    """Return a file's environment for the list, which one bad file must not break."""
    try:
        return source.header().env_id or "unknown"
    except DatasetError:
        return "unreadable: see check"


def _info(options: argparse.Namespace) -> int:
    """Print what is known of one dataset without reading its rows."""
    source = resolve(options.dataset, options.data_dir)
    spec = source.header()
    rows = {key: _text(value) for key, value in spec.to_dict().items() if value is not None}
    if source.entry is not None:
        entry = source.entry
        rows |= {
            "rows (published)": f"{entry.rows:,}",
            "episode return (published)": f"{entry.mean_return:,.2f} ± {entry.std_return:,.2f}, "
            f"{entry.min_return:,.2f} to {entry.max_return:,.2f}",
            "url": entry.url,
            "an equivalent": entry.collect_command,
        }
    rows["on disk"] = str(source.path) if source.on_disk else "no"
    if digest := read_sidecar(source.path).get("sha256"):
        rows["sha256 when downloaded"] = digest
    _print_facts(spec.name, rows)
    return 0


def _check(options: argparse.Namespace) -> int:
    """Read a file whole and print what is in it and what is odd about it."""
    source = resolve(options.dataset, options.data_dir)
    dataset = source.read(require=())
    report = examine(dataset)
    rows = {"file": str(source.path), "layout": dataset.provenance["lit_offrl_layout"]}
    rows |= {"environment": dataset.spec.env_id or "unknown", **report.facts}
    rows["sha256"] = str(dataset.spec.sha256)
    _print_facts(dataset.spec.name, rows)
    for warning in report.warnings:
        print(f"warning: {warning}")
    print(f"{source.path}: readable, {len(report.warnings)} warnings")
    return 0


def _download(options: argparse.Namespace) -> int:
    """Bring a dataset of the catalogue to disk."""
    source = resolve(options.dataset, options.data_dir)
    if source.entry is None:
        print(f"{source.name}: is on disk already: {source.path}")
        return 0
    print(download(source.entry, options.data_dir, force=options.force))
    return 0


def _text(value: object) -> str:
    if isinstance(value, tuple):
        same = len(set(value)) == 1 and len(value) > 1
        return f"{value[0]} in all {len(value)}" if same else ", ".join(map(str, value))
    return str(value)


def _print_facts(title: str, rows: dict[str, str]) -> None:
    table = Table(title=escape(title), show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, escape(value))
    _console().print(table)


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="lit-offrl datasets", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="every name, and what is on disk")
    listing.add_argument("--filter", default="", metavar="TEXT", help="names with TEXT in them")
    listing.set_defaults(run=_list)
    info = verbs.add_parser("info", help="dimensions, environment, references, columns")
    info.set_defaults(run=_info)
    check = verbs.add_parser("check", help="read every value; say what is in it and what is odd")
    check.set_defaults(run=_check)
    fetch = verbs.add_parser("download", help="bring a dataset of the catalogue to disk")
    fetch.add_argument("--force", action="store_true", help="replace the file that is there")
    fetch.set_defaults(run=_download)
    for verb in (info, check, fetch):
        verb.add_argument("dataset", metavar="NAME" if verb is fetch else "NAME|FILE")
    where = f"where downloads are [${DATA_DIR_VARIABLE}, else ~/.lit_offrl/datasets]"
    for verb in (listing, info, check, fetch):
        verb.add_argument("--data_dir", type=Path, metavar="DIR", help=where)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run ``lit-offrl datasets`` and return its exit code.

    Raises:
        LitOffRLError: in one line, what is wrong and what to do.
    """
    options = _parser().parse_args(list(argv))
    return int(options.run(options))
