"""The three ways to act by a diffusion prior: ``POLICIES``, by the class of their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_offrl.modules.ldcq.options import GoalOptions, PlanOptions, SkillOptions
from lit_offrl.modules.ldcq.planning import Planner
from lit_offrl.modules.skill_policy import GoalSkillPolicy, SkillPolicy

if TYPE_CHECKING:
    from lit_offrl.modules.ldcq.stage2 import LDCQStage2Module
    from lit_offrl.modules.ldcq.staged import StagedModule


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

    dims = stage.goal_dims
    return GoalSkillPolicy(choose, *execution(stage, how), goal_dims=dims, goal=how.goal)


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

    return GoalSkillPolicy(choose, *execution(stage, how), goal_dims=dims, goal=how.goal)


POLICIES: Mapping[type[SkillOptions], Callable[..., SkillPolicy]] = {
    SkillOptions: skill_policy,
    GoalOptions: goal_policy,
    PlanOptions: plan_policy,
}
