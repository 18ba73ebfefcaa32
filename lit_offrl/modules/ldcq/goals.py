"""Skills chosen for a goal: who says where to go, and what acts on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.modules.ldcq.skills import SkillPolicy

Goal = Sequence[float] | Literal["environment"]
"""Where to go in evaluation: a position, or what the environment's ``info["goal"]`` says at each
reset. D4RL's own observations do not show the goal: who is told it knows more than Q-learning."""


class GoalSkillPolicy(SkillPolicy):
    """A ``SkillPolicy`` whose latents are chosen for a state and a goal.

    Args:
        choose: maps raw observations (N, o) and goals (N, g) on ``device`` to latents (N, z).
        decode: maps raw observations (E, o) and latents (E, z) to actions (E, a).
        execute_steps: steps of a latent.
        device: where both compute.
        goal_dim: g.
        goal: of all episodes, or ``environment``.

    Raises:
        ConfigError: ``execute_steps`` is below 1, or the goal is not of g numbers.
    """

    def __init__(
        self,
        choose: Callable[[Tensor, Tensor], Tensor],
        decode: Callable[[Tensor, Tensor], Tensor],
        execute_steps: int,
        device: torch.device,
        *,
        goal_dim: int,
        goal: Goal,
    ) -> None:
        def split(rows: Tensor) -> Tensor:
            return choose(rows[:, :-goal_dim], rows[:, -goal_dim:])

        def strip(rows: Tensor, latents: Tensor) -> Tensor:
            return decode(rows[:, :-goal_dim], latents)

        super().__init__(split, strip, execute_steps, device)
        self._goal_dim = goal_dim
        self._fixed: np.ndarray | None = None
        self._goals: np.ndarray | None = None
        if not isinstance(goal, str):
            self._fixed = _numbers(goal)
            if self._fixed.shape != (goal_dim,) or not np.isfinite(self._fixed).all():
                raise ConfigError(f"goal is {goal}; give {goal_dim} finite numbers.")
        elif goal != "environment":
            raise ConfigError(f"goal is '{goal}'; give {goal_dim} numbers, or environment.")

    def aim(self, goals: np.ndarray | None) -> None:
        """Take the goals (E, g) of the episodes under way; None where nobody knows them."""
        self._goals = goals

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Map raw observations (E, o) to actions (E, a), float32.

        Raises:
            EvaluationError: no goal is known, or it is of another size.
        """
        goals = self._goals if self._fixed is None else self._fixed
        if goals is None:
            raise EvaluationError(
                "This policy goes where it is told, and the environment names no goal: give one as "
                f"the policy's option 'goal', {self._goal_dim} numbers."
            )
        if goals.shape[-1] != self._goal_dim:
            raise EvaluationError(
                f"The environment's goal has {goals.shape[-1]} numbers and the policy's positions "
                f"{self._goal_dim}: train it with the goal_dims of this environment."
            )
        rows = np.asarray(observations, np.float32)
        goals = np.broadcast_to(goals, (len(rows), self._goal_dim)).astype(np.float32)
        return super().act(np.concatenate([rows, goals], axis=1))


def _numbers(goal: Sequence[float]) -> np.ndarray:
    try:
        return np.asarray(goal, np.float32)
    except (TypeError, ValueError):
        return np.empty(0, np.float32)  # of no goal's size
