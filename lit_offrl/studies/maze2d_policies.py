"""Samples of ρ against data, policy by policy (Mazoure et al., Fig. 3)."""

from __future__ import annotations

import argparse

from lit_offrl.common.errors import ConfigError
from lit_offrl.studies import maze2d
from lit_offrl.studies.inputs import Study


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    maze2d.add_options(parser)
    parser.add_argument("--gamma", type=float, help="of the offsets [the checkpoint's]")


def run(options: argparse.Namespace) -> Study:
    """Measure; see :func:`lit_offrl.studies.maze2d.separation`.

    Raises:
        LitOffRLError: checkpoint, data or γ do not fit the study.
    """
    comparison = maze2d.Comparison(options)
    gamma = comparison.module.gamma if options.gamma is None else options.gamma
    if not 0 <= gamma < 1:
        raise ConfigError(f"--gamma {gamma:g}: give a number in [0, 1).")
    found = maze2d.separation(comparison, gamma)
    metrics = {f"accuracy_{name}": value for name, value in found["accuracy"].items()}
    for name in ("distance", "floor", "ceiling", "in_walls"):
        each = [row[name] for row in found["by_policy"]]
        metrics[name] = sum(each) / len(each)
    numbers = maze2d.drawn_maze(comparison) | {"gamma": gamma} | found
    return Study(
        numbers, metrics, maze2d.facts(comparison, options, gamma=gamma), options.ckpt_path
    )
