"""Small datasets with values that say where they come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest


def make_columns(
    lengths: list[int], ends: list[str], *, actions: bool = True, following: bool = True
) -> dict[str, np.ndarray]:
    """Return columns whose observation is (episode, step) and whose reward is 1000·episode + step.

    ``ends`` holds "terminal" or "timeout" for each episode, or "" for a last one that is cut off.
    """
    episode = np.repeat(np.arange(len(lengths)), lengths)
    step = np.concatenate([np.arange(length) for length in lengths])
    last = np.cumsum(lengths) - 1
    columns = {
        "observations": np.stack([episode, step], axis=1).astype(np.float32),
        "rewards": (1000 * episode + step).astype(np.float32),
        "terminals": np.zeros(len(step), dtype=bool),
        "timeouts": np.zeros(len(step), dtype=bool),
    }
    columns["terminals"][last] = [end == "terminal" for end in ends]
    columns["timeouts"][last] = [end == "timeout" for end in ends]
    if following:
        columns["next_observations"] = columns["observations"] + np.float32([0, 1])
    if actions:
        columns["actions"] = -columns["observations"]
    return columns


@pytest.fixture(scope="session")  # hypothesis wants no fixture that is made anew for each test
def columns_of() -> Callable[..., dict[str, np.ndarray]]:
    return make_columns


def write_raw(path: Path, columns: dict[str, np.ndarray], **attributes: object) -> Path:
    """Write arrays just as they are, right or wrong."""
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name] = values
        file.attrs.update(attributes)
    return path


@pytest.fixture
def raw() -> Callable[..., Path]:
    return write_raw


@pytest.fixture
def shifted() -> dict[str, np.ndarray]:
    """Two episodes in d4rl-pybullet's layout: 3 transitions, then 2, then one row of a third."""
    observations = np.array([[0], [1], [2], [3], [10], [11], [12], [20]], dtype=np.float32)
    actions = np.array([[0.1], [0.2], [0.3], [0], [0.4], [0.5], [0], [0.6]], dtype=np.float32)
    rewards = np.array([[0], [7], [8], [9], [0], [5], [6], [0]], dtype=np.float32)
    terminals = np.array([[0], [0], [0], [1], [0], [0], [1], [0]], dtype=np.float32)
    return {
        "observations": observations,
        "actions": actions,
        "rewards": rewards,
        "terminals": terminals,
    }
