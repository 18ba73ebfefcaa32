"""Collecting LDCQ's random walk with the paper's recipe: ±[0.8, 1] until an end is reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np

from lit_offrl.collecting.batched import BATCH, BatchedCollection
from lit_offrl.common.errors import ConfigError
from lit_offrl.envs.random_walk import END, RandomWalkEnv


@dataclass(kw_only=True)
class StepsCollection(BatchedCollection):
    """LDCQ's random walk: steps of random sign and a length that is uniform in [0.8, 1].

    Venkatraman et al. (2023), appendix D. They do not say how many episodes they collected.

    Raises:
        ConfigError: the environment is no random walk, has no step limit, or ``noise`` was given.
    """

    planner: ClassVar[str] = "steps"
    kind: ClassVar[type[gymnasium.Env]] = RandomWalkEnv
    example: ClassVar[str] = "lit_offrl/random-walk-v0"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise:
            raise ConfigError("--planner steps: has steps of 0.8 to 1 only: leave out --noise.")

    def _batch(self) -> dict[str, np.ndarray]:
        shape = (max(1, BATCH // self._limit), self._limit)
        signs = np.where(self._random.random(shape) < 0.5, -1.0, 1.0)
        actions = (signs * self._random.uniform(0.8, 1.0, shape)).astype(np.float32)
        after = np.clip(np.cumsum(actions, axis=1, dtype=np.float64), -END, END)
        arrived = np.abs(after) >= END
        lengths = np.where(arrived.any(axis=1), arrived.argmax(axis=1) + 1, self._limit)
        inside = np.arange(self._limit) < lengths[:, None]
        before = np.concatenate([np.zeros((len(after), 1)), after[:, :-1]], axis=1)
        terminals = arrived[inside]
        timeouts = np.zeros(len(terminals), bool)
        ends = np.cumsum(lengths) - 1
        timeouts[ends] = ~terminals[ends]
        return {
            "observations": before[inside, None].astype(np.float32),
            "actions": actions[inside, None],
            "rewards": np.where(terminals, END, -1.0).astype(np.float32),
            "terminals": terminals,
            "timeouts": timeouts,
            "next_observations": after[inside, None].astype(np.float32),
        }

    def facts(self, columns: dict[str, np.ndarray], cut: bool) -> dict[str, Any]:
        """Say what the steps are."""
        return {"kind": "steps", "algorithm": "steps of random sign, length uniform in [0.8, 1]"}
