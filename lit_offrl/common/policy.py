"""What acts: the one face that evaluation, collection and notebooks know of a trained method."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lit_offrl.common.errors import EvaluationError, reason
from lit_offrl.common.ranges import require_arguments


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
    """A ``Policy`` that is also given the goal of each episode, at its start."""

    def aim(self, goals: np.ndarray | None) -> None:
        """Take the goals (E, g) of the episodes under way, after each reset.

        None where the environment's ``info`` has no ``goal``.
        """
        ...


@runtime_checkable
class RewardPolicy(Protocol):
    """A ``Policy`` that is given the reward of each of its steps."""

    def earn(self, rewards: np.ndarray) -> None:
        """Take the rewards (E,), float32, of the step that followed ``act``.

        0 where no episode is under way.
        """
        ...


@runtime_checkable
class StatefulPolicy(Protocol):
    """A ``Policy`` whose memory a checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, as tensors by name."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember what ``state_dict`` gave."""
        ...


def named_goal(info: Mapping[str, Any]) -> np.ndarray | None:
    """Return the goal (g,), float32, that an environment's first ``info`` names, if any."""
    return np.asarray(info["goal"], np.float32) if "goal" in info else None


def begin_episodes(policy: Policy, mask: np.ndarray, goals: np.ndarray | None) -> None:
    """Begin new episodes where ``mask`` (E,) is True, towards goals (E, g) if the policy has any.

    The goals are those of all episodes under way; None where the environments name none.
    """
    policy.reset(mask)
    if isinstance(policy, GoalPolicy):
        policy.aim(goals)


class CheckedAct:
    """A policy's ``act`` that refuses observations which it could only answer with nonsense.

    Args:
        act: Maps observations (E, o), float32, to actions (E, a).
        width: Size of an observation, o.
    """

    def __init__(self, act: Callable[[np.ndarray], np.ndarray], width: int) -> None:
        self._act = act
        self._width = width

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """Map raw observations (E, o) to environment actions (E, a), float32.

        Raises:
            EvaluationError: they are no array, have another shape, or one of them is not finite.
        """
        try:
            with np.errstate(over="ignore"):  # what overflows is infinite, and refused
                rows = np.asarray(observations, np.float32)
        except (TypeError, ValueError) as error:  # ragged lists, text, a tensor on a GPU
            raise EvaluationError(
                f"policy.act takes observations as an array of shape (E, {self._width}), a row for"
                f" each of E environments: {reason(error)}"
            ) from error
        if rows.ndim != 2 or rows.shape[1] != self._width:
            single = " of one environment as observation[None]" if rows.ndim == 1 else ""
            raise EvaluationError(
                f"policy.act takes observations of shape (E, {self._width}), a row for each of E"
                f" environments, and was given {rows.shape}: give those{single}."
            )
        finite = np.isfinite(rows)
        if not finite.all():
            row, dimension = np.argwhere(~finite)[0]
            raise EvaluationError(
                f"policy.act was given {rows[row, dimension]} in dimension {dimension} of"
                f" observation {row}: give finite numbers."
            )
        return self._act(rows)


def checked(make: Callable[..., Policy]) -> Callable[..., Policy]:
    """Return a method's ``policy`` that checks its options, and ``CheckedAct`` what it acts on.

    What it makes knows the module and the options that it was made by, as ``made_by``.
    """

    @functools.wraps(make)
    def policy(module: Any, *args: Any, **options: Any) -> Policy:
        signature = inspect.signature(make)
        given = signature.bind(module, *args, **options).arguments
        require_arguments(make, given)
        found: Any = make(module, *args, **options)
        found.made_by = module, _flat(signature, given)
        if not isinstance(found.act, CheckedAct):  # as it is where a subclass calls its parent's
            found.act = CheckedAct(found.act, module.observation_dim)
        return found

    return policy


def _flat(signature: inspect.Signature, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a method but for its object, those of ``**options`` among them."""
    found: dict[str, Any] = {}
    for parameter in [*signature.parameters.values()][1:]:
        if parameter.kind == parameter.VAR_KEYWORD:
            found |= given.get(parameter.name, {})
        elif parameter.name in given:
            found[parameter.name] = given[parameter.name]
    return found
