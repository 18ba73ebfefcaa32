"""D4RL's kitchen, from gymnasium-robotics' FrankaKitchen.

    D4RL (60,)      robot qpos 9 | object qpos 21 | goal 30            0 where the task sets no goal
    inner (59,)     robot qpos 9, qvel 9 | object qpos 21, qvel 20     the velocities are dropped

Reward 1 once for each of four elements brought within 0.3 of its goal; the episode ends when all
are, or after 280 steps. (D4RL's *data* pay the number of elements solved at every step.) As in D4RL
the last element may be undone afterwards: what was solved once stays solved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from lit_offrl.envs.extras import require

STEP_LIMIT = 280
# Fu et al., D4RL (2020), section 5: partial contains the task, mixed never does as a whole.
TASKS: Mapping[str, tuple[str, ...]] = {
    "complete": ("microwave", "kettle", "light switch", "slide cabinet"),
    "partial": ("microwave", "kettle", "light switch", "slide cabinet"),
    "mixed": ("microwave", "kettle", "bottom burner", "light switch"),
}
_NOISE = 0.1  # D4RL's, of the amplitudes in the robot's description, for robot and objects alike
_ROBOT, _OBJECTS = slice(0, 9), slice(18, 39)  # positions in the inner observation


def make(task: str, **options: Any) -> gymnasium.Env:
    """Make the kitchen of ``task``; ``options`` are gymnasium-robotics', such as ``render_mode``.

    Raises:
        EvaluationError: gymnasium-robotics or mujoco is not installed.
    """
    kitchen = require("gymnasium_robotics.envs.franka_kitchen", f"kitchen-{task}")
    noise = {"robot_noise_ratio": _NOISE, "object_noise_ratio": _NOISE}
    env = kitchen.KitchenEnv(tasks_to_complete=list(TASKS[task]), **{**noise, **options})
    indices = require("gymnasium_robotics.envs.franka_kitchen.kitchen_env", "kitchen")
    goal = np.zeros(30)
    for element, place in env.goal.items():
        goal[indices.OBS_ELEMENT_INDICES[element]] = place

    def put_together(observation: Mapping[str, Any]) -> np.ndarray:
        inner = observation["observation"]
        return np.concatenate([inner[_ROBOT], inner[_OBJECTS], goal])

    space = gymnasium.spaces.Box(-np.inf, np.inf, (60,), np.float64)
    return gymnasium.wrappers.TransformObservation(env, put_together, space)
