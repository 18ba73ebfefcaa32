"""``lit-offrl sweep``: train and evaluate a grid of methods, datasets and seeds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lit_offrl.commands.experiments import add_options, ray_executor, run_cells, run_search
from lit_offrl.commands.parsing import OneLineParser
from lit_offrl.common.errors import ConfigError
from lit_offrl.experiments.executors.local import LocalExecutor
from lit_offrl.experiments.executors.slurm import SlurmExecutor
from lit_offrl.experiments.run import Choices, Executor, Listener
from lit_offrl.experiments.sweep import read_sweep
from lit_offrl.tracking.store import SQLITE, require_store, store_uri

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
    add("--gpus", type=_names, default=[], metavar="0,1,…", help="GPUs of the workers, in turn.")
    add("--retry_failed", action="store_true", help="Try failed cells again.")
    add(
        "--rerun_changed",
        action="store_true",
        help="Begin those cells anew that the file defines otherwise now; what they were is kept"
        " aside.",
    )
    add_options(parser, "sweeps/NAME", ("local", "slurm", "ray"))
    return parser  # fmt: skip


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
    uri, on_slurm = store_uri(options.tracking_uri), options.executor == "slurm"
    sweep = read_sweep(options.config, options.only, output=options.output, uri=uri)
    choices = Choices(options.retry_failed, options.rerun_changed)
    if options.gpus and options.executor != "local":
        instead = "slurm: {gpus_per_node: 1}" if on_slurm else "ray: {num_gpus: 1}"
        raise ConfigError(f"--gpus is for --executor local: give {instead} instead.")
    if sweep.rows and options.executor != "local" and options.workers is None:
        raise ConfigError("--workers: give how many jobs of the search run at a time.")

    def prepare() -> None:
        if not on_slurm:  # a cluster's nodes may reach what its front cannot
            require_store(uri, "give another --tracking_uri.")
        elif uri.startswith(SQLITE):
            print(
                "lit-offrl sweep: many nodes cannot well share a SQLite file: give a server with"
                " --tracking_uri.",
                file=sys.stderr,
            )

    def begin(board: Listener) -> Executor:
        if options.executor == "ray":
            return ray_executor(
                options, sweep.ray, choices, board, name=sweep.name, output=sweep.output, uri=uri
            )
        if on_slurm:
            folder, parameters = sweep.output / "slurm", {"name": sweep.name, **sweep.slurm}
            return SlurmExecutor(
                choices, board, folder=folder, parameters=parameters, workers=options.workers
            )
        workers = options.workers or max(1, len(options.gpus))
        return LocalExecutor(choices, board, workers=workers, gpus=options.gpus)

    if sweep.rows:
        return run_search(
            sweep.rows,
            sweep.cells,
            choices,
            options,
            sweep.output,
            begin=begin,
            prepare=prepare,
            hint=_HINT,
            whole=on_slurm,
            uri=uri,
            experiment=sweep.name,
        )
    return run_cells(
        "sweep",
        sweep.cells,
        choices,
        options,
        sweep.output,
        begin=begin,
        prepare=prepare,
        hint=_HINT,
        whole=on_slurm,
    )
