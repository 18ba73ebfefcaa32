"""What an environment executes in place of a policy's actions: noise that lasts, random actions."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Exploration:
    """The draws of one episode, in the order of its steps.

    A policy's actions get normal noise of ``noise`` half-ranges and are clipped. Each draw, also
    one of a uniform action, is kept for as many steps as a geometric distribution of mean ``hold``
    says.

    Args:
        space: Action space, bounded.
        noise: Standard deviation of the noise, at least 0, in half-ranges of the action.
        hold: Mean number of steps that a draw lasts, at least 1.
        seed: Seed of the draws.
    """

    def __init__(
        self, space: gymnasium.spaces.Box, *, noise: float, hold: float, seed: int
    ) -> None:
        self._space, self._noise, self._hold = space, noise, hold
        self._random = np.random.default_rng(seed)
        self._held: Any = None  # what was drawn last, (a,)
        self._is_action = False  # whether that was an action, not noise

    def __call__(self, action: np.ndarray | None) -> np.ndarray:
        """Return the action to take (a,), float32, for a policy's (a,); for None a uniform one."""
        low, high = self._space.low, self._space.high
        changes = self._held is None or self._is_action != (action is None)
        if changes or self._random.random() < 1 / self._hold:
            self._is_action = action is None
            if action is None:
                self._held = self._random.uniform(low, high)
            else:
                normal = self._random.standard_normal(low.shape)
                self._held = self._noise * ((high - low) / 2) * normal
        if action is None:
            return self._held.astype(np.float32)
        return np.clip(action + self._held, low, high).astype(np.float32)
