"""What the recipes of ``lit-offrl collect`` share: options, and how rows are written."""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np
from tqdm import tqdm

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.ranges import SEEDS, require_fields
from lit_offrl.datasets.hdf5 import write_hdf5
from lit_offrl.evaluation.envs import find_spec
from lit_offrl.evaluation.record import package_versions
from lit_offrl.evaluation.recorder import episode_returns

QUANTILES = {"min": 0, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9, "max": 1}


@dataclass(kw_only=True)
class Recipe(ABC):
    """One dataset in the making.

    Args:
        env: Gymnasium id of the environment, such as HopperBulletEnv-v0, or MODULE:ID for one of
            your own.
        output: File that is written: HDF5, or for OGBench's kinds .npz.
        seed: Seed of SAC, the environment and all noise.
    """

    env: str
    output: Path
    seed: Annotated[int, SEEDS] = 0

    def __post_init__(self) -> None:
        require_fields(self)

    @classmethod
    def taken(cls, output: Path) -> Path | None:
        """Return a file that writing to ``output`` would replace, if there is one."""
        return output if output.exists() else None

    @abstractmethod
    def run(self) -> None:
        """Collect until there is enough."""

    @abstractmethod
    def save(self, command: str, *, complete: bool) -> str:
        """Write what there is, and say in a few words what that is; ``""`` if it is nothing."""


@dataclass(kw_only=True)
class Collection(Recipe):
    """Rows of one environment for an HDF5 file; what there is so far can be saved at any moment.

    Args:
        steps: Number of steps recorded at most.
        noise: Standard deviation of the normal noise on actions, in half-ranges of the action, of
            planners, policies and the actor of medium and expert; of OGBench's kinds its level
            instead of the official one.
        max_episode_steps: Step limit of an episode instead of the registered one.
        next_observations: Whether the file has that column; without it, it has half the size, and
            readers take the observation of the following row.

    Attributes:
        target_reached: Whether a target return was reached; None where there was none.
        action_space: Action space of the environment, known once it is made.
    """

    steps: Annotated[int, "[1, inf)"] = 1_000_000
    noise: Annotated[float, "[0, inf)"] = 0.0
    max_episode_steps: Annotated[int | None, "[1, inf)"] = None
    next_observations: bool = True
    target_reached: bool | None = field(default=None, init=False)
    action_space: gymnasium.spaces.Box = field(init=False)

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of environment steps so far."""

    @abstractmethod
    def recorded(self) -> tuple[dict[str, np.ndarray], bool]:
        """Return the rows so far, the last of which ends an episode, and whether it was cut.

        A cut episode ends in a timeout: it did not fail, and nothing is known beyond its last row.
        """

    @abstractmethod
    def facts(self, columns: dict[str, np.ndarray], cut: bool) -> dict[str, Any]:
        """Say what only this recipe has to say of its rows; None is left out of the file."""

    def summary(self, columns: dict[str, np.ndarray], cut: bool) -> dict[str, Any]:
        """Say how the episodes went, as far as this recipe can tell."""
        return summary_of_episodes(columns, cut)

    def origin(self, command: str) -> dict[str, Any]:
        """Say how the rows came to be, as far as all recipes say it alike.

        No date: the same command gives the same bytes, so that a file's sha256 can be compared.
        """
        registered = find_spec(self.env).max_episode_steps
        return {
            "format": "d4rl",
            "env_id": self.env,
            "seed": self.seed,
            "max_episode_steps": self.max_episode_steps or registered,
            "action_low": self.action_space.low,
            "action_high": self.action_space.high,
            "versions": json.dumps(package_versions()),
            "command": command,
        }

    def attributes(self, columns: dict[str, np.ndarray], cut: bool, command: str) -> dict[str, Any]:
        """Return the file's attributes; their order is part of its bytes."""
        return {
            "last_episode_cut": cut,
            "environment_steps": self.count,
            "rows": len(columns["actions"]),
            **self.summary(columns, cut),
            **self.origin(command),
            **self.facts(columns, cut),
        }

    def save(self, command: str, *, complete: bool) -> str:
        """Write what rows there are, and say how many; ``""`` if there are none."""
        if self.count == 0:
            return ""
        columns, cut = self.recorded()
        attributes = {"complete": complete, **self.attributes(columns, cut, command)}
        if not self.next_observations:
            del columns["next_observations"]
        write_hdf5(self.output, columns, attributes)
        mark = "" if complete else " (complete: False)"
        return f"{len(columns['actions']):,} rows in {self.output}{mark}"


def summary_of_episodes(columns: dict[str, np.ndarray], cut: bool) -> dict[str, Any]:
    """Say how the episodes went, without the last one if it was cut and is not the only one."""
    returns = episode_returns(columns)
    returns = returns[:-1] if cut and len(returns) > 1 else returns
    return {
        "episodes": len(returns),
        "return_mean": returns.mean(),
        **{f"return_{name}": np.quantile(returns, q) for name, q in QUANTILES.items()},
    }


def load_fitting(path: Path, sizes: tuple[int, int], option: str, advice: str) -> Any:
    """Return the module of a checkpoint; one trained on other ``sizes`` (o, a) is a ConfigError."""
    from lit_offrl.modules import load_module  # here: it imports Lightning, which takes seconds

    module = load_module(path)
    spec = module.spec
    trained = None if spec is None else (spec.observation_dim, spec.action_dim)
    if trained not in (None, sizes):
        raise ConfigError(f"{option}{path}: acts from {trained[0]} numbers to {trained[1]}{advice}")
    return module


def require_bounded(space: gymnasium.spaces.Box, env_id: str) -> None:
    """Raise ConfigError for an environment whose actions have no bounds."""
    if not np.isfinite([space.low, space.high]).all():
        raise ConfigError(
            f"Environment '{env_id}' has unbounded actions: wrap it so that they are."
        )


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
