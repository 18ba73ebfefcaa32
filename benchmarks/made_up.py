"""Made-up data of a hopper's sizes, and modules of the sizes that the configs have."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from lit_offrl.common.configs import find_configs, merge_configs
from lit_offrl.common.signatures import parameters_of
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.modules import DVFModule

Size = Literal["quick", "paper"]

OBSERVATION_DIM, ACTION_DIM = 15, 3
"""Of ``HopperBulletEnv-v0``."""


class Settings(NamedTuple):
    """What the configs say about a size."""

    module: dict[str, Any]
    batch_size: int
    gradient_clip: float


def settings(size: Size) -> Settings:
    """Read a size from the configs, so that the benchmark measures what users train."""
    names = ("dvf_pybullet", "quick") if size == "quick" else ("dvf_pybullet",)
    config = merge_configs([path for name in names for path in find_configs(name)], {})
    defaults = {
        name: each.default
        for name, each in parameters_of(DVFModule).items()
        if each.default is not each.empty
        and name not in ("action_dim", "action_low", "action_high", "seed")
    }
    return Settings(
        defaults | config["model"].get("init_args", {}),
        config["data"]["init_args"]["batch_size"],
        config["trainer"]["gradient_clip_val"],
    )


def make_dataset(
    rows: int,
    seed: int,
    longest: int = 1000,
    *,
    observation_dim: int = OBSERVATION_DIM,
    action_dim: int = ACTION_DIM,
) -> OfflineDataset:
    """Episodes of 1 … ``longest`` steps, half of which end in a true terminal; a hopper's sizes.

    What the numbers are does not matter to the time it takes.
    """
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, size=2 * rows // longest + 20)
    ends = np.zeros(rows, dtype=bool)
    stops = np.cumsum(lengths)
    ends[stops[stops <= rows] - 1] = True
    terminals = ends & (random.random(rows) < 0.5)
    return OfflineDataset.from_columns(
        {
            "observations": random.standard_normal((rows, observation_dim), dtype=np.float32),
            "actions": random.uniform(-1, 1, (rows, action_dim)).astype(np.float32),
            "rewards": random.standard_normal(rows, dtype=np.float32),
            "terminals": terminals,
            "timeouts": ends & ~terminals,
        },
        name="made up",
    )


def make_maze(rows: int, seed: int, longest: int = 400) -> OfflineDataset:
    """maze2d's sizes: 4 numbers a state, 2 an action, a goal, timeouts alone.

    What the numbers are does not matter to the time it takes.
    """
    random = np.random.default_rng(seed)
    timeouts = np.zeros(rows, dtype=bool)
    stops = np.cumsum(random.integers(1, longest + 1, size=2 * rows // longest + 20))
    timeouts[stops[stops <= rows] - 1] = True
    return OfflineDataset.from_columns(
        {
            "observations": random.standard_normal((rows, 4), dtype=np.float32),
            "actions": random.uniform(-1, 1, (rows, 2)).astype(np.float32),
            "rewards": (random.random(rows) < 0.05).astype(np.float32),
            "goals": random.standard_normal((rows, 2), dtype=np.float32),
            "timeouts": timeouts,
        },
        name="made up",
    )


def make_module(
    options: dict[str, Any], dataset: OfflineDataset, device: torch.device, seed: int
) -> DVFModule:
    """A DVFModule with random weights, ready to train on the dataset."""
    torch.manual_seed(seed)
    module = DVFModule(
        OBSERVATION_DIM, ACTION_DIM, [-1.0] * ACTION_DIM, [1.0] * ACTION_DIM, **options
    )
    module.normalizer.fit(dataset.columns["observations"])
    return module.to(device)
