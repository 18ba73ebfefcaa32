"""Diffusion behaviour cloning: the control of every method that acts by a diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.modules.base import Decay
from lit_offrl.modules.critic_guided import ActorModule
from lit_offrl.modules.diffusion_actor import DiffusionActor
from lit_offrl.modules.policies import NetworkPolicy


class DiffusionBCModule(ActorModule):
    """Imitates the dataset's actions by a diffusion model, with ACD's denoiser and sampler.

    Args:
        observation_dim: o, size of an observation; linked from the data.
        action_dim: a, size of an action; linked from the data.
        action_low: lower bounds (a,); linked from the data.
        action_high: upper bounds (a,); linked from the data.
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
            observation_dim, action_dim, normalize, learning_rate, weight_decay, decay, seed
        )
        self.save_hyperparameters()
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

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Columns without which it cannot be trained; rewards are not among them."""
        return ("actions",)

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """``actor``: the denoising loss."""
        observations = self.normalize_observations(batch.observations)
        return {"actor": self.actor.loss(observations, batch.actions, self.noise).mean()}

    def policy(self) -> NetworkPolicy:
        """Act by one sample."""
        return NetworkPolicy(
            lambda rows: self.actor.sample(self.normalize_observations(rows)).squeeze(1),
            self.device,
        )
