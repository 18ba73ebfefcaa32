"""What acts: the one face that evaluation, collection and notebooks know of a trained method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Policy(Protocol):
    """Acts for a whole vector of E environments on raw observations.

    A policy holds what must last between steps (a history, a skill under execution); ``reset``
    forgets it for the environments that begin an episode.
    """

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Begin new episodes where ``mask`` (E,) is True, everywhere when it is None."""
        ...

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Map raw observations (E, o) to environment actions (E, a), float32."""
        ...


@runtime_checkable
class GoalPolicy(Protocol):
    """A ``Policy`` that is told where to go, whatever the observations show."""

    def aim(self, goals: np.ndarray | None) -> None:
        """Take the goals (E, g) of the episodes under way, after each reset.

        None where the environment's ``info`` has no ``goal``.
        """
        ...


def named_goal(info: Mapping[str, Any]) -> np.ndarray | None:
    """Return the goal (g,), float32, that an environment's first ``info`` names, if any."""
    return np.asarray(info["goal"], np.float32) if "goal" in info else None


def begin_episodes(policy: Policy, mask: np.ndarray, goals: np.ndarray | None) -> None:
    """Begin new episodes where ``mask`` (E,) is True, towards goals (E, g) if the policy has any.

    Args:
        policy: what acts.
        mask: which environments begin an episode.
        goals: of all episodes under way; None where the environments name none.
    """
    policy.reset(mask)
    if isinstance(policy, GoalPolicy):
        policy.aim(goals)
