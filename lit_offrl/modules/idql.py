"""Implicit diffusion Q-learning (IDQL): IQL's critics choose among a diffusion model's actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from lit_offrl.common.ranges import require_in
from lit_offrl.modules.base import Decay
from lit_offrl.modules.critic_guided import CriticGuidedModule
from lit_offrl.modules.diffusion_actor import DiffusionActor
from lit_offrl.modules.expectile import best_of
from lit_offrl.modules.policies import NetworkPolicy


class IDQLModule(CriticGuidedModule):
    """IDQL (Hansen-Estruch et al. 2023): imitation by diffusion, the best of N samples acts.

    The network is ACD's without the advantage, so that the two can be compared.

    Args:
        observation_dim: o, size of an observation; linked from the data.
        action_dim: a, size of an action; linked from the data.
        action_low: lower bounds (a,); linked from the data.
        action_high: upper bounds (a,); linked from the data.
        gamma: discount γ.
        expectile: τ of V: 0.7 for locomotion, 0.9 for AntMaze.
        num_samples: N, candidates among which the target critics choose.
        polyak_rate: of the target critics.
        hidden: widths of the critics' MLPs.
        layer_norm: LayerNorm in the critics.
        width: of the denoiser.
        blocks: its residual blocks.
        dropout: in its blocks.
        schedule: noise schedule.
        diffusion_steps: T.
        sampler: which sampler draws actions.
        sampling_steps: its number of steps; all T if None.
        actor_ema_rate: rate of the averaged denoiser, which acts.
        normalize: scale observations to the data's range [−1, 1].
        learning_rate: Adam's rate.
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
        expectile: float = 0.7,
        num_samples: int = 64,
        polyak_rate: float = 0.005,
        hidden: Sequence[int] = (256, 256),
        layer_norm: bool = False,
        width: int = 256,
        blocks: int = 3,
        dropout: float = 0.1,
        schedule: Literal["vp", "cosine", "linear"] = "vp",
        diffusion_steps: int = 5,
        sampler: Literal["ddpm", "ddim", "dpm++"] = "ddpm",
        sampling_steps: int | None = None,
        actor_ema_rate: float = 0.001,
        normalize: bool = False,
        learning_rate: float = 3e-4,
        weight_decay: float = 1e-4,
        decay: Decay = "constant",
        seed: int = 0,
    ) -> None:
        super().__init__(
            observation_dim,
            action_dim,
            gamma=gamma,
            expectile=expectile,
            polyak_rate=polyak_rate,
            hidden=hidden,
            layer_norm=layer_norm,
            normalize=normalize,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            decay=decay,
            seed=seed,
        )
        require_in("[1, inf)", num_samples=num_samples)
        self.save_hyperparameters()
        self.num_samples = num_samples
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
            sampling_steps=sampling_steps,
            ema_rate=actor_ema_rate,
        )

    def actor_loss(self, observations: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
        """The denoising loss; advantages play no part."""
        return self.actor.loss(observations, actions, self.noise).mean()

    def policy(self, num_samples: int | None = None) -> NetworkPolicy:
        """Act by the best of N samples.

        Args:
            num_samples: N; the module's own by default.

        Raises:
            ConfigError: N is below 1.
        """
        number = self.num_samples if num_samples is None else num_samples
        require_in("[1, inf)", num_samples=number)

        def act(rows: Tensor) -> Tensor:
            observations = self.normalize_observations(rows)
            candidates = self.actor.sample(observations, number=number)
            return best_of(self.critics.target, observations, candidates)

        return NetworkPolicy(act, self.device)
