"""Policies of skills: a latent is chosen, executed for some steps, and then chosen anew.

There are three ways to act, each with its own options: skills as the data show them
(``SkillOptions``), skills that lead to a goal (LDGC, ``GoalOptions``), and skills that a search in
the world model chooses (LDCP, ``PlanOptions``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_type_hints

import numpy as np
import torch
from torch import Tensor

from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.common.ranges import require_in
from lit_offrl.modules.ldcq.planning import Scored, Search
from lit_offrl.modules.ldcq.sampling import Against, Sampling

Goal = Sequence[float] | Literal["environment"]
"""Where to go in evaluation: a position, or what the environment's ``info["goal"]`` says at each
reset. D4RL's own observations do not show the goal, so a policy with a goal knows more than
Q-learning does."""

O = TypeVar("O", bound="SkillOptions")  # noqa: E741


# ---- options -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SkillOptions(Sampling):
    """How latents are drawn and executed.

    Args:
        execute_steps: Number of environment steps, at least 1, for which a latent is executed; the
            horizon H if None.
        sample_actions: Whether actions are drawn from the decoder, as in the paper, instead of
            being its means.
    """

    execute_steps: int | None = None
    sample_actions: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in("[1, inf)", execute_steps=self.execute_steps)


@dataclass(frozen=True)
class GoalOptions(SkillOptions):
    """How a policy goes to a goal, for a prior that was trained with goals (LDGC).

    Args:
        goal: Position to go to, one number for each of ``goal_dims``; or ``environment`` for what
            the environment's ``info["goal"]`` says at each reset.
        against: What the unconditional model u of the guidance sees: ``nothing``, or the ``state``
            without the goal.
    """

    goal: Goal = "environment"
    against: Against = "nothing"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.against not in ("nothing", "state"):
            raise ConfigError(f"against is '{self.against}'; choose nothing or state.")


@dataclass(frozen=True)
class PlanOptions(SkillOptions):
    """How a policy plans (LDCP); the prior is then used without a goal.

    Args:
        goal: As in ``GoalOptions``.
        num_latents: Number n of latents tried in each state of a plan, at least 1.
        depth: Number d of skills in a plan, at least 1.
        search: Which skills are continued: ``exhaustive`` or ``greedy``, see ``Planner``.
        scored: Which state's distance to the goal counts: that of the ``last`` or of the
            ``nearest`` one, see ``Planner``.
    """

    goal: Goal = "environment"
    num_latents: int = 50
    depth: int = 2
    search: Search = "exhaustive"
    scored: Scored = "last"


WAYS: Mapping[type[SkillOptions], str] = {
    PlanOptions: "a plan",
    GoalOptions: "a prior that is given a goal",
    SkillOptions: "any policy",
}
"""The ways to act, in words."""


def option_types() -> dict[str, Any]:
    """Return the types of the options of all three ways by the option's name."""
    return {name: hint for way in WAYS for name, hint in get_type_hints(way).items()}


def options_for(way: type[O], given: Mapping[str, Any]) -> O:
    """Return the options of one way to act.

    Args:
        way: The class of its options.
        given: Options by name; those that only other ways have must be at their defaults.

    Raises:
        ConfigError: An option is out of its range, or belongs to another way.
    """
    chosen = dict(given)
    for name in given.keys() - {field.name for field in fields(way)}:
        owners = [kind for kind in WAYS if hasattr(kind, name)]
        if not owners:
            continue  # an unknown one, which the call below refuses
        value = chosen.pop(name)
        if value != getattr(owners[0], name):
            needs = " or ".join(WAYS[kind] for kind in owners)
            plans = hasattr(PlanOptions, name)
            advice = ", or set plan to true" if plans else "; a plan uses the prior without a goal"
            raise ConfigError(f"{name} is {value!r}, which is for {needs}: leave it out{advice}.")
    return way(**chosen)


# ---- policies ----------------------------------------------------------------------------------


class SkillPolicy:
    """Executes one latent per environment for ``execute_steps`` steps, then chooses the next.

    Environments begin and end their episodes at different times: all that need a latent at a step
    get theirs by one call of ``choose``, and the others go on with what they have.

    Args:
        choose: Maps raw observations (N, o) on ``device`` to latents (N, z).
        decode: Maps raw observations (E, o) and latents (E, z) to actions (E, a).
        execute_steps: Number of steps for which a latent is executed, at least 1.
        device: Where both compute.

    Raises:
        ConfigError: ``execute_steps`` is below 1.
    """

    def __init__(
        self,
        choose: Callable[..., Tensor],
        decode: Callable[[Tensor, Tensor], Tensor],
        execute_steps: int,
        device: torch.device,
    ) -> None:
        require_in("[1, inf)", execute_steps=execute_steps)
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
        ConfigError: ``execute_steps`` is below 1, or the goal is not of g numbers.
    """

    def __init__(self, *args: Any, goal_dim: int, goal: Goal) -> None:
        super().__init__(*args)
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


def _numbers(goal: Sequence[float]) -> np.ndarray:
    try:
        return np.asarray(goal, np.float32)
    except (TypeError, ValueError):
        return np.empty(0, np.float32)  # of no goal's size
