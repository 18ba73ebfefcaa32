"""Policies of skills: a latent is chosen, executed for some steps, and then chosen anew.

``POLICIES`` has the three of a diffusion prior, by the class of their options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.modules.ldcq.options import Goal, GoalOptions, PlanOptions, SkillOptions
from lit_offrl.modules.ldcq.planning import Planner

if TYPE_CHECKING:
    from lit_offrl.modules.ldcq.stage2 import LDCQStage2Module
    from lit_offrl.modules.ldcq.staged import StagedModule


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
        goal_dim: Size g of a goal.
        goal: Goal of all episodes, or ``environment``.

    Raises:
        ConfigError: The goal is not of g numbers.
    """

    def __init__(self, *args: Any, goal_dim: int, goal: Goal) -> None:
        super().__init__(*args)
        self._goal_dim = goal_dim
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
        """Take the goals (E, g) of the current episodes; None where they are unknown."""
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
        if goals.shape[-1] != self._goal_dim:
            raise EvaluationError(
                f"The environment's goal has {goals.shape[-1]} numbers and the policy's positions "
                f"{self._goal_dim}: train it with the goal_dims of this environment."
            )
        goals = np.broadcast_to(goals, (len(observations), self._goal_dim)).astype(np.float32)
        return self._execute(observations, goals)


# ---- the three ways to act by a diffusion prior ------------------------------------------------


def execution(stage: StagedModule, how: SkillOptions) -> tuple[Any, int, torch.device]:
    """Return decoder, steps and device, of which a ``SkillPolicy`` of a stage is made."""
    decode = partial(stage.first.decode, sample=how.sample_actions)
    return decode, how.execute_steps or stage.first.horizon, stage.device


def skill_policy(stage: LDCQStage2Module, how: SkillOptions) -> SkillPolicy:
    """Imitate the data by skills."""
    return SkillPolicy(lambda rows: stage.sample(rows, 1, how).squeeze(1), *execution(stage, how))


def goal_policy(stage: LDCQStage2Module, how: GoalOptions) -> SkillPolicy:
    """Go to a goal by skills that lead there (LDGC)."""

    def choose(rows: Tensor, goals: Tensor) -> Tensor:
        return stage.sample(rows, 1, how, goals=goals, against=how.against).squeeze(1)

    dims = len(stage.goal_dims)
    return GoalSkillPolicy(choose, *execution(stage, how), goal_dim=dims, goal=how.goal)


def plan_policy(stage: LDCQStage2Module, how: PlanOptions) -> SkillPolicy:
    """Go to a goal by the skills that come nearest to it in the world model (LDCP).

    Raises:
        ConfigError: Observations are pictures, which have no positions.
    """
    stage.require_positions("plan")
    first, dims = stage.stage1, stage.goal_dims
    planner = Planner(
        lambda states, number: stage.prior.sample(states, number, how),
        first.world,
        lambda states: first.denormalize(states)[..., dims],
        how,
    )

    def choose(rows: Tensor, goals: Tensor) -> Tensor:
        return planner.choose(first.normalize(rows), goals)[0]

    return GoalSkillPolicy(choose, *execution(stage, how), goal_dim=len(dims), goal=how.goal)


POLICIES: Mapping[type[SkillOptions], Callable[..., SkillPolicy]] = {
    SkillOptions: skill_policy,
    GoalOptions: goal_policy,
    PlanOptions: plan_policy,
}
