"""LDCQ's second stage: a diffusion prior of the first stage's latents, with or without a goal.

Source: "Reasoning with latent diffusion in offline reinforcement learning", sections 4.1 and 4.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_type_hints

import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.datasets.views import SnippetBatch, Snippets
from lit_offrl.modules.ldcq.acting import POLICIES
from lit_offrl.modules.ldcq.options import (
    WAYS,
    Against,
    GoalOptions,
    PlanOptions,
    Sampling,
    SkillOptions,
    options_for,
)
from lit_offrl.modules.ldcq.prior import LatentPrior
from lit_offrl.modules.ldcq.stage1 import LDCQStage1Module
from lit_offrl.modules.ldcq.staged import StagedModule
from lit_offrl.modules.ldcq.tables import spread_batches
from lit_offrl.modules.skill_policy import GoalSkillPolicy, SkillPolicy

_FITTED_ON = 8192  # snippets whose latents give the mean and the standard deviation


class LDCQStage2Module(StagedModule):
    """Learns p(z | s), the skills that the data show from a state, or p(z | s, goal) for LDGC.

    Its policy imitates the data by skills, goes to a goal (LDGC), or plans with stage 1's world
    model (LDCP); stage 3 chooses among its skills by Q.

    Departures from the paper: dropped conditions carry a flag; with goals, training also drops the
    goal alone, so that guidance may compare with the same state without a goal.

    Departures from the authors' code, which follow the paper's text: each block takes state and
    time beside its input, and the denoiser has 456 to 470 thousand weights. In the authors' code,
    time scales and shifts, and layers between the blocks change the width; their denoiser has 716
    to 730 thousand weights. On latents of AntMaze's snippets of 10 steps, the loss on held-out runs
    is 0.166 with this denoiser and 0.159 with theirs after 3,000 steps (± 0.002, one training), and
    0.200 and 0.199 after 1,000 steps. This denoiser takes half the processor time of theirs.

    Args:
        stage1: Checkpoint of an LDCQStage1Module: a path or an MLflow run.
        goals: Goals in training (LDGC): ``none``; ``column`` for the goals in the data, which
            D4RL's mazes have; or ``hindsight`` for a later state of the same episode, which works
            with any data. If the data have goals, prefer them: on AntMaze the policy reached the
            goal in 4 of 20 episodes with them and in 1 with hindsight, for the same budget.
        goal_dims: Dimensions of an observation that make up a position, and thus a goal; by default
            the first two, or the only one.
        schedule: Noise schedule of the diffusion.
        diffusion_steps: Number T of diffusion steps, at least 1 (paper: 200 in the text, 500 in
            Table 6).
        min_snr: Largest weight γ of the loss, above 0: a diffusion time t has the weight
            min(SNR(t), γ).
        drop_probability: Probability in [0, 0.5] with which training drops the state and the goal;
            the goal alone is dropped with the same probability.
        widths: Widths of the layers between the denoiser's blocks; they must read the same
            backwards.
        width: Width of the denoiser's encoders of time and condition, at least 1.
        ema_rate: Rate in (0, 1] at which the averaged denoiser, which draws latents, follows the
            trained one in each step.
        standardize: Whether latents are scaled to mean 0 and variance 1 before they are diffused.
        learning_rate: Adam's learning rate, at least 0.
        **kwargs: Options of the later stages, see ``StagedModule``.

    Raises:
        ConfigError: The first stage cannot be loaded or does not fit, or a number is out of its
            range.
    """

    eager_because: str | None = None

    def __init__(
        self,
        *args: Any,
        stage1: str | dict[str, Any],
        goals: Literal["none", "column", "hindsight"] = "none",
        goal_dims: Sequence[int] | None = None,
        schedule: Literal["linear", "cosine", "vp"] = "linear",
        diffusion_steps: Annotated[int, "[1, inf)"] = 200,
        min_snr: Annotated[float, "(0, inf)"] = 5.0,
        drop_probability: Annotated[float, "[0, 0.5]"] = 0.1,
        widths: Sequence[int] = (128, 32, 16, 8, 16, 32, 128),
        width: Annotated[int, "[1, inf)"] = 256,
        ema_rate: Annotated[float, "(0, 1]"] = 0.005,
        standardize: bool = True,
        learning_rate: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, learning_rate=learning_rate, **kwargs)
        size = self.observation_dim
        dims = tuple(range(min(2, size)) if goal_dims is None else goal_dims)
        if not dims or not all(0 <= dim < size for dim in dims):
            raise ConfigError(
                f"goal_dims is {list(dims)}; name dimensions of the observation, 0 to {size - 1}."
            )
        self.goals, self.goal_dims = goals, dims
        self.drop_probability, self.standardize = drop_probability, standardize
        self.stage1 = self.take("stage1", stage1, LDCQStage1Module)
        if goals != "none":
            self.require_positions("goals")
            self.eager_because = "goals are picked out of observations by lists of numbers"
        self.prior = LatentPrior(
            self.stage1.state_dim,
            self.stage1.latent_dim,
            0 if goals == "none" else len(dims),
            schedule=schedule,
            diffusion_steps=diffusion_steps,
            min_snr=min_snr,
            widths=widths,
            width=width,
            ema_rate=ema_rate,
        )

    # ---- training ------------------------------------------------------------------------------

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Columns without which it cannot be trained; rewards are not among them."""
        return ("actions", "goals") if self.goals == "column" else ("actions",)

    missing_columns_advice = (
        "Choose a dataset that has it, or for goals set model.init_args.goals to hindsight."
    )

    def view(self) -> Snippets:
        """Snippets of stage 1's H steps."""
        return Snippets(
            self.stage1.horizon,
            partial=self.stage1.partial,
            every=self.snippet_every,
            goals="hindsight" if self.goals == "hindsight" else "column",
        )

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The denoiser's parameters."""
        return {"prior": list(self.prior.denoiser.parameters())}

    def on_train_start(self) -> None:
        """Take the latents' mean and standard deviation from the training data.

        Snippets may have to be encoded for it, which a signal may stop.
        """
        if not self.standardize or self.prior.fitted:
            return
        parts = [self.moments(batch) for batch in spread_batches(self.trainer, _FITTED_ON)]
        mean, std = (torch.cat(columns) for columns in zip(*parts, strict=True))
        variance = mean.var(0, unbiased=False)
        if self.posterior_kind == "sample":
            variance = variance + std.square().mean(0)
        self.prior.fit(mean.mean(0), variance.sqrt())

    def losses(self, batch: SnippetBatch) -> dict[str, Tensor]:
        """``prior``: the weighted error of z_0 (Eq. 5)."""
        self.first.require_snippets(batch, self)
        states = self.stage1.normalize(batch.observations[:, 0])
        goals = None if self.goals == "none" else self.positions(self._goals_of(batch))
        latents = self.latents_of(batch)
        loss = self.prior.loss(states, latents, goals, self.drop_probability, self.noise)
        return {"prior": loss.mean()}

    def after_step(self) -> None:
        """Move the denoiser's average."""
        self.prior.update_ema()

    def _goals_of(self, batch: SnippetBatch) -> Tensor:
        """Return raw goals (B, g) of a batch."""
        if batch.goals is None:
            raise ConfigError(
                f"goals is '{self.goals}', but the view gives none: leave data.init_args.view to "
                "the model."
            )
        if self.goals == "hindsight":
            return batch.goals[:, self.goal_dims]
        if batch.goals.shape[1] != len(self.goal_dims):
            raise ConfigError(
                f"goal_dims names {len(self.goal_dims)} dimensions, and the data's goals have "
                f"{batch.goals.shape[1]}: name those dimensions of an observation."
            )
        return batch.goals

    def require_positions(self, what: str) -> None:
        """Refuse what needs positions where observations are pictures.

        Raises:
            ConfigError: They are.
        """
        if self.stage1.images is not None:
            raise ConfigError(f"{what} needs positions, but the observations are pictures.")

    # ---- what acting and later stages use ------------------------------------------------------

    def positions(self, raw: Tensor) -> Tensor:
        """Return raw positions (…, g) normalised as in an observation."""
        whole = self.normalizer.low.repeat(*raw.shape[:-1], 1)
        whole[..., self.goal_dims] = raw
        return self.stage1.normalize(whole)[..., self.goal_dims]

    def require(self, how: Sampling, *, without_goal: bool) -> None:
        """Refuse to draw from the prior in a way that its training does not allow for.

        Args:
            how: The sampler and the guidance.
            without_goal: Whether no goal is given, even if the prior was trained with goals.

        Raises:
            ConfigError: Its training does not allow for that.
        """
        how.make().steps(self.prior.schedule)  # refuses more steps than T
        if self.drop_probability > 0:
            return
        if how.guidance != 1:
            raise ConfigError(
                f"guidance is {how.guidance}, and this prior was trained with drop_probability 0: "
                "it has no unconditional model. Train it with more, or leave guidance at 1."
            )
        if without_goal and self.goals != "none":
            raise ConfigError(
                "this prior was trained with drop_probability 0, always with a goal, so it cannot "
                "be used without one: train it with more, or with goals 'none'."
            )

    def sample(
        self,
        observations: Tensor,
        number: int,
        how: Sampling | None = None,
        *,
        goals: Tensor | None = None,
        against: Against = "nothing",
        noise: ShardedGenerator | None = None,
    ) -> Tensor:
        """Draw latents (S, number, z) for raw observations (S, o).

        Args:
            observations: Raw observations.
            number: Number n of latents of each state.
            how: The sampler and the guidance; 10 steps of DPM-Solver++ if None.
            goals: Raw goals (S, g), for a prior that was trained with goals; dropped if None.
            against: What the unconditional model of the guidance sees.
            noise: Generator of the random numbers; the global one if None.
        """
        states = self.stage1.normalize(observations)
        aims = None if goals is None else self.positions(goals)
        how = how or Sampling()
        return self.prior.sample(states, number, how, goals=aims, against=against, noise=noise)

    # ---- acting --------------------------------------------------------------------------------

    def policy(self, plan: bool = False, **options: Any) -> SkillPolicy:
        """Act by latents of the prior: LDGC if it was trained with goals, LDCP, or imitation.

        Args:
            plan: Whether to plan (LDCP): to choose the latent that leads nearest to the goal in the
                world model.
            **options: ``PlanOptions`` of a plan, else ``GoalOptions`` of a prior that was trained
                with goals, and ``SkillOptions`` of any other.

        Raises:
            ConfigError: An option is out of its range, or is not one of this way to act.
        """
        way = PlanOptions if plan else SkillOptions if self.goals == "none" else GoalOptions
        how = options_for(way, options)
        self.require(how, without_goal=plan)
        return POLICIES[way](self, how)

    @classmethod
    def policy_options(cls) -> dict[str, Any]:
        """Types of the options of ``policy`` by name: those of all three ways to act."""
        types = {name: hint for way in WAYS for name, hint in get_type_hints(way).items()}
        return super().policy_options() | types

    def predict_step(self, batch: SnippetBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return actions (B, a) in the first states of snippets, towards their own goals."""
        if self.goals == "none":
            return super().predict_step(batch, batch_idx)
        observations = batch.observations[:, 0].cpu()
        policy = self.policy()
        assert isinstance(policy, GoalSkillPolicy)  # trained with goals
        policy.aim(self._goals_of(batch).cpu().numpy())
        acted = policy.act(observations.numpy())
        return {"observations": observations, "actions": torch.from_numpy(acted)}
