"""Collecting whole episodes, many at a time, where an environment is a few lines of arithmetic.

Batches of episodes go through NumPy and no environment is stepped. The rows replay in the
environments to the last bit all the same.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from typing import Any

import gymnasium
import numpy as np

from lit_offrl.collecting.base import origin, progress_bar, return_summary
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import mix
from lit_offrl.datasets.hdf5 import write_hdf5
from lit_offrl.evaluation.envs import box, make_env, require_step_limit

BATCH = 2**18  # rows simulated at once, at most, where one round of episodes has no more


class BatchedCollection(ABC):
    """Rows of whole episodes, made in batches; what graded controllers and random steps share.

    A batch under way is lost when interrupted: a fraction of a second's work.

    Args:
        options: ``env``, ``planner``, ``steps``, ``seed``, ``max_episode_steps``, ``output`` and
            ``next_observations``.
        kind: the environment's class.
        example: an environment id that fits, for the error.

    Raises:
        ConfigError: the environment is of another kind.
        EvaluationError: there is no such environment, or it has no step limit.
    """

    target_reached: bool | None = None

    def __init__(
        self, options: argparse.Namespace, kind: type[gymnasium.Env], example: str
    ) -> None:
        self.options = options
        env = make_env(options.env, max_episode_steps=options.max_episode_steps)
        if not isinstance(env.unwrapped, kind):
            raise ConfigError(
                f"--planner {options.planner}: does not know '{options.env}': choose {example}, or"
                " give --kind."
            )
        self._env: Any = env.unwrapped
        self._limit = require_step_limit(env, options.env)
        self._random = np.random.default_rng(mix(options.seed, 5))
        self._parts: list[dict[str, np.ndarray]] = []
        self.count = 0

    def run(self) -> None:
        """Collect until there is enough."""
        with progress_bar(self.options.steps, "collecting") as bar:
            while self.count < self.options.steps:
                missing = self.options.steps - self.count
                part = {name: column[:missing] for name, column in self._batch().items()}
                self._parts.append(part)
                self.count += len(part["rewards"])
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

    def save(self, command: str, *, complete: bool) -> int:
        """Write what there is, if anything, and return the number of rows."""
        if not self._parts:
            return 0
        columns, cut = self.recorded()
        rows = len(columns["rewards"])
        ending = {
            "complete": complete,
            "last_episode_cut": cut,
            "environment_steps": rows,
            "rows": rows,
            **return_summary(columns, cut),
            **origin(self.options, box(self._env.action_space), command),
            **self._facts(columns, cut),
        }
        if not self.options.next_observations:
            del columns["next_observations"]
        write_hdf5(self.options.output, columns, ending)
        return rows

    @abstractmethod
    def _facts(self, columns: dict[str, np.ndarray], cut: bool) -> dict[str, Any]:
        """Say what only this recipe has to say; None is left out of the file."""
