"""Policies of plans: windows of states and actions are planned, followed for a while, and anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lit_offrl.modules.policies import State
from lit_offrl.modules.skill_policy import GoalSkillPolicy, SkillPolicy

Controller = Literal["actions", "waypoints"]
"""How a plan is followed: by the actions in it, or from state to state."""
Follow = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Maps raw observations (E, o), this and the next step of the plans (E, e), and which of these are
at their end (E,), to actions (E, a)."""


class PlanPolicy(SkillPolicy):
    """Follows a plan for some steps, then plans again; past its last step it stays there.

    Args:
        plan: Maps raw observations (N, o), those seen last (N, C, o) and how many of them there are
            (N,) to plans (N, H', e), whose first step is the current one.
        follow: How a step of a plan becomes an action.
        execute_steps: Number of steps for which a plan is followed; None never plans again.
        device: Where both compute.
        history: Number C of observations, at least 1, the current one among them, for the plan.
    """

    def __init__(
        self,
        plan: Callable[..., Tensor],
        follow: Follow,
        execute_steps: int | None,
        device: torch.device,
        *,
        history: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(plan, _plans_are_followed, execute_steps, device, **kwargs)
        self._follow, self._history = follow, history

    def step(self, observations: Tensor, state: State, **beside: Tensor) -> tuple[Tensor, State]:
        """Append the observations (E, o) to the earlier ones, the oldest first, and act."""
        kept = self._remembered(observations, state)
        told = self._told(observations, **beside)
        plans, age = self._executed(state, observations, *kept.values(), *told)
        done, last = age - 1, plans.shape[1] - 1
        rows = torch.arange(plans.shape[0], device=plans.device)
        now, following = plans[rows, done.clamp(max=last)], plans[rows, age.clamp(max=last)]
        actions = self._follow(observations, now, following, done >= last)
        following_state = {"latents": plans, "age": age}
        return actions, following_state | (kept if self._history > 1 else {})

    def _remembered(self, observations: Tensor, state: State) -> State:
        """Return the observations ``seen`` last (E, C, o) and their ``counts`` (E,), int64."""
        rows, most = observations.shape[0], self._history
        if most == 1:
            ones = observations.new_ones(rows, dtype=torch.int64)
            return {"seen": observations[:, None], "counts": ones}
        if "seen" in state:
            seen, counts = state["seen"], state["counts"]
        else:
            seen = observations.new_zeros(rows, most, observations.shape[1])
            counts = observations.new_zeros(rows, dtype=torch.int64)
        seen = torch.where((counts == most)[:, None, None], seen.roll(-1, dims=1), seen)
        counts = (counts + 1).clamp(max=most)
        now = torch.arange(most, device=counts.device) == counts[:, None] - 1
        return {"seen": torch.where(now[..., None], observations[:, None], seen), "counts": counts}


def _plans_are_followed(observations: Tensor, plans: Tensor) -> Tensor:
    raise NotImplementedError("plans are followed step by step")


class ChunkPolicy(PlanPolicy):
    """Executes a chunk of actions, or the first of them, then chooses the next chunk.

    Args:
        act: Maps raw observations (N, o) on ``device`` to chunks (N, h · a).
        chunk: Number h of a chunk's actions.
        execute_steps: How many of them are executed, 1 to h.
        device: Where ``act`` computes.
    """

    def __init__(
        self,
        act: Callable[[Tensor], Tensor],
        chunk: int,
        execute_steps: int,
        device: torch.device,
    ) -> None:
        super().__init__(
            lambda rows, *_: act(rows).unflatten(1, (chunk, -1)),
            lambda rows, action, *_: action,
            execute_steps,
            device,
        )
        self._execute_steps = execute_steps

    def state_dict(self) -> dict[str, Tensor]:
        """The current chunks, and the number of steps for which each is still executed."""
        if not self._state:
            return {}
        age = self._state["age"]
        left = (self._execute_steps - age).masked_fill(age == 0, 0)
        return {"chunks": self._state["latents"], "left": left.cpu()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with the chunks of ``state_dict``."""
        if state:
            age = (self._execute_steps - state["left"]).to(self._device)
            self._state = {"latents": state["chunks"].to(self._device), "age": age}


class GoalPlanPolicy(PlanPolicy, GoalSkillPolicy):
    """A ``PlanPolicy`` to a goal, which ``plan`` takes last, (N, g)."""
