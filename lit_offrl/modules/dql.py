"""Diffusion Q-learning (Diffusion-QL): a diffusion policy that climbs its critics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.diffusion import Clipping, Variance
from lit_offrl.modules.diffusion_actor import DiffusionActorModule
from lit_offrl.modules.extraction import by_turns
from lit_offrl.modules.policies import NetworkPolicy
from lit_offrl.modules.twin_critics import TwinCriticModule


class DQLModule(DiffusionActorModule, TwinCriticModule):
    """Diffusion-QL (Wang et al. 2023): denoising loss − η · E[Q(s, a)] / E|Q|.

    The gradient of Q runs back through the whole chain that draws the action. Targets are
    r + γ (1 − terminal) min_j Q̄_j(s', a') with a' by the averaged denoiser.

    As in the authors' code each of DDPM's steps clips its estimate of the action and has noise of
    the posterior's variance.

    Departures from the authors' code: ACD's denoiser; critics with ReLU for Mish, whose rate does
    not decay; averages move at every step.

    Args:
        eta: Weight η, at least 0, of Q: 1 for locomotion; AntMaze 0.5 umaze, 2 umaze-diverse, 2
            medium-play, 3 medium-diverse, 4.5 large-play, 3.5 large-diverse; 0.15 and 0.1 for pen
            human and cloned; 0.005 for kitchen. The learning rate is 1e-3 for AntMaze medium-play
            and 3e-5 for pen.
        backup_samples: Number of actions in a next state over which each target critic's maximum is
            taken, at least 1; 1 takes no maximum, AntMaze 10.
        num_samples: Number of candidates when acting, at least 1, one of which is drawn with
            probability ∝ exp(Q).
        hidden: Widths of the critics' hidden layers.
        dropout: Probability in [0, 1) of dropping a unit at a block's entrance.
        clipping: What each step of the sampler clips to the actions' range: the ``estimate`` of the
            action, the noisy ``sample``, or ``none``.
        variance: Variance of the noise in a step of ``ddpm``: ``posterior`` or ``beta``.
        actor_ema_rate: Rate in (0, 1] at which the averaged denoiser, which acts and makes targets,
            follows the trained one in each step.
        **kwargs: Options of ``DiffusionActorModule`` but for sampling_steps, and of
            ``TwinCriticModule``.
    """

    def __init__(
        self,
        *args: Any,
        eta: Annotated[float, "[0, inf)"] = 1.0,
        backup_samples: Annotated[int, "[1, inf)"] = 1,
        num_samples: Annotated[int, "[1, inf)"] = 50,
        hidden: Sequence[int] = (256, 256, 256),
        dropout: float = 0.0,
        clipping: Clipping = "estimate",
        variance: Variance = "posterior",
        actor_ema_rate: float = 0.005,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            hidden=hidden,
            dropout=dropout,
            sampling_steps=None,
            clipping=clipping,
            variance=variance,
            actor_ema_rate=actor_ema_rate,
            **kwargs,
        )
        self.eta, self.backup_samples, self.num_samples = eta, backup_samples, num_samples
        self.actor = self.diffusion_actor(self.observation_dim)

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """``critic`` by temporal differences and ``actor``."""
        self.require_batch(batch, TransitionBatch, "Transitions", rewards=True)
        critic = self.critic_loss(batch, self.td_target(batch, self._next_value(batch)))
        observations = self.normalize_observations(batch.observations)
        denoising = self.actor.loss(observations, batch.actions, self.noise).mean()
        drawn = self.actor.sample(observations, noise=self.noise, denoiser=self.actor.denoiser)
        climbed, scale = by_turns(self.q.frozen(observations, drawn.squeeze(1)))
        self.log_scalar("actor/q_mean", climbed)
        self.log_scalar("actor/denoising", denoising)
        return {"critic": critic, "actor": denoising - self.eta * climbed / scale}

    @torch.no_grad()
    def _next_value(self, batch: TransitionBatch) -> Tensor:
        observations = self.normalize_observations(batch.next_observations)
        drawn = self.actor.sample(observations, number=self.backup_samples, noise=self.noise)
        return self.target.many(observations, drawn).amax(dim=2).amin(dim=0)

    def policy(
        self, num_samples: Annotated[int | None, "[1, inf)"] = None, **drawing: Any
    ) -> NetworkPolicy:
        """Act by a sample drawn among candidates with probability ∝ exp(Q).

        Args:
            num_samples: Number of candidates; the module's own by default. 1 needs no critic.
            **drawing: Options of ``Drawing``; those that are None or left out are as trained.
        """
        number = num_samples or self.num_samples
        return self.best_of_samples(self.target, number, "softmax", **drawing)
