"""A wrapper that writes down what an environment does, row by row, for datasets."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import gymnasium
import numpy as np
from tqdm import tqdm

from lit_offrl.evaluation.envs import box


class Enough(Exception):
    """Raised by the recorder when it has the rows, or the return, that it was made for."""


class Recorder(gymnasium.Wrapper):
    """Keeps every transition as the environment itself gave it, before any wrapper's changes.

    Columns are allocated once for ``rows`` rows. The count goes up last, so an interruption at any
    moment leaves whole rows only.

    Args:
        env: Environment.
        rows: Number of rows; the step that fills the last one raises :class:`Enough`.
        target: Return; an episode that reaches it raises :class:`Enough` at its end.
        bar: Progress bar, advanced at each step, with the mean return of the last ten episodes.
        keep: Whether to keep the rows; False only counts them (the training that precedes `medium`
            and `expert`).
    """

    def __init__(
        self, env: gymnasium.Env, rows: int, *, target: float = math.inf, bar: tqdm, keep: bool
    ) -> None:
        super().__init__(env)
        size = rows if keep else 0
        observation = (size, *box(env.observation_space).shape)
        self.columns = {
            "observations": np.empty(observation, np.float32),
            "actions": np.empty((size, *box(env.action_space).shape), np.float32),
            "rewards": np.empty(size, np.float32),
            "terminals": np.zeros(size, bool),
            "timeouts": np.zeros(size, bool),
            "next_observations": np.empty(observation, np.float32),
        }
        self.rows, self.target, self.bar, self.keep = rows, target, bar, keep
        self.count = 0
        self._latest: deque[float] = deque(maxlen=10)
        self.target_reached = False

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(**options)
        self._observation = np.array(observation, np.float32)
        self._return = 0.0
        return observation, info

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take one step and keep it."""
        result = self.env.step(action)
        observation, reward, terminated, truncated, _ = result
        if self.keep:
            row = self.count
            self.columns["observations"][row] = self._observation
            self.columns["actions"][row] = action
            self.columns["rewards"][row] = reward
            self.columns["terminals"][row] = terminated
            self.columns["timeouts"][row] = truncated and not terminated
            self.columns["next_observations"][row] = observation
        self.count += 1
        self._observation = np.array(observation, np.float32)
        self._return += float(reward)
        self.bar.update()
        if terminated or truncated:
            self._latest.append(self._return)
            self.bar.set_postfix_str(f"return {np.mean(self._latest):.0f}", refresh=False)
            self.target_reached |= self._return >= self.target
        if self.count == self.rows or self.target_reached:
            raise Enough
        return result

    def recorded(self, thin: int = 1) -> tuple[dict[str, np.ndarray], bool]:
        """Return the rows of every ``thin``-th episode and whether the last of them was cut short.

        A cut episode ends in a timeout: it did not fail, and nothing is known beyond its last row.
        The first episode is always there.
        """
        columns = {name: column[: self.count].copy() for name, column in self.columns.items()}
        ends = columns["terminals"] | columns["timeouts"]
        columns["timeouts"][-1] |= not ends[-1]
        episode = np.cumsum(ends) - ends
        kept = episode % thin == 0
        cut = bool(kept[-1] and not ends[-1])
        return {name: column[kept] for name, column in columns.items()}, cut


def episode_returns(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Return of each episode (E,), float64, of rows whose last ends an episode."""
    ends = np.flatnonzero(columns["terminals"] | columns["timeouts"])
    return np.add.reduceat(columns["rewards"].astype(np.float64), np.r_[0, ends[:-1] + 1])
