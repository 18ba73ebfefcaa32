"""Diffusion behaviour cloning: the baseline of every method that acts by a diffusion model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.modules.diffusion_actor import DiffusionActorModule


class DiffusionBCModule(DiffusionActorModule):
    """Imitates the dataset's actions by a diffusion model, with ACD's denoiser and sampler.

    It therefore clips the noisy action in each step, as ACD and IDQL do. The behaviour cloning in
    DQL's paper clips the estimate of the action, with noise of the posterior's variance.

    Args:
        weight_decay: AdamW's decay of the denoiser's weights, at least 0; 0 is Adam.
        **kwargs: Options of ``DiffusionActorModule`` but for n_step.
    """

    eager_because = None
    required_columns = ("actions",)

    def __init__(self, *args: Any, weight_decay: float = 1e-4, **kwargs: Any) -> None:
        super().__init__(*args, weight_decay=weight_decay, n_step=None, **kwargs)
        self.actor = self.diffusion_actor(self.observation_dim)

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """``actor``: the denoising loss."""
        observations = self.normalize_observations(batch.observations)
        return {"actor": self.actor.loss(observations, batch.actions, self.noise).mean()}
