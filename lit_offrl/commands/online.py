"""``lit-offrl online``: train on steps that are taken in the environment.

In rounds, each fit with new weights (``online_rounds``), or with ``--from`` the weights of a
checkpoint (``online_from``).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from lit_offrl.commands.online_base import Online
from lit_offrl.commands.online_from import OnlineFrom
from lit_offrl.commands.online_rounds import Rounds
from lit_offrl.commands.options import add_options, make
from lit_offrl.commands.parsing import OneLineParser
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.user_code import command_line
from lit_offrl.tracking.store import redacted

_NOT_OPTIONS = ("fit", "command", "checkpoint")


def main(argv: Sequence[str]) -> int:
    """Run what is missing of a run; return 0, or the exit code of a fit that was stopped."""
    parser = _parser()
    given, fit = parser.parse_known_args(argv)
    goes_on = hasattr(given, "checkpoint")
    kind: type[OnlineFrom | Rounds] = OnlineFrom if goes_on else Rounds
    other = Rounds if goes_on else OnlineFrom
    for name in set(vars(given)) & (_fields(other) - _fields(kind)):
        raise ConfigError(
            f"--{name} goes {'without' if goes_on else 'only with'} --from: leave it out."
        )
    given.fit, given.command = fit, redacted(command_line(["online", *argv]))
    return make(kind, given).run()


def _fields(kind: type[Online]) -> set[str]:
    return {each.name for each in dataclasses.fields(kind)}


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="lit-offrl online",
        usage="lit-offrl online --env ID --output DIR [--rounds K ...] [options of 'fit']\n"
        "       lit-offrl online --from CHECKPOINT --output DIR [--steps N ...] [options of 'fit']",
        description="Collect with the current policy, fit on all data so far, and again; or with "
        "--from go on training a checkpoint's networks on its data and on own steps.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""All other options are those of 'lit-offrl fit', e.g. --config FILE. In rounds the
module has to tell policies apart by a scalar (DVFModule with policy_representation scalar); with
--from it is the checkpoint's, any that learns from the rewards of transitions.

DIR holds for each round its rows (round-K.hdf5), its fit (round-K/) and its evaluation, and all
rounds' rows in one file; with --from the checkpoint, the own steps (replay.hdf5) and the scores by
own steps (curve.csv); in either case online.json and curve.png. The same command goes on where it
was stopped; a larger --rounds adds rounds, a larger --steps own steps.""",
    )
    suppressed = argparse.SUPPRESS
    add_options(parser, Online, skip=_NOT_OPTIONS, default=suppressed)
    shared = _NOT_OPTIONS + tuple(_fields(Online))
    add_options(parser.add_argument_group("in rounds"), Rounds, skip=shared, default=suppressed)
    group = parser.add_argument_group("from a checkpoint")
    group.add_argument(
        "--from",
        dest="checkpoint",
        metavar="CHECKPOINT",
        type=Path,
        default=suppressed,
        help="Checkpoint of fit whose networks, optimiser and averages go on.",
    )
    add_options(group, OnlineFrom, skip=shared, default=suppressed)
    return parser
