"""How far ρ looks as γ grows (Mazoure et al., Fig. 4)."""

from __future__ import annotations

import argparse

from lit_offrl.common.errors import ConfigError
from lit_offrl.studies import maze2d
from lit_offrl.studies.inputs import Study

_GAMMAS = (0.9, 0.95, 0.97, 0.99, 0.995)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    maze2d.add_options(parser)
    parser.add_argument(
        "--gammas",
        type=float,
        nargs="+",
        default=list(_GAMMAS),
        metavar="GAMMA",
        help=f"of the offsets [{' '.join(str(gamma) for gamma in _GAMMAS)}]",
    )


def run(options: argparse.Namespace) -> Study:
    """Measure; see :func:`lit_offrl.studies.maze2d.reach`.

    Raises:
        LitOffRLError: checkpoint, data or a γ do not fit the study.
    """
    for gamma in options.gammas:
        if not 0 <= gamma < 1:
            raise ConfigError(f"--gammas {gamma:g}: give numbers in [0, 1).")
    comparison = maze2d.Comparison(options)
    by_gamma = maze2d.reach(comparison, sorted(options.gammas))
    metrics = {
        f"way_{source}_{row['gamma']:g}": row[source]["way"]
        for row in by_gamma
        for source in ("data", "samples")
    }
    numbers = maze2d.drawn_maze(comparison) | {"by_gamma": by_gamma}
    more = {"gammas": sorted(options.gammas)}
    return Study(numbers, metrics, maze2d.facts(comparison, options, **more), options.ckpt_path)
