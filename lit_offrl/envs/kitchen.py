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


def register() -> None:
    """Register ``lit_offrl/kitchen-TASK-v0`` for each of ``TASKS``; imports no simulator."""
    for task in TASKS:
        gymnasium.register(
            id=f"lit_offrl/kitchen-{task}-v0",
            entry_point="lit_offrl.envs.kitchen:make",
            max_episode_steps=STEP_LIMIT,
            kwargs={"task": task},
        )


def make(task: str, **options: Any) -> gymnasium.Env:
    """Make the kitchen of ``task``; ``options`` are gymnasium-robotics', such as ``render_mode``.

    Raises:
        EvaluationError: gymnasium-robotics or mujoco is not installed.
    """
    kitchen = require("gymnasium_robotics.envs.franka_kitchen", f"kitchen-{task}")
    noise = {"robot_noise_ratio": _NOISE, "object_noise_ratio": _NOISE}
    elements = list(TASKS[task])
    return D4RLKitchen(kitchen.KitchenEnv(tasks_to_complete=elements, **{**noise, **options}))


class D4RLKitchen(gymnasium.ObservationWrapper):
    """FrankaKitchen with D4RL's observation (60,) instead of a dictionary."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (60,), np.float64)
        indices = require("gymnasium_robotics.envs.franka_kitchen.kitchen_env", "kitchen")
        self._goal = np.zeros(30)
        for element, goal in env.unwrapped.goal.items():  # type: ignore[attr-defined]
            self._goal[indices.OBS_ELEMENT_INDICES[element]] = goal

    def observation(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Put positions and goal together."""
        inner = observation["observation"]
        return np.concatenate([inner[_ROBOT], inner[_OBJECTS], self._goal])
