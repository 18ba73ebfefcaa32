"""What acts: the one face that evaluation, collection and notebooks know of a trained method."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

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
