"""The 1-D random walk of LDCQ: reach either end of a line, one step of at most 1 at a time.

    −10 ─────────────────── 0 ─────────────────── +10      reward 10 at an end, −1 for every other
     end, 10              start               end, 10      step; 500 steps at most

Venkatraman et al., Reasoning with Latent Diffusion in Offline RL (2023), appendix D. The paper does
not say that an episode ends where an end is reached, but its scores do: -2.2 is 10 for the end,
once, less 12.2 steps on the way; an agent that could stay at an end would earn thousands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from lit_offrl.common.errors import ConfigError
from lit_offrl.envs.drawing import Canvas

END = 10.0
STEP_LIMIT = 500


class RandomWalkEnv(gymnasium.Env):
    """Observations (1,): the position in ±10, 0 at the start. Actions (1,) in ±1: the move.

    Args:
        render_mode: ``"rgb_array"`` for pictures of the line; any other is a ConfigError.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  gymnasium's name

    def __init__(self, *, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(f"The random walk has no render mode '{render_mode}': use rgb_array.")
        self.render_mode = render_mode
        self.width, self.height = 480, 64
        self.position = 0.0
        self.observation_space = gymnasium.spaces.Box(-END, END, (1,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Go back to 0."""
        super().reset(seed=seed)
        self.position = 0.0
        return np.array([self.position]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move; the episode ends at either end of the line."""
        move = float(np.clip(np.asarray(action, float).reshape(1)[0], -1.0, 1.0))
        self.position = float(np.clip(self.position + move, -END, END))
        ended = abs(self.position) >= END
        return np.array([self.position]), END if ended else -1.0, ended, False, {"success": ended}

    def render(self) -> np.ndarray:
        """Return a picture (height, width, 3), uint8: the line, its ends and where one is."""
        extent = (2 * END + 2, (2 * END + 2) * self.height / self.width)
        canvas = Canvas((self.width, self.height), (-END - 1, -extent[1] / 2), extent)
        left, right = np.array([-END, 0.0]), np.array([END, 0.0])
        canvas.line(left, right, 0.05, (96, 108, 122))
        for end in (left, right):
            canvas.disc(end, 0.4, (58, 166, 85))
        canvas.disc(np.array([self.position, 0.0]), 0.6, (230, 159, 0))
        return canvas.pixels
