"""LDCQ's third stage: Q-learning over latents that a prior of the data proposes.

Source: "Reasoning with latent diffusion in offline reinforcement learning", section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal, get_type_hints

import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator, draw_normal
from lit_offrl.datasets.priorities import Linear, Priorities
from lit_offrl.datasets.views import SnippetBatch, Snippets
from lit_offrl.diffusion import Variance
from lit_offrl.modules.ldcq.acting import execution
from lit_offrl.modules.ldcq.options import SamplerName, Sampling, SkillOptions
from lit_offrl.modules.ldcq.stage1 import LDCQStage1Module
from lit_offrl.modules.ldcq.stage2 import LDCQStage2Module
from lit_offrl.modules.ldcq.staged import StagedModule
from lit_offrl.modules.ldcq.tables import Tables
from lit_offrl.modules.skill_policy import SkillPolicy
from lit_offrl.nets import LatentCritic, frozen_copy, polyak_update_

_LEAST_PRIORITY = 1e-6  # so that a snippet whose error is 0 may be drawn again


class LDCQStage3Module(StagedModule):
    """Q(s, z) of skills, batch-constrained: the best of n latents of the prior (Algorithm 1).

    y = r_{t:t+H} + γ^H (1 − terminal) max_z min_j Q_target_j(s_{t+H}, z), over n latents z of the
    prior at s_{t+H}; a snippet that a true terminal cuts short bootstraps nothing. Both critics
    share the candidates. ``prior: gaussian`` is BCQ-H, with stage 1's own Gaussian prior.

    Departures from the paper: its target ← ρ·online + (1 − ρ)·target has the weights the wrong way
    round; by default candidates are sampled once for each state that a snippet ends in, which the
    frozen prior allows, in few steps; a snippet's latent is drawn anew each time.

    The paper clips gradients to a norm of 1: set ``trainer.gradient_clip_val``. If snippets are
    drawn with priorities, a call has one step (see ``steps_per_call``), since the errors of a step
    are the priorities of the next draw.

    Args:
        stage2: Checkpoint of an LDCQStage2Module, a path or an MLflow run, for the diffusion prior.
        stage1: Checkpoint of an LDCQStage1Module, a path or an MLflow run, for the Gaussian prior.
        prior: Prior that proposes latents: ``diffusion``, or ``gaussian`` for BCQ-H.
        gamma: Discount γ of each step, also within a snippet, in [0, 1].
        latents: When candidates are drawn: ``cached`` draws those of each state once and stores
            them in a table, ``online`` runs n chains per row in each step.
        num_latents: Number n of candidates of a state, at least 1.
        sampler: Algorithm that draws candidates.
        sampling_steps: Number of the sampler's steps, 1 to T, or ``null`` for all T.
        extra_steps: Number of further steps at t = 1, as in Diffusion-X; at least 0.
        guidance: Weight w of classifier-free guidance, u + w (c − u); 1 is the conditional model.
        variance: Variance of the noise in a step of ``ddpm``: ``beta`` or ``posterior``.
        prioritized: Whether snippets are drawn with priorities, which follow the errors of Q,
            instead of uniformly.
        priority_alpha: Exponent of the errors in the priorities, at least 0; 0 draws uniformly.
        priority_beta: Exponent of the importance weights at the first step, in [0, 1].
        priority_beta_step: Increment of ``priority_beta``, above 0, until it is 1.
        priority_beta_every: Number of optimiser steps between two increments, at least 1.
        tau: Rate in (0, 1] at which the target critics follow the critics in each step.
        state_hidden: Widths of the critics' layers for the state alone.
        latent_hidden: Widths of the critics' layers for the latent alone.
        joined: Widths of the critics' layers for state and latent together, at least one.
        learning_rate: Adam's learning rate, at least 0.
        **kwargs: Options of the later stages, see ``StagedModule``.

    Raises:
        ConfigError: A stage is missing, cannot be loaded or does not fit, or a number is out of its
            range.
    """

    eager_because = "the errors of its steps decide on the host which rows come next"

    def __init__(
        self,
        *args: Any,
        stage2: str | dict[str, Any] | None = None,
        stage1: str | dict[str, Any] | None = None,
        prior: Literal["diffusion", "gaussian"] = "diffusion",
        gamma: Annotated[float, "[0, 1]"] = 0.995,
        latents: Literal["cached", "online"] = "cached",
        num_latents: Annotated[int, "[1, inf)"] = 500,
        sampler: SamplerName = "dpm++",
        sampling_steps: int | None = 10,
        extra_steps: int = 0,
        guidance: float = 1.0,
        variance: Variance = "beta",
        prioritized: bool = True,
        priority_alpha: float = 0.7,
        priority_beta: Annotated[float, "[0, 1]"] = 0.3,
        priority_beta_step: Annotated[float, "(0, inf)"] = 0.03,
        priority_beta_every: Annotated[int, "[1, inf)"] = 3000,
        tau: Annotated[float, "(0, 1]"] = 0.005,
        state_hidden: Sequence[int] = (256, 256),
        latent_hidden: Sequence[int] = (128, 128),
        joined: Sequence[int] = (128, 32),
        learning_rate: float = 5e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, learning_rate=learning_rate, **kwargs)
        needed, other = ("stage2", stage1) if prior == "diffusion" else ("stage1", stage2)
        source = stage2 if prior == "diffusion" else stage1
        if source is None or other is not None:
            raise ConfigError(f"prior is '{prior}', which takes the checkpoint {needed} alone.")
        self.gamma, self.tau = gamma, tau
        self.latents, self.num_latents = latents, num_latents
        self.how = Sampling(sampler, sampling_steps, extra_steps, guidance, variance)
        self.priorities: Priorities | None = None
        """How snippets are drawn by errors, for the datamodule; None draws them evenly."""
        if prioritized:
            beta = growing(priority_beta, priority_beta_step, priority_beta_every)
            self.priorities = Priorities(priority_alpha, beta)
        self.stage2: LDCQStage2Module | None = None
        self.stage1: LDCQStage1Module | None = None
        if prior == "diffusion":
            self.stage2 = self.take("stage2", source, LDCQStage2Module)
            self.stage2.require(self.how, without_goal=True)
        else:
            self.stage1 = self.take("stage1", source, LDCQStage1Module)
        sizes = (self.first.state_dim, self.first.latent_dim)
        self.q = LatentCritic(*sizes, state_hidden, latent_hidden, joined)
        self.q_target = frozen_copy(self.q)
        self._errors: list[tuple[Tensor, Tensor]] = []

    # ---- training ------------------------------------------------------------------------------

    def view(self) -> Snippets:
        """Snippets of stage 1's H steps, with returns discounted by γ."""
        first = self.first
        return Snippets(first.horizon, self.gamma, first.partial, every=self.snippet_every)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The critics' parameters."""
        return {"q": list(self.q.parameters())}

    def losses(self, batch: SnippetBatch) -> dict[str, Tensor]:
        """``q``: the squared errors of both critics, weighted by each row's importance."""
        self.first.require_snippets(batch, self)
        states = self.first.normalize(batch.observations[:, 0])
        latents = self.latents_of(batch)
        td_target = self.td_target(batch)
        values = self.q(states, latents)
        error = (values - td_target).square().sum(0)
        weighted = error if batch.weights is None else batch.weights * error
        self.log_scalar("q/mean", values.mean())
        self.log_scalar("q/target_mean", td_target.mean())
        if self.training and self.priorities is not None:
            priorities = (values.detach() - td_target).abs().mean(0) + _LEAST_PRIORITY
            self._errors.append((batch.rows, priorities))
        return {"q": weighted.mean()}

    @torch.no_grad()
    def td_target(self, batch: SnippetBatch) -> Tensor:
        """Return y (B,) of a batch's snippets (Eq. 8).

        Raises:
            ConfigError: The data lack rewards.
        """
        if batch.returns is None:
            raise ConfigError(
                "LDCQStage3Module needs the reward of every row, which the data lack: choose data "
                "that have them."
            )
        next_states = self.first.normalize(batch.next_observations)
        next_value, _ = self.q_target.best(next_states, self.proposed(batch))
        next_value = torch.where(batch.terminals, 0.0, next_value.float())
        return batch.returns + batch.discounts * next_value

    def proposed(self, batch: SnippetBatch) -> Tensor:
        """Return candidate latents (B, n, z) in the states after a batch's snippets."""
        if self.latents == "online" or not self.storable:
            return self.propose(batch.next_observations, self.num_latents, self.how, self.noise)
        if "candidates" not in self.tables:
            # "against" is in the names of stored tables, which outlive versions of this library
            settings = {} if self.stage2 is None else self.how.named() | {"against": "nothing"}
            self.tables["candidates"] = Tables(self, self.earlier).candidates(
                lambda states, noise: self.propose(states, self.num_latents, self.how, noise),
                self.num_latents,
                self.first.latent_dim,
                settings,
            )
        return self.tables["candidates"].at(batch.rows + batch.mask.sum(1) - 1)

    def propose(
        self,
        observations: Tensor,
        number: int,
        how: Sampling,
        noise: ShardedGenerator | None = None,
    ) -> Tensor:
        """Draw latents (S, number, z) of the prior for raw observations (S, o)."""
        if self.stage2 is not None:
            return self.stage2.sample(observations, number, how, noise=noise)
        mean, std = self.first.prior(self.first.normalize(observations))
        shape = (mean.shape[0], number, mean.shape[1])
        drawn = draw_normal(shape, noise, device=mean.device)
        return mean[:, None] + std[:, None] * drawn

    def after_step(self) -> None:
        """Move the target critics, and give the errors of the step's rows to the row order."""
        polyak_update_(self.q_target, self.q, self.tau)
        if self._errors:
            rows, errors = (torch.cat(parts) for parts in zip(*self._errors, strict=True))
            self._errors = []
            if self.trainer.world_size > 1:  # each process keeps the priorities of all
                rows, errors = (
                    torch.as_tensor(self.all_gather(part)).flatten() for part in (rows, errors)
                )
            self.datamodule.row_order.update(rows, errors)

    # ---- acting --------------------------------------------------------------------------------

    def policy(
        self, num_latents: Annotated[int | None, "[1, inf)"] = None, **options: Any
    ) -> SkillPolicy:
        """Execute the best of n latents of the prior.

        Args:
            num_latents: Number n of candidates of a state, at least 1; as in training by default.
            **options: ``SkillOptions``, as in training where they are None or left out. A sampler
                that is named takes all T steps unless ``sampling_steps`` is given.

        Raises:
            ConfigError: An option is out of its range, or there is no such sampler.
        """
        number = num_latents or self.num_latents
        given = {name: value for name, value in options.items() if value is not None}
        if "sampler" in given:
            given.setdefault("sampling_steps", None)
        how = SkillOptions(**{**asdict(self.how), **given})
        if self.stage2 is not None:
            self.stage2.require(how, without_goal=True)
        return SkillPolicy(lambda rows: self.choose(rows, number, how), *execution(self, how))

    @classmethod
    def policy_options(cls) -> dict[str, Any]:
        """Types of the options of ``policy`` by name."""
        types = get_type_hints(SkillOptions).items()
        return super().policy_options() | {name: hint | None for name, hint in types}

    @torch.no_grad()
    def choose(self, observations: Tensor, number: int, how: Sampling) -> Tensor:
        """Return the best (E, z) of n latents in raw observations (E, o), by the least Q."""
        proposed = self.propose(observations, number, how)
        _, best = self.q.best(self.first.normalize(observations), proposed)
        return proposed[torch.arange(best.shape[0], device=best.device), best]


def growing(start: float, step: float, every: int) -> Linear:
    """Return β from ``start`` to 1, which grows by ``step`` after every so many optimiser steps.

    Raises:
        ConfigError: It does not grow.
    """
    steps = (1.0 - start) / step * every
    if not math.isfinite(steps):
        raise ConfigError(f"priority_beta_step is {step}: give a larger number.")
    return Linear(start, 1.0, steps=max(1, round(steps)), every=every)
