"""Collecting with soft actor-critic, in training or trained, and with random actions."""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from lit_offrl.collecting.base import origin, progress_bar, return_summary
from lit_offrl.common.errors import ConfigError, install
from lit_offrl.common.randomness import mix
from lit_offrl.datasets.hdf5 import write_hdf5
from lit_offrl.evaluation.envs import box, make_env, require_step_limit
from lit_offrl.evaluation.recorder import Enough, Recorder

if TYPE_CHECKING:
    from stable_baselines3 import SAC

# The recipe of d4rl-pybullet; what is not named is stable-baselines3's default.
SAC_RECIPE: dict[str, Any] = {
    "learning_rate": 1e-3,
    "gamma": 0.99,
    "tau": 0.005,
    "batch_size": 100,
    "learning_starts": 100,
    "train_freq": 1,
    "gradient_steps": 1,
    "ent_coef": "auto",
    "policy_kwargs": {"net_arch": [256, 256]},
}
# The return of one episode at which d4rl-pybullet stopped training (`mixed`, `medium`).
TARGET_RETURNS = {
    "HopperBulletEnv-v0": 1000.0,
    "HalfCheetahBulletEnv-v0": 800.0,
    "AntBulletEnv-v0": 600.0,
    "Walker2DBulletEnv-v0": 1300.0,
}


def _act(recorder: Recorder, choose: Callable[[np.ndarray], np.ndarray], seed: int) -> None:
    """Fill the recorder with episodes of ``choose``, an action for an observation (o,)."""
    observation, _ = recorder.reset(seed=mix(seed, 1) % 2**31)
    while True:  # until the recorder has enough
        observation, _, terminated, truncated, _ = recorder.step(choose(observation))
        if terminated or truncated:
            observation, _ = recorder.reset()


def _train(recorder: Recorder, recipe: dict[str, Any], steps: int, seed: int) -> SAC:
    """Train soft actor-critic (Haarnoja et al., 2018) on the recorder's environment."""
    try:
        import torch
        from stable_baselines3 import SAC
    except ImportError as error:
        raise ConfigError(
            "This kind of dataset trains an agent with stable-baselines3, which is not installed:"
            f" run {install('collect')}, or choose --kind random."
        ) from error
    torch.set_num_threads(1)  # such small nets gain nothing from more, and sums keep their order
    model = SAC("MlpPolicy", recorder, seed=seed, device="cpu", **copy.deepcopy(recipe))
    with contextlib.suppress(Enough):
        model.learn(steps + 1)  # the recorder stops it, after the last step's transition
    return model


class AgentCollection:
    """Episodes of random actions, of an agent in training, or of a trained one."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.recorder: Recorder | None = None
        self.recipe: dict[str, Any] | None = None
        self.target_reached: bool | None = None

    def _env(self) -> gymnasium.Env:
        return make_env(self.options.env, max_episode_steps=self.options.max_episode_steps)

    def run(self) -> None:
        """Collect until there is enough."""
        chosen = self.options
        env = self._env()
        require_step_limit(env, chosen.env)
        low, high = box(env.action_space).low, box(env.action_space).high
        if not np.isfinite([low, high]).all():
            raise ConfigError(
                f"Environment '{chosen.env}' has unbounded actions: wrap it so that they are."
            )
        random = np.random.default_rng(mix(chosen.seed, 2))
        if chosen.kind == "random":
            with progress_bar(chosen.steps, "collecting") as bar, contextlib.suppress(Enough):
                self.recorder = Recorder(env, chosen.steps, bar=bar, keep=True)
                _act(self.recorder, lambda _: random.uniform(low, high), chosen.seed)
            return
        target = math.inf if chosen.kind == "expert" else chosen.target_return
        keep = chosen.kind == "mixed"
        steps = min(chosen.steps, chosen.train_steps) if keep else chosen.train_steps
        with progress_bar(steps, "training SAC") as bar:
            training = Recorder(env, steps, target=target, bar=bar, keep=keep)
            self.recorder = training if keep else None
            self.recipe = {**SAC_RECIPE, "buffer_size": min(steps, 1_000_000)}
            model = _train(training, self.recipe, steps, chosen.seed)
        self.target_reached = training.target_reached if target < math.inf else None
        if keep:
            return

        def choose(observation: np.ndarray) -> np.ndarray:
            action, _ = model.predict(observation, deterministic=True)
            noise = chosen.noise * (high - low) / 2 * random.standard_normal(low.shape)
            return np.clip(action + noise, low, high)

        with progress_bar(chosen.steps, "collecting") as bar, contextlib.suppress(Enough):
            self.recorder = Recorder(self._env(), chosen.steps, bar=bar, keep=True)
            _act(self.recorder, choose, chosen.seed)

    def save(self, command: str, *, complete: bool) -> int:
        """Write what there is, if anything, and return the number of rows."""
        if self.recorder is None or self.recorder.count == 0:
            return 0
        chosen = self.options
        columns, cut = self.recorder.recorded(chosen.thin)
        if not chosen.next_observations:
            del columns["next_observations"]
        ending = {
            "complete": complete,
            "last_episode_cut": cut,
            "environment_steps": self.recorder.count,
            "rows": len(columns["rewards"]),
            **return_summary(columns, cut),
        }
        write_hdf5(chosen.output, columns, {**ending, **self._origin(command)})
        return len(columns["rewards"])

    def _origin(self, command: str) -> dict[str, Any]:
        """Say how the rows came to be; None is left out of the file."""
        chosen = self.options
        assert self.recorder is not None
        trained = chosen.kind != "random"
        return {
            **origin(chosen, box(self.recorder.action_space), command),
            "kind": chosen.kind,
            "thin": chosen.thin,
            "algorithm": "stable-baselines3 SAC" if trained else "uniform random actions",
            "hyperparameters": json.dumps(self.recipe) if self.recipe else None,
            "train_steps": chosen.train_steps if trained else None,
            "target_return": chosen.target_return if trained else None,
            "target_reached": self.target_reached,
            "noise": chosen.noise if chosen.kind in ("medium", "expert") else None,
        }
