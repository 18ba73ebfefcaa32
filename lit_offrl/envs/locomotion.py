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


def make(task: str, **options: Any) -> gymnasium.Env:
    """Make the environment of ``task``; ``options`` are gymnasium's, such as ``render_mode``.

    Raises:
        EvaluationError: mujoco is not installed.
    """
    require("mujoco", task)
    module, name = TASKS[task]
    env = getattr(require(f"gymnasium.envs.mujoco.{module}", task), name)(**options)
    if task != "ant":
        return env
    # MuJoCo 2.0, with which D4RL's data were made, left the contact forces 0 unless asked for them
    space = gymnasium.spaces.Box(-np.inf, np.inf, (27 + CONTACT_FORCES,), np.float64)
    forces = np.zeros(CONTACT_FORCES)
    return gymnasium.wrappers.TransformObservation(
        env, lambda observation: np.concatenate([observation, forces]), space
    )
