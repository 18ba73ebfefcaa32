"""``lit-offrl sweep``: train and evaluate a grid of methods, datasets and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_offrl.commands.experiments import add_options, run_experiment
from lit_offrl.commands.parsing import OneLineParser
from lit_offrl.common.errors import ConfigError
from lit_offrl.experiments.run import Choices
from lit_offrl.experiments.sweep import read_sweep
from lit_offrl.tracking.store import store_uri

_HINT = (
    "Options of evaluate stand under 'evaluate:' of the sweep's file, such as {env: ID};"
    " 'evaluate: false' trains alone, for runs that are compared by offline metrics"
    " (compare --metric, ope)."
)


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="lit-offrl sweep",
        description="Train and evaluate a grid of methods × datasets × seeds, each cell in"
        " processes of its own. Finished cells are skipped, interrupted ones go on.",
        epilog="The file and SLURM: docs/sweeps.md.",
    )
    add = parser.add_argument
    add("--config", required=True, type=Path, metavar="FILE", help="The sweep's file.")
    add(
        "--only",
        action="append",
        default=[],
        metavar="KEY=PATTERN",
        help="A part of the grid: method=dvf, dataset='hopper*', gamma=0.9; may be repeated.",
    )
    add_options(parser, "sweeps/NAME", ("local", "slurm", "ray"))
    add("--gpus", type=_names, default=[], metavar="0,1,…", help="GPUs of the workers, in turn.")
    add("--retry_failed", action="store_true", help="Try failed cells again.")
    add(
        "--rerun_changed",
        action="store_true",
        help="Begin those cells anew that the file defines otherwise now; what they were is kept"
        " aside.",
    )
    return parser


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError
    return names


_names.__name__ = "list such as 0,1"  # argparse names the type in its message


def main(argv: Sequence[str]) -> int:
    """Run a sweep; return 0 if all cells are done, 1 if not, or 128 + a signal's number.

    Raises:
        LitOffRLError: The file or an option cannot be used; nothing was begun.
    """
    options = _parser().parse_args(argv)
    uri = store_uri(options.tracking_uri)
    sweep = read_sweep(options.config, options.only, output=options.output, uri=uri)
    if options.gpus and options.executor != "local":
        instead = {"slurm": "slurm: {gpus_per_node: 1}", "ray": "ray: {num_gpus: 1}"}
        raise ConfigError(
            f"--gpus is for --executor local: give {instead[options.executor]} instead."
        )
    if sweep.rows and options.executor != "local" and options.workers is None:
        raise ConfigError("--workers: give how many jobs of the search run at a time.")
    choices = Choices(options.retry_failed, options.rerun_changed)
    return run_experiment(sweep, choices, options, _HINT, "give another --tracking_uri.")
