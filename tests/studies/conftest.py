"""Checkpoints of DVFModules, made without training, and data of several policies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_offrl.datasets.hdf5 import write_hdf5
from lit_offrl.modules import DVFModule
from lit_offrl.modules.base import CHECKPOINT_KEY

TINY = {"width": 8, "blocks": 1, "heads": 2, "latents": 2, "diffusion_steps": 4}
TINY |= {"sampling_steps": 2, "num_samples": 3, "hidden": (8,), "gamma": 0.9}
EPISODES, LENGTH = 12, 10


@pytest.fixture
def save(tmp_path):
    """Write a checkpoint of a small module of the given class and options; returns its path."""

    def write(observation_dim, action_dim, name="a.ckpt", config="", kind=DVFModule, **options):
        torch.manual_seed(0)
        if kind is DVFModule:
            options = {**TINY, "policy_representation": "scalar", **options}
        bounds = ([-1.0] * action_dim, [1.0] * action_dim)
        module = kind(observation_dim, action_dim, *bounds, **options)
        module.normalizer.fit(torch.randn(50, observation_dim))
        checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
        module.on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY]["config"] = config
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)
        return path

    return write


@pytest.fixture
def maze_file(tmp_path):
    """Three policies in maze2d-umaze, which drive from (3, 1) up to 0, 2 or 4 cells along its way.

    The way of the U, in the middles of its cells, at a cell in two steps.
    """
    way = np.array([(3, 1), (3, 2), (3, 3), (2, 3), (1, 3)]) - 0.2
    fine = np.repeat(way, 2, axis=0) + 0.5 * np.diff(way, axis=0, append=way[-1:]).repeat(2, 0) * (
        np.arange(10) % 2
    )[:, None]  # fmt: skip
    policy = np.repeat(np.arange(EPISODES) % 3, LENGTH)
    step = np.tile(np.arange(LENGTH), EPISODES)
    place = fine[np.minimum(step, 4 * policy)]
    random = np.random.default_rng(0)
    place = place + 0.01 * random.normal(size=place.shape)
    ends = step == LENGTH - 1
    columns = {
        "observations": np.concatenate([place, 0 * place], 1),
        "actions": np.zeros((len(step), 2)),
        "rewards": np.zeros(len(step)),
        "infos/goal": fine[4 * policy],
    }
    columns = {name: column.astype(np.float32) for name, column in columns.items()}
    columns |= {"timeouts": ends, "terminals": 0 * ends > 0, "policy": policy.astype(np.float32)}

    def write(**changes):
        kept = {k: v for k, v in {**columns, **changes}.items() if v is not None}
        return write_hdf5(
            tmp_path / "maze.hdf5",
            {name: column for name, column in kept.items() if name != "env_id"},
            {"env_id": changes.get("env_id", "lit_offrl/maze2d-umaze-v1")},
        )

    return write


@pytest.fixture
def car_file(tmp_path):
    """Four policies on Mountain Car, the k-th of which arrives after 9 − 2 k steps."""
    parts = []
    for episode in range(EPISODES):
        policy = episode % 4
        length = 9 - 2 * policy
        last = np.arange(length) == length - 1
        place = np.stack([np.linspace(-0.5, 0.4, length), np.full(length, 0.01)], 1)
        parts.append(
            {
                "observations": place,
                "actions": np.zeros((length, 1)),
                "rewards": 100.0 * last,
                "terminals": last,
                "timeouts": 0 * last > 0,
                "policy": np.full(length, policy),
            }
        )
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    floats = {k: v.astype(np.float32) for k, v in columns.items() if v.dtype != bool}
    path = tmp_path / "car.hdf5"
    return write_hdf5(path, columns | floats, {"env_id": "lit_offrl/mountain-car-v0"})
