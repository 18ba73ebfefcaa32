"""Collecting with soft actor-critic, in training or trained, and with random actions."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import gymnasium
import numpy as np

from lit_offrl.collecting.base import Collection, progress_bar, require_bounded
from lit_offrl.common.errors import ConfigError, install
from lit_offrl.common.seeds import mix
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


@dataclass(kw_only=True)
class AgentCollection(Collection):
    """Episodes of random actions, of an agent in training, or of a trained one.

    Args:
        kind: Who acts.
        target_return: Return of one episode that ends the training of mixed and medium; without it,
            the usual one of the environment.
        train_steps: Number of SAC's training steps at most, at least 1.
        thin: Number of episodes K of which every K-th is written, at least 1.

    Raises:
        ConfigError: an option cannot be, or the environment has no usual target return.
    """

    kind: Literal["random", "mixed", "medium", "expert"]
    target_return: float | None = None
    train_steps: Annotated[int, "[1, inf)"] = 200_000
    thin: Annotated[int, "[1, inf)"] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.recorder: Recorder | None = None
        self.recipe: dict[str, Any] | None = None
        if self.kind in ("mixed", "medium") and self.target_return is None:
            self.target_return = TARGET_RETURNS.get(self.env)
            if self.target_return is None:
                raise ConfigError(
                    f"'{self.env}' has no usual level at which {self.kind} stops: give"
                    " --target_return (inf for none)."
                )

    @property
    def count(self) -> int:
        """Number of environment steps so far."""
        return 0 if self.recorder is None else self.recorder.count

    def _env(self) -> gymnasium.Env:
        return make_env(self.env, max_episode_steps=self.max_episode_steps)

    def run(self) -> None:
        """Collect until there is enough."""
        env = self._env()
        require_step_limit(env, self.env)
        self.action_space = box(env.action_space)
        require_bounded(self.action_space, self.env)
        low, high = self.action_space.low, self.action_space.high
        random = np.random.default_rng(mix(self.seed, 2))
        if self.kind == "random":
            self._record(env, lambda _: random.uniform(low, high))
            return
        target = math.inf if self.target_return is None else self.target_return
        target = math.inf if self.kind == "expert" else target
        keep = self.kind == "mixed"
        steps = min(self.steps, self.train_steps) if keep else self.train_steps
        with progress_bar(steps, "training SAC") as bar:
            training = Recorder(env, steps, target=target, bar=bar, keep=keep)
            self.recorder = training if keep else None
            self.recipe = {**SAC_RECIPE, "buffer_size": min(steps, 1_000_000)}
            model = _train(training, self.recipe, steps, self.seed)
        self.target_reached = training.target_reached if target < math.inf else None
        if keep:
            return

        def choose(observation: np.ndarray) -> np.ndarray:
            action, _ = model.predict(observation, deterministic=True)
            noise = self.noise * (high - low) / 2 * random.standard_normal(low.shape)
            return np.clip(action + noise, low, high)

        self._record(self._env(), choose)

    def _record(self, env: gymnasium.Env, choose: Callable[[np.ndarray], np.ndarray]) -> None:
        """Record episodes of ``choose``, an action for an observation (o,), until enough."""
        with progress_bar(self.steps, "collecting") as bar, contextlib.suppress(Enough):
            self.recorder = Recorder(env, self.steps, bar=bar, keep=True)
            observation, _ = self.recorder.reset(seed=mix(self.seed, 1) % 2**31)
            while True:
                observation, _, terminated, truncated, _ = self.recorder.step(choose(observation))
                if terminated or truncated:
                    observation, _ = self.recorder.reset()

    def recorded(self) -> tuple[dict[str, np.ndarray], bool]:
        """Return the rows so far, the last of which ends an episode, and whether it was cut."""
        assert self.recorder is not None  # there are rows
        return self.recorder.recorded(self.thin)

    def facts(self, columns: dict[str, np.ndarray], cut: bool) -> dict[str, Any]:
        """Say who acted, and how it was trained; None is left out of the file."""
        trained = self.kind != "random"
        return {
            "kind": self.kind,
            "thin": self.thin,
            "algorithm": "stable-baselines3 SAC" if trained else "uniform random actions",
            "hyperparameters": json.dumps(self.recipe) if self.recipe else None,
            "train_steps": self.train_steps if trained else None,
            "target_return": self.target_return if trained else None,
            "target_reached": self.target_reached,
            "noise": self.noise if self.kind in ("medium", "expert") else None,
        }
