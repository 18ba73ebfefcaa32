"""Diffusion Q-learning (Diffusion-QL): a diffusion policy that climbs its critics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.ranges import require_in
from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.modules.base import Decay
from lit_offrl.modules.critic_guided import ActorModule
from lit_offrl.modules.diffusion_actor import DiffusionActor
from lit_offrl.modules.expectile import best_of
from lit_offrl.modules.extraction import mean_over_processes
from lit_offrl.modules.policies import NetworkPolicy
from lit_offrl.nets import TwinCritic, frozen_copy, polyak_update_


class DQLModule(ActorModule):
    """Diffusion-QL (Wang et al. 2023): denoising loss − η · E[Q(s, a)] / E|Q|.

    The action is drawn by the whole chain, and the gradient of Q runs back through it. Targets are
    r + γ (1 − terminal) min_j Q̄_j(s', a') with a' by the averaged denoiser.

    Departures from the authors' code: ACD's denoiser; critics with ReLU for Mish, whose rate does
    not decay; DDPM's noise of variance β for the posterior's; averages that move from the first
    step on, at every step.

    Args:
        observation_dim: o, size of an observation; linked from the data.
        action_dim: a, size of an action; linked from the data.
        action_low: lower bounds (a,); linked from the data.
        action_high: upper bounds (a,); linked from the data.
        gamma: discount γ.
        eta: η: 1 for locomotion; AntMaze 0.5 umaze, 2 umaze-diverse, 2 medium-play, 3
            medium-diverse, 4.5 large-play, 3.5 large-diverse; 0.15 and 0.1 for pen human and
            cloned; 0.005 for kitchen.
        backup_samples: actions a next state over which each target critic's maximum is taken; 1
            takes none, AntMaze 10.
        num_samples: candidates when acting, one of which is drawn with probability ∝ exp(Q).
        polyak_rate: of the target critics.
        hidden: widths of the critics' MLPs.
        layer_norm: LayerNorm in the critics.
        width: of the denoiser.
        blocks: its residual blocks.
        dropout: in its blocks.
        schedule: noise schedule.
        diffusion_steps: T.
        sampler: which sampler draws actions.
        actor_ema_rate: rate of the averaged denoiser, which acts and makes targets.
        normalize: scale observations to the data's range [−1, 1].
        learning_rate: Adam's rate; AntMaze medium-play 1e-3, pen 3e-5.
        weight_decay: of the actor's weights (AdamW).
        decay: of the actor's rate: constant, or by a cosine to 0 at ``trainer.max_steps``.
        seed: names the stream of all random numbers in training.

    Raises:
        ConfigError: the data have no actions, or a number is out of its range.
    """

    actor: DiffusionActor

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        action_low: Sequence[float] | None = None,
        action_high: Sequence[float] | None = None,
        *,
        gamma: float = 0.99,
        eta: float = 1.0,
        backup_samples: int = 1,
        num_samples: int = 50,
        polyak_rate: float = 0.005,
        hidden: Sequence[int] = (256, 256, 256),
        layer_norm: bool = False,
        width: int = 256,
        blocks: int = 3,
        dropout: float = 0.0,
        schedule: Literal["vp", "cosine", "linear"] = "vp",
        diffusion_steps: int = 5,
        sampler: Literal["ddpm", "ddim", "dpm++"] = "ddpm",
        actor_ema_rate: float = 0.005,
        normalize: bool = False,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.0,
        decay: Decay = "constant",
        seed: int = 0,
    ) -> None:
        super().__init__(
            observation_dim, action_dim, normalize, learning_rate, weight_decay, decay, seed
        )
        require_in("[1, inf)", backup_samples=backup_samples, num_samples=num_samples)
        require_in("[0, 1)", gamma=gamma)
        require_in("[0, inf)", eta=eta)
        require_in("(0, 1]", polyak_rate=polyak_rate)
        self.save_hyperparameters()
        self.gamma, self.eta, self.polyak_rate = gamma, eta, polyak_rate
        self.backup_samples, self.num_samples = backup_samples, num_samples
        self.q = TwinCritic(observation_dim, action_dim, hidden, layer_norm)
        self.target = frozen_copy(self.q)
        self.actor = DiffusionActor(
            observation_dim,
            action_dim,
            action_low,
            action_high,
            width=width,
            blocks=blocks,
            dropout=dropout,
            schedule=schedule,
            diffusion_steps=diffusion_steps,
            sampler=sampler,
            ema_rate=actor_ema_rate,
        )

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Critics and actor."""
        return {"critic": list(self.q.parameters())} | super().parameter_groups()

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """``critic`` by temporal differences and ``actor``.

        Raises:
            ConfigError: the view gives no transitions with rewards.
        """
        if not isinstance(batch, TransitionBatch) or batch.rewards is None:
            raise ConfigError(
                f"DQLModule trains on Transitions with rewards, but the view gives a "
                f"{type(batch).__name__}: set data.init_args.view to Transitions, or leave the "
                "view to the model."
            )
        observations = self.normalize_observations(batch.observations)
        goal = self._goal(batch)
        critic = (self.q(observations, batch.actions) - goal).square().mean(dim=1).sum()
        self.log_scalar("critic/target_mean", goal.mean())
        return {"critic": critic, "actor": self._actor_loss(observations, batch.actions)}

    @torch.no_grad()
    def _goal(self, batch: TransitionBatch) -> Tensor:
        later = self.normalize_observations(batch.next_observations)
        number = self.backup_samples
        drawn = self.actor.sample(later, number=number, noise=self.noise)
        best = self.target.many(later, drawn).amax(dim=2).amin(dim=0)
        assert batch.rewards is not None
        return batch.rewards + self.gamma * torch.where(batch.terminals, 0.0, best)

    def _actor_loss(self, observations: Tensor, actions: Tensor) -> Tensor:
        denoising = self.actor.loss(observations, actions, self.noise).mean()
        drawn = self.actor.sample(
            observations, noise=self.noise, denoiser=self.actor.denoiser
        ).squeeze(1)
        # One critic climbs, the other one scales, so that no unit of reward is preferred. The
        # paper draws which by a coin; here the two take turns by row.
        values = self.q.frozen(observations, drawn)
        turn = torch.arange(len(drawn), device=drawn.device) % 2
        climbed = values.gather(0, turn[None]).squeeze(0)
        scale = mean_over_processes(values.gather(0, 1 - turn[None]).abs()).clamp_min(1e-6)
        self.log_scalar("actor/q_mean", climbed.mean())
        self.log_scalar("actor/denoising", denoising)
        return denoising - self.eta * climbed.mean() / scale

    def after_step(self) -> None:
        """Move the target critics and the actor's average."""
        super().after_step()
        polyak_update_(self.target, self.q, self.polyak_rate)

    def policy(self, num_samples: int | None = None) -> NetworkPolicy:
        """Act by a sample drawn among candidates with probability ∝ exp(Q).

        Args:
            num_samples: candidates; the module's own by default. 1 asks no critic.

        Raises:
            ConfigError: ``num_samples`` below 1.
        """
        number = self.num_samples if num_samples is None else num_samples
        require_in("[1, inf)", num_samples=number)

        def act(rows: Tensor) -> Tensor:
            observations = self.normalize_observations(rows)
            candidates = self.actor.sample(observations, number=number)
            if number == 1:
                return candidates.squeeze(1)
            return best_of(self.target, observations, candidates, pick="softmax")

        return NetworkPolicy(act, self.device)
