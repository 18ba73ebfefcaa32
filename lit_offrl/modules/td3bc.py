"""TD3+BC (Fujimoto & Gu 2021): a policy that climbs its critic and stays near the data."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lit_offrl.datasets.normalizers import Normalization
from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.modules.extraction import mean_over_processes
from lit_offrl.modules.twin_critics import TwinCriticModule
from lit_offrl.nets import DeterministicPolicy, frozen_copy, polyak_update_


class TD3BCModule(TwinCriticModule):
    """TD3+BC: actor loss −λ · mean Q_1(s, π(s)) + mean (π(s) − a)² with λ = α / mean |Q_1|.

    Critics are regressed on r + γ (1 − terminal) min_j Q̄_j(s', ã'), where ã' is the target actor's
    action plus clipped noise, within the bounds. Targets are updated in the actor's steps.

    Departure from the authors' code: in each step, critics and actor compute their losses with the
    weights from before the step, while the authors' actor uses the critics after their update.

    Args:
        alpha: Weight α, at least 0, of Q relative to the behaviour-cloning term.
        target_noise: Standard deviation, at least 0, of the noise on the target policy's actions,
            in units of half the width of the action range.
        noise_clip: Bound of the noise on the target policy's actions, at least 0, in units of half
            the width of the action range.
        actor_every: Number k of optimiser steps, at least 1: every k-th step also updates the actor
            and all targets.
        normalize: How observations are scaled: ``mean_std`` subtracts the mean and divides by the
            standard deviation + 1e-3, ``true`` or ``min_max`` maps the range of the data to [-1,
            1], and ``false`` leaves them as they are.
        **kwargs: Options of ``TwinCriticModule``; ``hidden`` are the actor's widths, too.
    """

    eager_because = None
    actor: DeterministicPolicy

    def __init__(
        self,
        *args: Any,
        alpha: Annotated[float, "[0, inf)"] = 2.5,
        target_noise: Annotated[float, "[0, inf)"] = 0.2,
        noise_clip: Annotated[float, "[0, inf)"] = 0.5,
        actor_every: Annotated[int, "[1, inf)"] = 2,
        normalize: Normalization = "mean_std",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, normalize=normalize, **kwargs)
        self.alpha, self.actor_every = alpha, actor_every
        self.target_noise, self.noise_clip = target_noise, noise_clip
        dims = (self.observation_dim, self.action_dim)
        self.actor = DeterministicPolicy(*dims, hidden=self.hidden, **self.bounds)
        self.target_actor = frozen_copy(self.actor)

    @property
    def actor_moves(self) -> bool:
        """Whether the current step updates actor and targets; validations measure the actor."""
        training = self.training and self._trainer is not None
        return not training or self.graph_key(self.trainer.global_step)

    def graph_key(self, step: int) -> bool:
        """Whether a step moves actor and targets."""
        return (step + 1) % self.actor_every == 0

    def idle_parameters(self) -> list[nn.Parameter]:
        """The actor's, in the steps that train the critics alone."""
        return [] if self.actor_moves else list(self.actor.parameters())

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """``critic`` by temporal differences and, where the step moves it, ``actor``."""
        self.require_batch(batch, TransitionBatch, "Transitions", rewards=True)
        losses = {"critic": self.critic_loss(batch, self.td_target(batch, self._next_value(batch)))}
        return losses | ({"actor": self._actor_loss(batch)} if self.actor_moves else {})

    @torch.no_grad()
    def _next_value(self, batch: TransitionBatch) -> Tensor:
        observations = self.normalize_observations(batch.next_observations)
        return self.target.minimum(observations, self.target_actions(observations))

    def target_actions(self, observations: Tensor) -> Tensor:
        """The target actor's actions (B, a) with clipped noise, for normalised observations."""
        centre, scale = self.actor.centre, self.actor.scale
        acted = self.target_actor(observations)
        noise = self.target_noise * self.noise.normal(acted.shape)
        moved = scale * noise.clamp(-self.noise_clip, self.noise_clip)
        return (acted + moved).clamp(centre - scale, centre + scale)

    def _actor_loss(self, batch: TransitionBatch) -> Tensor:
        observations = self.normalize_observations(batch.observations)
        actions = self.actor(observations)
        q_values, distance = self.q.frozen(observations, actions)[0], actions - batch.actions
        weight = self.alpha / mean_over_processes(q_values.abs()).clamp_min(1e-6)
        self.log_scalar("actor/q_mean", q_values.mean())
        return distance.square().mean() - weight * q_values.mean()

    def after_step(self) -> None:
        """Move the targets in the steps in which the actor has moved."""
        if self.actor_moves:
            super().after_step()
            polyak_update_(self.target_actor, self.actor, self.tau)
