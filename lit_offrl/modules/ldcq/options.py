"""How latents of the diffusion prior are drawn, and how policies act by them.

There are three ways to act, each with its own options: skills as the data show them
(``SkillOptions``), skills that lead to a goal (LDGC, ``GoalOptions``), and skills that a search in
the world model chooses (LDCP, ``PlanOptions``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, TypeVar

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.ranges import require_fields
from lit_offrl.diffusion import Sampler, Variance, make_sampler
from lit_offrl.modules.skill_policy import Goal

SamplerName = Literal["ddpm", "ddim", "dpm++"]
Against = Literal["nothing", "state"]
"""What the unconditional model of classifier-free guidance sees: neither state nor goal, or the
state without the goal, which only sharpens where the goal leads."""

O = TypeVar("O", bound="SkillOptions")  # noqa: E741
_MOST_PLANS = 10_000_000  # plans that one decision of one environment may try


@dataclass(frozen=True)
class Sampling:
    """How latents are drawn.

    Args:
        sampler: Algorithm that draws latents: ``ddpm`` (the paper's, with all T steps and 10 extra
            ones), ``ddim`` or ``dpm++``.
        sampling_steps: Number of the sampler's steps, 1 to T, or ``null`` for all T.
        extra_steps: Number of further steps at t = 1, as in Diffusion-X (appendix E); at least 0.
        guidance: Weight w of classifier-free guidance, u + w (c − u) for the conditional model c
            and the unconditional one u. 1 is c alone, and saves half of the network's evaluations.
        variance: Variance of the noise in a step of ``ddpm``: ``beta`` (the authors' code) or
            ``posterior``. ``ddim`` and ``dpm++`` add no noise.

    Raises:
        ConfigError: An option is out of its range.
    """

    sampler: SamplerName = "dpm++"
    sampling_steps: Annotated[int | None, "[1, inf)"] = 10
    extra_steps: Annotated[int, "[0, inf)"] = 0
    guidance: Annotated[float, "(-inf, inf)"] = 1.0
    variance: Variance = "beta"

    def __post_init__(self) -> None:
        require_fields(self)

    def make(self) -> Sampler:
        """Return the sampler."""
        steps, extra = self.sampling_steps, self.extra_steps
        return make_sampler(
            self.sampler, variance=self.variance, num_steps=steps, extra_steps=extra
        )

    def named(self) -> dict[str, Any]:
        """Return what samples depend on, as the names of stored ones have it."""
        named = asdict(self)
        # names outlive versions of this library, and older ones knew no other variance
        if self.sampler != "ddpm" or self.variance == "beta":
            del named["variance"]
        return named


@dataclass(frozen=True)
class SkillOptions(Sampling):
    """How latents are drawn and executed.

    Args:
        execute_steps: Number of environment steps, at least 1, for which a latent is executed; the
            horizon H by default.
        sample_actions: Whether actions are drawn from the decoder, as in the paper; otherwise its
            means are used.
    """

    execute_steps: Annotated[int | None, "[1, inf)"] = None
    sample_actions: bool = False


@dataclass(frozen=True)
class GoalOptions(SkillOptions):
    """How a policy goes to a goal, for a prior that was trained with goals (LDGC).

    Args:
        goal: Position to go to, one number for each of ``goal_dims``; or ``environment`` for the
            ``info["goal"]`` that the environment gives at each reset.
        against: What the unconditional model u of the guidance sees: ``nothing``, or the ``state``
            without the goal.
    """

    goal: Goal = "environment"
    against: Against = "nothing"


@dataclass(frozen=True)
class PlanOptions(SkillOptions):
    """How a policy plans (LDCP); the prior is then used without a goal.

    Args:
        goal: Position to go to, one number for each of ``goal_dims``; or ``environment`` for the
            ``info["goal"]`` that the environment gives at each reset.
        num_latents: Number n of latents tried in each state of a plan, at least 1.
        depth: Number d of skills in a plan, at least 1.
        search: From which states a plan is continued: from all of them (``exhaustive``), or for
            each first latent only from the state that is nearest to the goal (``greedy``).
        scored: Whose distance to the goal counts: that of the ``last`` state of d skills (paper),
            or of the ``nearest`` one, so that a goal less than d skills away is not overshot.
    """

    goal: Goal = "environment"
    num_latents: Annotated[int, "[1, inf)"] = 50
    depth: Annotated[int, "[1, inf)"] = 2
    search: Literal["exhaustive", "greedy"] = "exhaustive"
    scored: Literal["last", "nearest"] = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        number, depth = self.num_latents, self.depth
        if self.search == "exhaustive" and number**depth > _MOST_PLANS:
            raise ConfigError(
                f"{number} latents at depth {depth} are {number**depth:,} ends a decision; take "
                f"fewer, or search greedy, which tries {number + number**2 * (depth - 1):,}."
            )


WAYS: Mapping[type[SkillOptions], str] = {
    PlanOptions: "a plan",
    GoalOptions: "a prior that is given a goal",
    SkillOptions: "any policy",
}
"""The ways to act, in words."""


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
