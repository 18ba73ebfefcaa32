"""``lit-offrl sweep``: train and evaluate a grid of methods, datasets and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from lit_offrl.commands.experiments import RunOptions, run_experiment
from lit_offrl.commands.options import parse
from lit_offrl.common.errors import ConfigError
from lit_offrl.experiments.run import Choices
from lit_offrl.experiments.sweep import find_sweep, read_sweep
from lit_offrl.tracking.store import store_uri


@dataclass(frozen=True, kw_only=True)
class SweepOptions(RunOptions):
    """Train and evaluate a grid of methods × datasets × seeds, each cell in processes of its own.

    Finished cells are skipped, interrupted ones go on.

    Args:
        config: The sweep's file, or the name of one of the library's, such as pybullet_results;
            its collected data are then in the folder sweeps.
        only: A part of the grid, KEY=PATTERN, such as method=dvf, dataset='hopper*' or gamma=0.9;
            may be repeated.
        retry_failed: Whether to try failed cells again.
        rerun_changed: Whether to begin those cells anew that the file defines otherwise now; what
            they were is kept aside.
    """

    command = "lit-offrl sweep"
    hint = (
        "Options of evaluate stand under 'evaluate:' of the sweep's file, such as {env: ID};"
        " 'evaluate: false' trains alone, for runs that are compared by offline metrics"
        " (compare --metric, ope)."
    )
    way_out = "give another --tracking_uri."
    config: Path
    only: Annotated[list[str], "append"] = field(default_factory=list)
    retry_failed: bool = False
    rerun_changed: bool = False


def main(argv: Sequence[str]) -> int:
    """Run a sweep; return 0 if all cells are done, 1 if not, or 128 + a signal's number.

    Raises:
        LitOffRLError: The file or an option cannot be used; nothing was begun.
    """
    options = parse(SweepOptions, argv, "sweep", "The file and SLURM: `lit-offrl docs sweeps`.")
    uri = store_uri(options.tracking_uri)
    path = find_sweep(options.config)
    sweep = read_sweep(path, options.only, output=options.output, uri=uri)
    if sweep.searches and options.executor != "local" and options.workers is None:
        raise ConfigError("--workers: give how many jobs of the search run at a time.")
    choices = Choices(options.retry_failed, options.rerun_changed)
    return run_experiment(sweep, choices, options, argv)
