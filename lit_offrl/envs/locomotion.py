"""D4RL's hopper, halfcheetah, walker2d and ant, from gymnasium's -v4 environments.

D4RL's are gym's -v2. Of gymnasium's two generations -v4 has the same models, rewards, observations
and terminations; -v5 has another walker and another ant. They are made from their classes: by their
ids gymnasium would warn that they are old, which is what they are here for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from lit_offrl.envs.extras import require

STEP_LIMIT = 1000
TASKS: Mapping[str, tuple[str, str]] = {  # task → module and class in gymnasium.envs.mujoco
    "hopper": ("hopper_v4", "HopperEnv"),
    "halfcheetah": ("half_cheetah_v4", "HalfCheetahEnv"),
    "walker2d": ("walker2d_v4", "Walker2dEnv"),
    "ant": ("ant_v4", "AntEnv"),
}
CONTACT_FORCES = 84  # of the ant's 111 observations


def register() -> None:
    """Register ``lit_offrl/TASK-v2`` for each of ``TASKS``; imports no simulator."""
    for task in TASKS:
        gymnasium.register(
            id=f"lit_offrl/{task}-v2",
            entry_point="lit_offrl.envs.locomotion:make",
            max_episode_steps=STEP_LIMIT,
            kwargs={"task": task},
        )


def make(task: str, **options: Any) -> gymnasium.Env:
    """Make the environment of ``task``; ``options`` are gymnasium's, such as ``render_mode``.

    Raises:
        EvaluationError: mujoco is not installed.
    """
    require("mujoco", task)
    module, name = TASKS[task]
    env = getattr(require(f"gymnasium.envs.mujoco.{module}", task), name)(**options)
    return WithContactForces(env) if task == "ant" else env


class WithContactForces(gymnasium.ObservationWrapper):
    """The ant's 27 observations, and 84 zeros where D4RL's has contact forces (111,).

    MuJoCo 2.0, with which D4RL's data were made, left these forces 0 unless asked to compute them.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        assert env.observation_space.shape is not None
        size = env.observation_space.shape[0] + CONTACT_FORCES
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Append the zeros."""
        return np.concatenate([observation, np.zeros(CONTACT_FORCES)])
