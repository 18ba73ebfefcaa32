"""LDCQ's third stage: Q-learning over latents that a prior of the data proposes.

Source: "Reasoning with latent diffusion in offline reinforcement learning", section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal, get_type_hints

import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.common.ranges import require_in
from lit_offrl.datasets.priorities import Linear, Priorities
from lit_offrl.datasets.views import SnippetBatch, Snippets
from lit_offrl.modules.ldcq.acting import SkillOptions, SkillPolicy
from lit_offrl.modules.ldcq.sampling import SamplerName, Sampling
from lit_offrl.modules.ldcq.stage1 import LDCQStage1Module
from lit_offrl.modules.ldcq.stage2 import LDCQStage2Module
from lit_offrl.modules.ldcq.staged import PosteriorKind, PosteriorsFrom, StagedModule
from lit_offrl.modules.ldcq.tables import RowTable, Tables
from lit_offrl.modules.optimizer import Decay
from lit_offrl.nets import LatentCritic, frozen_copy, polyak_update_

_LEAST_PRIORITY = 1e-6  # so that a window whose error is 0 may be drawn again


class LDCQStage3Module(StagedModule):
    """Q(s, z) of skills, batch-constrained: the best of n latents of the prior (Algorithm 1).

    y = r_{t:t+H} + γ^H (1 − terminal) max_z min_j Q_target_j(s_{t+H}, z), over n latents z of the
    prior at s_{t+H}; a window that a true terminal cuts short bootstraps nothing. Both critics
    share the candidates. ``prior: gaussian`` is BCQ-H, with stage 1's own Gaussian prior.

    Departures from the paper: its target ← ρ·online + (1 − ρ)·target has the weights the wrong way
    round; by default candidates are sampled once for each state that a window ends in, which the
    frozen prior allows, in few steps; a window's latent is drawn anew each time.

    The paper clips gradients to a norm of 1: set ``trainer.gradient_clip_val``.

    Args:
        observation_dim: o, size of an observation; linked from the data.
        action_dim: a, size of an action; linked from the data.
        action_low: linked from the data, not used: the decoder has stage 1's.
        action_high: likewise.
        stage2: checkpoint of an LDCQStage2Module: its path or MLflow run; for the diffusion prior.
        stage1: of an LDCQStage1Module, for the Gaussian prior.
        prior: ``diffusion``, or ``gaussian`` for BCQ-H.
        gamma: discount γ of each step, also within a window.
        latents: ``cached`` candidates beside the dataset, or ``online``, n chains a row in each
            step.
        num_latents: n.
        sampler: which sampler draws candidates.
        sampling_steps: its number of steps; all T if None.
        extra_steps: Diffusion-X's further steps.
        guidance: w of u + w (c − u).
        posterior: a window's latent is a ``sample`` of its posterior, or its ``mean``.
        posteriors: ``cached`` encodes each window once, beside the data; ``online`` in each step.
        window_every: windows begin at every so many rows alone, see ``Snippets``: fewer candidates
            to cache.
        prioritized: draw windows by the errors of Q, else evenly.
        priority_alpha: how far errors matter.
        priority_beta: importance exponent at the first step.
        priority_beta_step: what it grows by, up to 1, …
        priority_beta_every: … every so many optimiser steps.
        polyak_rate: of the target critics.
        state_hidden: widths of the critics' layers of the state.
        latent_hidden: of the latent.
        joined: of both.
        learning_rate: Adam's rate.
        decay: of the rate: constant, or by a cosine to 0 at ``trainer.max_steps``.
        seed: names the stream of all random numbers in training.

    Raises:
        ConfigError: a stage is missing, cannot be had or does not fit, or a number is out of its
            range.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        action_low: Sequence[float] | None = None,
        action_high: Sequence[float] | None = None,
        *,
        stage2: str | dict[str, Any] | None = None,
        stage1: str | dict[str, Any] | None = None,
        prior: Literal["diffusion", "gaussian"] = "diffusion",
        gamma: float = 0.995,
        latents: Literal["cached", "online"] = "cached",
        num_latents: int = 500,
        sampler: SamplerName = "dpm++",
        sampling_steps: int | None = 10,
        extra_steps: int = 0,
        guidance: float = 1.0,
        posterior: PosteriorKind = "sample",
        posteriors: PosteriorsFrom = "cached",
        window_every: int = 1,
        prioritized: bool = True,
        priority_alpha: float = 0.7,
        priority_beta: float = 0.3,
        priority_beta_step: float = 0.03,
        priority_beta_every: int = 3000,
        polyak_rate: float = 0.005,
        state_hidden: Sequence[int] = (256, 256),
        latent_hidden: Sequence[int] = (128, 128),
        joined: Sequence[int] = (128, 32),
        learning_rate: float = 5e-4,
        decay: Decay = "constant",
        seed: int = 0,
    ) -> None:
        super().__init__(
            observation_dim,
            action_dim,
            action_low,
            action_high,
            posterior=posterior,
            posteriors=posteriors,
            window_every=window_every,
            learning_rate=learning_rate,
            decay=decay,
            seed=seed,
        )
        self.save_hyperparameters()
        needed, other = ("stage2", stage1) if prior == "diffusion" else ("stage1", stage2)
        source = stage2 if prior == "diffusion" else stage1
        if source is None or other is not None:
            raise ConfigError(f"prior is '{prior}', which takes the checkpoint {needed} alone.")
        require_in("[1, inf)", num_latents=num_latents)
        require_in("[0, 1]", gamma=gamma)
        require_in("(0, 1]", polyak_rate=polyak_rate)
        self.gamma, self.latents, self.num_latents = gamma, latents, num_latents
        self.how = Sampling(sampler, sampling_steps, extra_steps, guidance)
        self.polyak_rate = polyak_rate
        self.priorities: Priorities | None = None
        """How the data are to draw windows by errors; read by the datamodule."""
        if prioritized:
            beta = growing(priority_beta, priority_beta_step, priority_beta_every)
            self.priorities = Priorities(priority_alpha, beta)
        self.stage2: LDCQStage2Module | None = None
        self.stage1: LDCQStage1Module | None = None
        if prior == "diffusion":
            self.stage2 = self.take("stage2", source, LDCQStage2Module, action_dim)
            self.stage2.require(self.how, without_goal=True)
        else:
            self.stage1 = self.take("stage1", source, LDCQStage1Module, action_dim)
        sizes = (self.first.state_dim, self.first.latent_dim)
        self.q = LatentCritic(*sizes, state_hidden, latent_hidden, joined)
        self.q_target = frozen_copy(self.q)
        self._candidates: RowTable | None = None
        self._errors: list[tuple[Tensor, Tensor]] = []

    # ---- training ------------------------------------------------------------------------------

    @property
    def first(self) -> LDCQStage1Module:
        """The first stage."""
        if self.stage2 is not None:
            return self.stage2.stage1
        assert self.stage1 is not None  # one of the two is there
        return self.stage1

    def setup(self, stage: str) -> None:
        """As any later stage's; candidates stored for other data are forgotten."""
        super().setup(stage)
        self._candidates = None

    def view(self) -> Snippets:
        """Windows of stage 1's H steps, with returns discounted by γ."""
        first = self.first
        return Snippets(first.horizon, self.gamma, first.partial, every=self.window_every)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The critics'."""
        return {"q": list(self.q.parameters())}

    def losses(self, batch: SnippetBatch) -> dict[str, Tensor]:
        """``q``: the squared errors of both critics, weighed a row by its importance.

        Raises:
            ConfigError: the view gives no such windows, or no rewards.
        """
        self.require_windows(batch)
        states = self.first.normalize(batch.observations[:, 0])
        latents = self.latents_of(batch)
        target = self.target(batch)
        values = self.q(states, latents)
        error = (values - target).square().sum(0)
        weighed = error if batch.weights is None else batch.weights * error
        self.log_scalar("q/mean", values.mean())
        self.log_scalar("q/target_mean", target.mean())
        if self.training and self.priorities is not None:
            apart = (values.detach() - target).abs().mean(0) + _LEAST_PRIORITY
            self._errors.append((batch.rows, apart))
        return {"q": weighed.mean()}

    @torch.no_grad()
    def target(self, batch: SnippetBatch) -> Tensor:
        """y (B,) of a batch's windows (Eq. 8).

        Raises:
            ConfigError: the data lack rewards.
        """
        if batch.returns is None:
            raise ConfigError(
                "LDCQStage3Module needs the reward of every row, which the data lack: choose data "
                "that have them."
            )
        after = batch.next_observations
        proposed = self.proposed(batch)
        later, _ = self.q_target.best(self.first.normalize(after), proposed)
        later = torch.where(batch.terminals, 0.0, later.float())
        return batch.returns + batch.discounts * later

    def proposed(self, batch: SnippetBatch) -> Tensor:
        """Candidate latents (B, n, z) in the states after a batch's windows."""
        if self.latents == "online" or not self.storable:
            return self.propose(batch.next_observations, self.num_latents, self.how, self.noise)
        if self._candidates is None:
            # "against" is in the names of stored tables, which outlive versions of this library
            settings = {} if self.stage2 is None else asdict(self.how) | {"against": "nothing"}
            self._candidates = Tables(self, self.taken).candidates(
                lambda states, noise: self.propose(states, self.num_latents, self.how, noise),
                self.num_latents,
                self.first.latent_dim,
                settings,
            )
        return self._candidates.at(batch.rows + batch.mask.sum(1) - 1)

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
        shape = (len(mean), number, mean.shape[1])
        drawn = torch.randn(shape, device=mean.device) if noise is None else noise.normal(shape)
        return mean[:, None] + std[:, None] * drawn

    def after_step(self) -> None:
        """Move the target critics, and tell the data the errors of the step's rows."""
        polyak_update_(self.q_target, self.q, self.polyak_rate)
        if self._errors:
            rows, errors = (torch.cat(parts) for parts in zip(*self._errors, strict=True))
            self._errors = []
            if self.trainer.world_size > 1:  # each process keeps the priorities of all
                rows, errors = (
                    torch.as_tensor(self.all_gather(part)).flatten() for part in (rows, errors)
                )
            self.datamodule.row_order.update(rows, errors)

    # ---- acting --------------------------------------------------------------------------------

    def policy(self, num_latents: int | None = None, **options: Any) -> SkillPolicy:
        """Execute the best of n latents of the prior.

        Args:
            num_latents: Number n of latents of each state, at least 1; as in training if None.
            **options: ``SkillOptions``, as in training where they are None or left out. A sampler
                that is named takes all T steps unless ``sampling_steps`` is given.

        Raises:
            ConfigError: An option is out of its range, or there is no such sampler.
        """
        number = self.num_latents if num_latents is None else num_latents
        require_in("[1, inf)", num_latents=number)
        given = {name: value for name, value in options.items() if value is not None}
        if "sampler" in given:
            given.setdefault("sampling_steps", None)
        how = SkillOptions(**{**asdict(self.how), **given})
        if self.stage2 is not None:
            self.stage2.require(how, without_goal=True)
        return SkillPolicy(
            lambda rows: self.choose(rows, number, how),
            partial(self.first.decode, sample=how.sample_actions),
            how.execute_steps or self.first.horizon,
            self.device,
        )

    @classmethod
    def policy_options(cls) -> dict[str, Any]:
        """Types of the options of ``policy`` by name."""
        types = get_type_hints(SkillOptions).items()
        return super().policy_options() | {name: hint | None for name, hint in types}

    @torch.no_grad()
    def choose(self, observations: Tensor, number: int, how: Sampling) -> Tensor:
        """The best (E, z) of n latents a raw observation (E, o), by the least of both critics."""
        proposed = self.propose(observations, number, how)
        _, best = self.q.best(self.first.normalize(observations), proposed)
        return proposed[torch.arange(len(best), device=best.device), best]


def growing(start: float, step: float, every: int) -> Linear:
    """β from ``start`` to 1, growing by ``step`` every so many optimiser steps.

    Raises:
        ConfigError: it does not grow, or a number is out of its range.
    """
    require_in("[0, 1]", priority_beta=start)
    require_in("(0, inf)", priority_beta_step=step)
    require_in("[1, inf)", priority_beta_every=every)
    steps = (1.0 - start) / step * every
    if not math.isfinite(steps):
        raise ConfigError(f"priority_beta_step is {step}: give a larger number.")
    return Linear(start, 1.0, steps=max(1, round(steps)), every=every)
