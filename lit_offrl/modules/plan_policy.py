"""Policies of plans: windows of states and actions are planned, followed for a while, and anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_offrl.modules.skill_policy import GoalSkillPolicy, SkillPolicy

Controller = Literal["actions", "waypoints"]
"""How a plan is followed: by the actions in it, or from state to state."""
Follow = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Maps raw observations (E, o), this and the next step of the plans (E, e), and which of these are
at their end (E,), to actions (E, a)."""
_EVER = np.iinfo(np.int64).max


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
        super().__init__(plan, self._step, execute_steps or _EVER, device, **kwargs)
        self._follow, self._history = follow, history
        self._seen = np.zeros((0, history, 0), np.float32)
        self._counts = np.zeros(0, np.int64)

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Forget plans and histories of the environments that begin an episode."""
        super().reset(mask)
        if mask is None or len(mask) != len(self._counts):
            self._counts = np.zeros(0, np.int64)
        else:
            self._counts[np.asarray(mask, bool)] = 0

    def _execute(self, observations: np.ndarray, *goals: np.ndarray) -> np.ndarray:  # type: ignore[override]
        """Keep the observations (E, o) beside the earlier ones, the oldest first, and act."""
        number = len(observations)
        if len(self._counts) != number:
            self._counts = np.zeros(number, np.int64)
            self._seen = np.zeros((number, self._history, observations.shape[1]), np.float32)
        full = self._counts == self._history
        self._seen[full] = np.roll(self._seen[full], -1, axis=1)
        self._counts += ~full
        self._seen[np.arange(number), self._counts - 1] = observations
        return super()._execute(observations, self._seen, self._counts, *goals)

    def _step(self, observations: Tensor, plans: Tensor) -> Tensor:
        done = torch.from_numpy(self._steps - 1 - self._left).to(plans.device)
        last, rows = plans.shape[1] - 1, torch.arange(len(plans), device=plans.device)
        now, following = plans[rows, done.clamp(max=last)], plans[rows, (done + 1).clamp(max=last)]
        return self._follow(observations, now, following, done >= last)


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

    def state_dict(self) -> dict[str, Tensor]:
        """The chunks under way, and for how many steps each is executed still."""
        if self._latents is None:
            return {}
        return {"chunks": self._latents, "left": torch.from_numpy(self._left.copy())}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with the chunks of ``state_dict``."""
        if state:
            self._latents = state["chunks"].to(self._device)
            self._left = state["left"].cpu().numpy().copy()


class GoalPlanPolicy(PlanPolicy, GoalSkillPolicy):
    """A ``PlanPolicy`` to a goal, which ``plan`` takes last, (N, g)."""
