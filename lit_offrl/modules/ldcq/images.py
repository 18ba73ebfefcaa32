"""LDCQ for pictures: a β-VAE of single frames, whose means stand for the states (appendix C)."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.policy import Policy
from lit_offrl.common.ranges import require_in
from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.modules.base import OfflineModule
from lit_offrl.nets import ImageDecoder, ImageEncoder, gaussian_kl


class ImageVAEModule(OfflineModule):
    """Compresses RGB frames to a few numbers; trained first, and frozen in ``LDCQStage1Module``.

    Observations are flat RGB frames of n × n pixels, channels last, of o = 3 n² numbers. Minimises
    Σ_pixels (x̂ − x)² + β KL(q(z | x) ‖ N(0, 1)) for pixels scaled to [−1, 1] by the least and the
    largest of the data, so that data in [0, 1] and in [0, 255] are the same. The paper names
    neither layers nor β.

    Args:
        latent_dim: Size of a compressed state, at least 1 and less than the size o of a frame.
        beta: Weight β of the KL divergence, at least 0.
        width: Width of the layers other than convolutions, at least 1.
        **kwargs: Options of every method, see ``OfflineModule``.

    Raises:
        ConfigError: Observations are no such frames, or a number is out of its range.
    """

    required_columns = ("actions",)  # of the transitions whose frames it learns from

    def __init__(
        self,
        *args: Any,
        latent_dim: int = 32,
        beta: Annotated[float, "[0, inf)"] = 1.0,
        width: Annotated[int, "[1, inf)"] = 256,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        observation_dim = self.observation_dim
        size = math.isqrt(observation_dim // 3)
        if 3 * size**2 != observation_dim or size % 8:
            raise ConfigError(
                f"observations have {observation_dim} numbers, so they are no RGB frames whose "
                "side is a multiple of 8 pixels: choose data of pictures."
            )
        # Below the frames' size, by which features and frames are told apart.
        require_in(f"[1, {observation_dim - 1}]", latent_dim=latent_dim)
        self.latent_dim, self.beta = latent_dim, beta
        self.encoder = ImageEncoder(size, latent_dim, width=width)
        self.decoder = ImageDecoder(size, latent_dim, width=width)

    def setup(self, stage: str) -> None:
        """Scale all pixels by one range, lest one that hardly changes be blown up."""
        before = self.normalizer.fitted
        super().setup(stage)
        if not before and self.normalizer.fitted:
            self.normalizer.low.fill_(self.normalizer.low.min())
            self.normalizer.high.fill_(self.normalizer.high.max())

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Encoder and decoder."""
        return {"vae": [*self.encoder.parameters(), *self.decoder.parameters()]}

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """``pixels`` (squared error a frame, scaled pixels) and ``kl`` (β times nats a frame)."""
        frames = self.normalizer.normalize(batch.observations)
        mean, std = self.encoder(frames)
        latents = mean + std * self.noise.normal(mean.shape)
        error = (self.decoder(latents) - frames).square().sum(-1)
        divergence = gaussian_kl(mean, std, torch.zeros_like(mean), torch.ones_like(std)).sum(-1)
        return {"pixels": error.mean(), "kl": self.beta * divergence.mean()}

    @torch.no_grad()
    def features(self, observations: Tensor) -> Tensor:
        """The compressed states (…, z), means of the posterior, of raw flat frames (…, o)."""
        frames = self.normalizer.normalize(observations)
        return self.encoder(frames.flatten(0, -2))[0].unflatten(0, frames.shape[:-1])

    @torch.no_grad()
    def reconstruct(self, features: Tensor) -> Tensor:
        """Raw flat frames (…, o) of compressed states (…, z)."""
        frames = self.decoder(features.flatten(0, -2)).unflatten(0, features.shape[:-1])
        return self.normalizer.denormalize(frames)

    def policy(self) -> Policy:
        """Refuse to make a policy, as frames are only compressed.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "ImageVAEModule only compresses frames and has no policy: train a LDCQStage1Module "
            "with image_encoder set to its checkpoint."
        )
