"""``lit-offrl datasets convert``: a log in CSV or Parquet becomes an HDF5 file."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_offrl.commands.options import add_options, make
from lit_offrl.datasets.convert import LogOptions, convert_log

_BOUNDS = ("--action_low", "--action-low", "--action_high", "--action-high")
_EPILOG = """
A,B,… are names of the log's columns with commas between them; ranges, obs_0..obs_11, and patterns,
'obs_*', stand for several. The rows of an episode stand together, in their order; its last row is
a timeout unless --terminal says that the task ended there.
"""


def add_parser(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb to those of ``lit-offrl datasets``."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "convert", help="make an HDF5 file of a log in CSV or Parquet", epilog=_EPILOG
    )
    add = parser.add_argument
    add("log", type=Path, metavar="LOG", help="Log, a .csv, .tsv or .parquet file.")
    add("output", type=Path, metavar="FILE.hdf5", help="File that is written.")
    add_options(parser, LogOptions, hyphens=True)
    add("--force", action="store_true", help="Replace a file that is there.")
    parser.set_defaults(run=_convert)
    return parser


def join_negative(argv: Sequence[str]) -> list[str]:
    """Return the words with ``--action_low -1,-2`` as one, which argparse takes for two options."""
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1] in _BOUNDS and re.match(r"-[\d.]", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _convert(options: argparse.Namespace) -> int:
    """Write the file and say what is in it."""
    columns = make(LogOptions, options)
    summary, warnings = convert_log(options.log, options.output, columns, force=options.force)
    for key, text in summary.items():
        print(f"{key}: {text}")
    for warning in warnings:
        print(f"warning: {warning}")
    print(f"{options.output}: written; `lit-offrl datasets check {options.output}` looks at it")
    return 0
