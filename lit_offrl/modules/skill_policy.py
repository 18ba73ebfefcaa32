"""Policies of skills: a latent is chosen, executed for some steps, and then chosen anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.modules.policies import State, StepPolicy, renewed

Goal = Sequence[float] | Literal["environment"]
"""Where to go in evaluation: a position, or what the environment's ``info["goal"]`` says at each
reset. D4RL's own observations do not show the goal, so a policy with a goal knows more than
Q-learning does."""


class SkillPolicy(StepPolicy):
    """Executes one latent per environment for ``execute_steps`` steps, then chooses the next.

    Environments begin and end their episodes at different times: all that need a latent at a step
    get theirs by one call of ``choose``, and the others go on with what they have.

    Its state is the ``latents`` (E, z) and their ``age`` (E,), int64: the number of steps for which
    each has been executed, 0 where there is none yet.

    Args:
        choose: Maps raw observations (N, o) on ``device`` to latents (N, z).
        decode: Maps raw observations (E, o) and latents (E, z) to actions (E, a).
        execute_steps: Number of steps for which a latent is executed, at least 1; None never
            chooses again.
        device: Where both compute.
    """

    def __init__(
        self,
        choose: Callable[..., Tensor],
        decode: Callable[[Tensor, Tensor], Tensor],
        execute_steps: int | None,
        device: torch.device,
    ) -> None:
        super().__init__(device)
        self._choose, self._decode, self._steps = choose, decode, execute_steps

    def step(self, observations: Tensor, state: State, **beside: Tensor) -> tuple[Tensor, State]:
        """Return actions (E, a) and the next state; ``choose`` sees what is beside, too."""
        latents, age = self._executed(state, observations, *self._told(observations, **beside))
        return self._decode(observations, latents), {"latents": latents, "age": age}

    def _told(self, observations: Tensor, **beside: Tensor) -> tuple[Tensor, ...]:
        """Return what ``choose`` takes after the observations."""
        return ()

    def _executed(self, state: State, *conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents of this step and their age after it."""
        if "latents" not in state:
            latents = self._choose(*conditions)
            return latents, latents.new_ones(latents.shape[0], dtype=torch.int64)
        age = state["age"]
        due = age == 0 if self._steps is None else (age == 0) | (age == self._steps)
        latents = renewed(due, self._choose, conditions, state["latents"])
        return latents, age.masked_fill(due, 0) + 1


class GoalSkillPolicy(SkillPolicy):
    """A ``SkillPolicy`` whose latents are chosen for a state and a goal.

    Args:
        *args: Those of ``SkillPolicy``; ``choose`` maps raw observations (N, o) and goals (N, g) to
            latents (N, z).
        goal_dims: Dimensions (g,) of an observation that make a position, of which a goal is one.
        goal: Goal of all episodes, or ``environment``.

    Raises:
        ConfigError: The goal does not have g numbers.
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

    def beside_sizes(self) -> dict[str, int]:
        """Goals (E, g), unless they are the same for all episodes."""
        return {"goals": self._goal_dim} if self._fixed is None else {}

    def _told(self, observations: Tensor, **beside: Tensor) -> tuple[Tensor, ...]:
        """Return the goals (E, g)."""
        if self._fixed is None:
            return (beside["goals"],)
        fixed = torch.from_numpy(self._fixed).to(observations.device)
        return (fixed.expand(observations.shape[0], -1),)

    def _beside(self, observations: np.ndarray) -> dict[str, Tensor]:
        """Return the goals.

        Raises:
            EvaluationError: No goal is known, or it has another size.
        """
        if self._fixed is not None:
            return {}
        goals = self._goals
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
        return {"goals": torch.from_numpy(goals).to(self._device)}
