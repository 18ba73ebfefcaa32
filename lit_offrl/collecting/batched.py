"""Collecting whole episodes, many at a time, where an environment is a few lines of arithmetic.

Batches of episodes go through NumPy and no environment is stepped. The rows replay in the
environments to the last bit all the same.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np

from lit_offrl.collecting.base import Collection, progress_bar
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.seeds import mix
from lit_offrl.evaluation.envs import box, make_env, require_step_limit

BATCH = 2**18  # rows simulated at once, at most, where one round of episodes has no more


@dataclass(kw_only=True)
class BatchedCollection(Collection):
    """Rows of whole episodes, made in batches; what graded controllers and random steps share.

    A batch under way is lost when interrupted: a fraction of a second's work.

    Raises:
        ConfigError: the environment is of another kind.
        EvaluationError: there is no such environment, or it has no step limit.
    """

    planner: ClassVar[str]
    """Name of the recipe."""

    kind: ClassVar[type[gymnasium.Env]]
    """The environment's class."""

    example: ClassVar[str]
    """An environment id that fits, for the error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        env = make_env(self.env, max_episode_steps=self.max_episode_steps)
        if not isinstance(env.unwrapped, self.kind):
            raise ConfigError(
                f"--planner {self.planner}: does not know '{self.env}': choose {self.example}, or"
                " give --kind."
            )
        self._env: Any = env.unwrapped
        self.action_space = box(env.action_space)
        self._limit = require_step_limit(env, self.env)
        self._random = np.random.default_rng(mix(self.seed, 5))
        self._parts: list[dict[str, np.ndarray]] = []

    @property
    def count(self) -> int:
        """Number of environment steps so far."""
        return sum(len(part["rewards"]) for part in self._parts)

    def run(self) -> None:
        """Collect until there is enough."""
        with progress_bar(self.steps, "collecting") as bar:
            while (missing := self.steps - self.count) > 0:
                part = {name: column[:missing] for name, column in self._batch().items()}
                self._parts.append(part)
                bar.update(len(part["rewards"]))

    @abstractmethod
    def _batch(self) -> dict[str, np.ndarray]:
        """Return the columns of further whole episodes, one after another."""

    def recorded(self) -> tuple[dict[str, np.ndarray], bool]:
        """Return the rows so far, the last of which ends an episode, and whether it was cut."""
        parts = list(self._parts)
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        cut = not (columns["terminals"][-1] or columns["timeouts"][-1])
        columns["timeouts"][-1] |= cut
        return columns, cut
