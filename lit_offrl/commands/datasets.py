"""``lit-offrl datasets``: list, describe, check, convert, download them, and clear their cache."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_offrl.commands.options import add_options, make
from lit_offrl.commands.parsing import OneLineParser
from lit_offrl.common.errors import ConfigError, DatasetError, nearest
from lit_offrl.datasets.bounds import settle_bounds
from lit_offrl.datasets.cache import ColumnCache
from lit_offrl.datasets.catalog import (
    DATA_DIR_VARIABLE,
    FileSource,
    bundled,
    default_cache_dir,
    default_data_dir,
    resolve,
)
from lit_offrl.datasets.checks import examine
from lit_offrl.datasets.convert import LogOptions, convert_dataset, convert_log
from lit_offrl.datasets.d4rl_package import PackagedSource
from lit_offrl.datasets.download import download, verification
from lit_offrl.datasets.entries import CATALOG, CatalogEntry
from lit_offrl.datasets.hdf5 import Format
from lit_offrl.datasets.lerobot import LeRobotOptions, LeRobotSource
from lit_offrl.datasets.logs import is_log
from lit_offrl.datasets.minari import MinariSource
from lit_offrl.datasets.minari_opening import PREFIX
from lit_offrl.datasets.ogbench import OGBENCH, OGBenchSource
from lit_offrl.datasets.reading import Reading
from lit_offrl.datasets.robomimic import RobomimicOptions, RobomimicSource
from lit_offrl.datasets.sidecar import read_sidecar
from lit_offrl.datasets.sources import D4RL_PREFIX, Source, find_source, is_minari

_BOUNDS = ("--action_low", "--action-low", "--action_high", "--action-high")
_OF_DATASETS = ("observations", "env")  # the options of a log that others have, too
_COLUMNS = """
SOURCE may be whatever info takes: TARGET is then FILE.hdf5 in D4RL's layout, OGBench's NAME.npz,
lerobot:FOLDER, robomimic:FILE.hdf5 or minari:ID. What was written is read again before it is moved
to its place, and refused if it trained other rows. Of a log, A,B,… are names of its columns with
commas between them; ranges, obs_0..obs_11, and patterns, 'obs_*', stand for several. The rows of an
episode stand together, in their order; its last row is a timeout unless --terminal says that the
task ended there.
"""


def _console() -> Console:
    # Into a file or a pipe the table is as wide as it likes, so that nothing is cut there.
    return Console() if sys.stdout.isatty() else Console(width=160)


def _list(options: argparse.Namespace) -> int:
    """Print the names there are, a table a family, and which are on disk."""
    folder = options.data_dir or default_data_dir()
    files = [CATALOG[name].file.removesuffix(".hdf5") for name in CATALOG]
    taken = {*CATALOG, *files}
    own = sorted(path.stem for path in folder.glob("*.hdf5") if path.stem not in taken)
    known = [*CATALOG, *OGBENCH, *bundled(), *own]
    wanted = [text.lower() for text in (options.text, options.filter) if text]
    fitting = [name for name in known if _fits(name, wanted)]
    numbered = any("task" in text for text in wanted)  # five for each of OGBench's
    sources = [resolve(name, folder) for name in fitting if numbered or not _of_task(name)]
    if not sources:
        parts = [*known, *(part for name in known for part in name.split("-"))]
        raise ConfigError(f"no dataset has '{wanted[0]}' in its name.{nearest(wanted[0], parts)}")
    if options.on_disk:
        sources = [source for source in sources if source.on_disk]
    if not sources:
        print(f"none of these is on disk in {folder}: `lit-offrl datasets download NAME`")
    for family, group in groupby(sources, _family):
        _console().print(_table(family, list(group)))
    return 0


def _fits(name: str, wanted: list[str]) -> bool:
    entry = CATALOG.get(name) or OGBENCH.get(name)
    family = "" if entry is None else entry.family
    return all(text in name.lower() or text == family for text in wanted)


def _of_task(name: str) -> bool:
    return name in OGBENCH and "-task" in name


def _family(source: FileSource | OGBenchSource) -> str:
    if source.entry is not None:
        return source.entry.family
    return "bundled" if source.bundled else "own files"


def _table(family: str, sources: list[FileSource | OGBenchSource]) -> Table:
    table = Table("name", "environment", "rows", "mean return", "where", title=family)
    table.title_justify = "left"
    for source in sources:
        entry = source.entry
        where = str(source.path) if source.on_disk else "to be downloaded"
        if entry is not None and (entry.refusal or entry.warning):
            where += " (refused: see info)" if entry.refusal else " (see info)"
        mean = entry.mean_return if entry is not None else None
        table.add_row(
            source.name,
            (entry.env_id or "none: see info") if entry else _env_id(source),
            f"{entry.rows:,}" if entry and entry.rows else "",
            "" if mean is None else f"{mean:,.2f}",
            "bundled" if source.bundled else escape(where),
        )
    return table


def _env_id(source: FileSource | OGBenchSource) -> str:
    """Return a file's environment for the list, which one bad file must not break."""
    try:
        return source.header().env_id or "unknown"
    except DatasetError:
        return "unreadable: see check"


def _find(options: argparse.Namespace) -> Source:
    """Find what ``info`` and ``check`` are about; of Minari's parts the usual ones by default."""
    chosen: str | None = options.minari_observations
    parts = None if chosen is None else [part.strip() for part in chosen.split(",")]
    named: str | None = options.observations
    keys = None if named is None else tuple(key.strip() for key in named.split(","))
    return find_source(
        options.dataset,
        options.data_dir,
        Reading(options.format, accept_faults=True),
        minari_observations=parts,
        lerobot=LeRobotOptions(observations=keys),
        robomimic=RobomimicOptions(observations=keys),
        guess=True,
    )


def _info(options: argparse.Namespace) -> int:
    """Print what is known of one dataset without reading its rows."""
    source = _find(options)
    rows: dict[str, str] = {}
    if isinstance(source, MinariSource | LeRobotSource | RobomimicSource):
        rows |= _spec_rows(source) | source.facts() | {"on disk": str(source.path)}
    else:
        on_disk = isinstance(source, FileSource | OGBenchSource) and source.on_disk
        entry = source.entry
        unknown = entry is not None and not on_disk and entry.action_dim is None
        rows = {"sizes": "not known before the file is on disk"} if unknown else _spec_rows(source)
        if entry is not None:
            rows |= _published(entry)
    if isinstance(source, FileSource | OGBenchSource):
        rows["on disk"] = str(source.path) if source.on_disk else "no"
        if digest := read_sidecar(source.path).get("sha256"):
            rows["sha256 when downloaded"] = digest
    _print_facts(source.name, rows)
    return 0


def _spec_rows(source: Source) -> dict[str, str]:
    # A package knows its header only once it has read all rows; the catalogue knows enough.
    spec = source.entry.spec() if isinstance(source, PackagedSource) else source.header()
    facts = spec.to_dict()
    return {key: _text(value) for key, value in facts.items() if value not in (None, ())}


def _published(entry: CatalogEntry) -> dict[str, str]:
    rows = {"family": entry.family, "url": entry.url}
    if entry.rows is not None:
        rows["rows (published)"] = f"{entry.rows:,}"
    if entry.mean_return is not None:
        rows["episode return (published)"] = (
            f"{entry.mean_return:,.2f} ± {entry.std_return:,.2f}, "
            f"{entry.min_return:,.2f} to {entry.max_return:,.2f}"
        )
    named = {
        "an equivalent": entry.collect_command,
        "no environment": entry.why_no_env,
        "refused": entry.refusal,
        "warning": entry.warning,
    }
    return rows | {key: text for key, text in named.items() if text is not None}


def _check(options: argparse.Namespace) -> int:
    """Read a dataset whole and print what is in it and what is odd about it."""
    source = _find(options)
    dataset = source.read()
    bounded = settle_bounds(dataset.spec, lambda: dataset.column("actions"))
    report = examine(dataset.with_spec(bounded))
    where = str(getattr(source, "path", source.name))
    layout = dataset.provenance.get("lit_offrl_layout") or dataset.provenance["source"]
    rows = {"file": where, "layout": layout}
    if isinstance(source, MinariSource | LeRobotSource | RobomimicSource):
        rows |= source.facts()
    rows |= {"environment": dataset.spec.env_id or "unknown", **report.facts}
    rows["sha256"] = str(dataset.spec.sha256)
    _print_facts(dataset.spec.name, rows)
    entry = source.entry
    known = [text for text in (entry.refusal, entry.warning) if text] if entry else []
    warnings = [*known, *report.warnings]
    for warning in warnings:
        print(f"warning: {warning}")
    print(f"{where}: readable, {len(warnings)} warning{'s' * (len(warnings) != 1)}")
    return 0


def _convert(options: argparse.Namespace) -> int:
    """Make an HDF5 file of a log, or another format of a dataset, and say what is in it."""
    columns = make(LogOptions, options)
    if is_log(Path(options.source)):
        output = Path(options.target)
        summary, warnings = convert_log(Path(options.source), output, columns, force=options.force)
    else:
        _refuse_log_options(columns, options)
        keys = columns.observations
        parts = None if keys is None else tuple(key.strip() for key in keys.split(","))
        source = find_source(
            options.source,
            options.data_dir,
            Reading(env_id=columns.env, accept_faults=True),
            minari_observations=parts if is_minari(options.source) else None,
            lerobot=LeRobotOptions(observations=parts),
            robomimic=RobomimicOptions(observations=parts),
        )
        summary, warnings = convert_dataset(source, options.target)
    for key, text in summary.items():
        print(f"{key}: {text}")
    for warning in warnings:
        print(f"warning: {warning}")
    print(f"{options.target}: written; `lit-offrl datasets check {options.target}` looks at it")
    return 0


def _refuse_log_options(columns: LogOptions, options: argparse.Namespace) -> None:
    given = [k for k, v in vars(columns).items() if v is not None and k not in _OF_DATASETS]
    given += ["force"] if options.force else []
    if given:
        raise ConfigError(f"{options.source}: --{given[0]} goes only with a log in CSV or Parquet.")


def _download(options: argparse.Namespace) -> int:
    """Bring a dataset of the catalogue to disk."""
    if options.dataset.startswith(PREFIX):
        name = options.dataset.removeprefix(PREFIX)
        raise ConfigError(f"{options.dataset}: Minari fetches its own: `minari download {name}`.")
    source = resolve(options.dataset.removeprefix(D4RL_PREFIX), options.data_dir)
    if source.entry is None:
        print(f"{source.name}: is on disk already: {source.path}")
        return 0
    path = download(source.entry, options.data_dir, force=options.force)
    print(path)
    print(f"{source.name}: {verification(path)}", file=sys.stderr)
    return 0


def _cache(options: argparse.Namespace) -> int:
    """List the cached columns, or remove them."""
    cache = ColumnCache(default_cache_dir(options.data_dir))
    if options.action == "clear":
        print(f"{cache.folder}: {cache.clear()} entries removed")
        return 0
    table = Table("name", "rows", "MB", "read from", title=escape(str(cache.folder)))
    table.title_justify = "left"
    for entry in cache.entries():
        size = f"{entry['bytes'] / 1e6:,.1f}"
        table.add_row(entry["name"], f"{entry['rows']:,}", size, escape(entry["origin"]))
    _console().print(table)
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
    words = "Part of the names to list, or a family."
    listing.add_argument("text", nargs="?", default="", metavar="TEXT", help=words)
    listing.add_argument("--filter", default="", metavar="TEXT", help="Another way to give TEXT.")
    listing.add_argument(
        "--on_disk", "--on-disk", action="store_true", help="List only what is on disk."
    )
    listing.set_defaults(run=_list)
    info = verbs.add_parser("info", help="dimensions, environment, references, columns")
    info.set_defaults(run=_info)
    check = verbs.add_parser("check", help="read every value; say what is in it and what is odd")
    check.set_defaults(run=_check)
    words = "make an HDF5 file of a log in CSV or Parquet, or another format of a dataset"
    convert = verbs.add_parser("convert", help=words, epilog=_COLUMNS)
    words = "Log, a .csv, .tsv or .parquet file; or a dataset, as info takes it."
    convert.add_argument("source", metavar="SOURCE", help=words)
    words = "What is written: FILE.hdf5, NAME.npz, lerobot:FOLDER, robomimic:FILE.hdf5, minari:ID."
    convert.add_argument("target", metavar="TARGET", help=words)
    add_options(convert, LogOptions, hyphens=True)
    convert.set_defaults(run=_convert)
    fetch = verbs.add_parser("download", help="bring a dataset of the catalogue to disk")
    for verb in (convert, fetch):
        verb.add_argument("--force", action="store_true", help="Replace a file that is there.")
    fetch.set_defaults(run=_download)
    cache = verbs.add_parser("cache", help="list or clear the columns that are kept on disk")
    action = "Whether to list the columns or to clear them. (default: list)"
    cache.add_argument("action", choices=("list", "clear"), nargs="?", default="list", help=action)
    cache.set_defaults(run=_cache)
    for verb in (info, check, fetch):
        name = "NAME" if verb is fetch else "NAME|FILE"
        verb.add_argument("dataset", metavar=name, help=f"Dataset, given by {name}.")
    for verb in (info, check):
        words = "Layout of an HDF5 file; auto takes what the file says, or guesses. (default: auto)"
        verb.add_argument("--format", choices=get_args(Format), default="auto", help=words)
        parts = "Parts of Minari's nested observations to put behind each other."
        verb.add_argument("--minari_observations", metavar="A,B", help=parts)
        keys = "Features of LeRobot's, or keys of robomimic's, to put behind each other."
        verb.add_argument("--observations", metavar="A,B", help=keys)
    where = f"Folder of downloads. (default: ${DATA_DIR_VARIABLE}, or ~/.lit_offrl/datasets)"
    for verb in (listing, info, check, convert, fetch, cache):
        verb.add_argument("--data_dir", type=Path, metavar="DIR", help=where)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run ``lit-offrl datasets`` and return its exit code."""
    joined: list[str] = []
    for word in argv:  # argparse would take `--action_low -1,-2` for two options
        if joined and joined[-1] in _BOUNDS and re.match(r"-[\d.]", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    options = _parser().parse_args(joined)
    return int(options.run(options))
