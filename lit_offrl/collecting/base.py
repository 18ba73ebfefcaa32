"""What the recipes of ``lit-offrl collect`` share."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Protocol

import gymnasium
import numpy as np
from tqdm import tqdm

from lit_offrl.evaluation.envs import find_spec
from lit_offrl.evaluation.record import package_versions
from lit_offrl.evaluation.recorder import episode_returns

QUANTILES = {"min": 0, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9, "max": 1}


class Collection(Protocol):
    """One dataset in the making; what it has so far can be saved at any moment.

    Attributes:
        target_reached: whether a target return was reached; None where there was none.
    """

    target_reached: bool | None

    def run(self) -> None:
        """Collect until there is enough."""
        ...

    def save(self, command: str, *, complete: bool) -> int:
        """Write what there is, if anything, and return the number of rows."""
        ...


def progress_bar(total: int, what: str) -> tqdm:
    """A bar that counts environment steps; in a log, a line every half minute."""
    on_terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=what,
        unit="step",
        smoothing=0.02,
        dynamic_ncols=on_terminal,
        mininterval=0.5 if on_terminal else 30.0,
    )


def origin(
    options: argparse.Namespace, actions: gymnasium.spaces.Box, command: str
) -> dict[str, Any]:
    """Say how the rows came to be, as far as all recipes say it alike; None is to be left out.

    No date: the same command gives the same bytes, so that a file's sha256 can be compared.
    """
    return {
        "format": "d4rl",
        "env_id": options.env,
        "seed": options.seed,
        "max_episode_steps": options.max_episode_steps or find_spec(options.env).max_episode_steps,
        "action_low": actions.low,
        "action_high": actions.high,
        "versions": json.dumps(package_versions()),
        "command": command,
    }


def return_summary(columns: dict[str, np.ndarray], cut: bool) -> dict[str, Any]:
    """Say how the episodes went, without the last where it was ``cut`` and is not the only one."""
    returns = episode_returns(columns)
    returns = returns[:-1] if cut and len(returns) > 1 else returns
    return {
        "episodes": len(returns),
        "return_mean": returns.mean(),
        **{f"return_{name}": np.quantile(returns, q) for name, q in QUANTILES.items()},
    }
