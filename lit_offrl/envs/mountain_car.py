"""gymnasium's continuous Mountain Car, with pictures that need no pygame.

``lit_offrl/mountain-car-v0`` is ``MountainCarContinuous-v0`` in all but ``render``: 999 steps,
observations (2,) position and velocity, actions (1,) in ±1, 100 at the flag less 0.1 · action² a
step. Data and scores of the two are the same.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from gymnasium.envs.classic_control.continuous_mountain_car import Continuous_MountainCarEnv

from lit_offrl.common.errors import ConfigError
from lit_offrl.envs.drawing import Canvas

STEP_LIMIT = 999


class MountainCarEnv(Continuous_MountainCarEnv):
    """The car in the valley between −1.2 and 0.6, the flag at 0.45.

    Args:
        render_mode: ``"rgb_array"``; any other is a ConfigError.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012  gymnasium's name

    def __init__(self, *, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(f"Mountain Car has no render mode '{render_mode}': use rgb_array.")
        super().__init__(render_mode=None)  # its own drawing wants pygame at every step
        self.render_mode = render_mode
        self.width, self.height = 480, 320

    def render(self) -> np.ndarray:
        """Return a picture (height, width, 3), uint8: the valley, the flag and the car."""
        left, right = self.min_position, self.max_position
        extent = (right - left, (right - left) * self.height / self.width)
        canvas = Canvas((self.width, self.height), (left, -0.05), extent)
        x = np.linspace(left, right, 60)
        road = np.stack([x, self._height(x)], axis=1)
        for start, end in pairwise(road):
            canvas.line(start, end, 0.008, (96, 108, 122))
        foot = np.array([self.goal_position, self._height(np.array(self.goal_position))])
        canvas.line(foot, foot + np.array([0, 0.15]), 0.006, (58, 166, 85))
        position = self.state[0]
        car = np.array([position, self._height(np.array(position)) + 0.03])
        canvas.disc(car, 0.035, (230, 159, 0))
        return canvas.pixels
