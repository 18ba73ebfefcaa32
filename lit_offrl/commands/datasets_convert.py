"""``lit-offrl datasets convert``: a log in CSV or Parquet becomes an HDF5 file."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_offrl.commands.parsing import positive
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
    parser.add_argument("log", type=Path, metavar="LOG", help="a .csv, .tsv or .parquet file")
    parser.add_argument("output", type=Path, metavar="FILE.hdf5", help="the file to write")
    for name, metavar, text in (
        ("observations", "A,B,…", "columns that are put behind each other"),
        ("actions", "A,B,…", "likewise"),
        ("reward", "A", "the column of rewards"),
        ("episode", "A", "the column whose value tells episodes apart"),
        ("terminal", "A", "0 or 1: whether the task ended with the row"),
        ("timeout", "A", "0 or 1: whether only the recording ended with the row"),
        ("time", "A", "a column that must rise within each episode; it is not written"),
        (
            "next_observations",
            "A,B,…",
            "the observations after the step; the next row's by default",
        ),
        ("env", "ID", "the environment's gymnasium id"),
    ):
        options = sorted({f"--{name}", f"--{name.replace('_', '-')}"}, reverse=True)
        needed = name == "observations"
        parser.add_argument(*options, dest=name, metavar=metavar, help=text, required=needed)
    for end in ("low", "high"):
        text = f"{end}est action: one number, or one a dimension with commas between them"
        options = [f"--action_{end}", f"--action-{end}"]
        parser.add_argument(*options, dest=f"action_{end}", type=_numbers, metavar="X,…", help=text)
    parser.add_argument("--max_episode_steps", type=positive, metavar="N", help="the step limit")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
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
    columns = LogOptions(
        observations=options.observations,
        actions=options.actions,
        reward=options.reward,
        episode=options.episode,
        next_observations=options.next_observations,
        terminal=options.terminal,
        timeout=options.timeout,
        time=options.time,
        env_id=options.env,
        action_low=options.action_low,
        action_high=options.action_high,
        max_episode_steps=options.max_episode_steps,
    )
    summary, warnings = convert_log(options.log, options.output, columns, force=options.force)
    for key, text in summary.items():
        print(f"{key}: {text}")
    for warning in warnings:
        print(f"warning: {warning}")
    print(f"{options.output}: written; `lit-offrl datasets check {options.output}` looks at it")
    return 0


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


_numbers.__name__ = "numbers"  # argparse names the type in its message
