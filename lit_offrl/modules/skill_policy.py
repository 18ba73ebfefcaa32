"""Policies of skills: a latent is chosen, executed for some steps, and then chosen anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_offrl.common.errors import ConfigError, EvaluationError

Goal = Sequence[float] | Literal["environment"]
"""Where to go in evaluation: a position, or what the environment's ``info["goal"]`` says at each
reset. D4RL's own observations do not show the goal, so a policy with a goal knows more than
Q-learning does."""


class SkillPolicy:
    """Executes one latent per environment for ``execute_steps`` steps, then chooses the next.

    Environments begin and end their episodes at different times: all that need a latent at a step
    get theirs by one call of ``choose``, and the others go on with what they have.

    Args:
        choose: Maps raw observations (N, o) on ``device`` to latents (N, z).
        decode: Maps raw observations (E, o) and latents (E, z) to actions (E, a).
        execute_steps: Number of steps for which a latent is executed, at least 1.
        device: Where both compute.
    """

    def __init__(
        self,
        choose: Callable[..., Tensor],
        decode: Callable[[Tensor, Tensor], Tensor],
        execute_steps: int,
        device: torch.device,
    ) -> None:
        self._choose, self._decode, self._steps = choose, decode, execute_steps
        self._device = device
        self._latents: Tensor | None = None
        self._left = np.zeros(0, np.int64)  # steps for which each environment's latent still holds

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Forget the skills of the environments that begin an episode."""
        if mask is None or len(self._left) != len(mask):
            self._latents = None
        else:
            self._left[np.asarray(mask, bool)] = 0

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Map raw observations (E, o) to actions (E, a), float32."""
        return self._execute(observations)

    @torch.no_grad()
    def _execute(self, *conditions: np.ndarray) -> np.ndarray:
        """Act in observations (E, o); ``choose`` sees them and whatever else comes with them."""
        rows = [torch.as_tensor(c, dtype=torch.float32).to(self._device) for c in conditions]
        number = len(rows[0])
        if self._latents is None or len(self._latents) != number:
            self._latents = self._choose(*rows)
            self._left = np.full(number, self._steps)
        elif not self._left.all():
            due = np.flatnonzero(self._left == 0)
            index = torch.from_numpy(due).to(self._device)
            chosen = self._choose(*(part[index] for part in rows))
            self._latents = self._latents.index_copy(0, index, chosen)
            self._left[due] = self._steps
        self._left -= 1
        return self._decode(rows[0], self._latents).float().cpu().numpy()


class GoalSkillPolicy(SkillPolicy):
    """A ``SkillPolicy`` whose latents are chosen for a state and a goal.

    Args:
        *args: Those of ``SkillPolicy``; ``choose`` maps raw observations (N, o) and goals (N, g) to
            latents (N, z).
        goal_dims: Dimensions (g,) of an observation that make a position, of which a goal is one.
        goal: Goal of all episodes, or ``environment``.

    Raises:
        ConfigError: The goal is not of g numbers.
    """

    def __init__(self, *args: Any, goal_dims: Sequence[int], goal: Goal) -> None:
        super().__init__(*args)
        self._goal_dims = list(goal_dims)
        goal_dim = self._goal_dim = len(self._goal_dims)
        self._fixed: np.ndarray | None = None
        self._goals: np.ndarray | None = None
        if not isinstance(goal, str):
            try:
                self._fixed = np.asarray(goal, np.float32)
            except (TypeError, ValueError):
                self._fixed = np.empty(0, np.float32)  # of no goal's size
            if self._fixed.shape != (goal_dim,) or not np.isfinite(self._fixed).all():
                raise ConfigError(f"goal is {goal}; give {goal_dim} finite numbers.")
        elif goal != "environment":
            raise ConfigError(f"goal is '{goal}'; give {goal_dim} numbers, or environment.")

    def aim(self, goals: np.ndarray | None) -> None:
        """Take the goals (E, g), or observations (E, o) there; None where they are unknown."""
        self._goals = goals

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Map raw observations (E, o) to actions (E, a), float32.

        Raises:
            EvaluationError: No goal is known, or it is of another size.
        """
        goals = self._goals if self._fixed is None else self._fixed
        if goals is None:
            raise EvaluationError(
                "This policy needs a goal, and the environment names no goal: give one as the "
                f"policy's option 'goal', {self._goal_dim} numbers."
            )
        if goals.shape[-1] not in (self._goal_dim, observations.shape[-1]):
            raise EvaluationError(
                f"The environment's goal has {goals.shape[-1]} numbers and the policy's positions "
                f"{self._goal_dim}: train it with the goal_dims of this environment."
            )
        if goals.shape[-1] != self._goal_dim:
            goals = goals[..., self._goal_dims]  # a whole observation, as OGBench's are
        goals = np.broadcast_to(goals, (len(observations), self._goal_dim)).astype(np.float32)
        return self._execute(observations, goals)
