"""Denoising diffusion implicit models: from an ODE to the ancestral sampler."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np

from lit_offrl.diffusion.samplers.base import Coefficients, Sampler


@dataclass(frozen=True)
class DDIM(Sampler):
    """DDIM (Song et al. 2021, eqs. 12 and 16): x_s = α_s x̂_0 + √(σ_s² − n²) ε̂ + n z.

    Args:
        eta: n is ``eta`` times the posterior standard deviation: 0 is a deterministic map from
            noise to data (first order in the step), 1 is `DDPM` with posterior variance.

    Raises:
        ConfigError: as `Sampler`, or eta outside [0, 1].
    """

    name: ClassVar[str] = "ddim"
    order: ClassVar[int] = 1

    _: KW_ONLY
    eta: float | int = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(0 <= self.eta <= 1, "eta", "in [0, 1]")

    def coefficients(
        self, alpha_t: np.ndarray, sigma_t: np.ndarray, alpha_s: np.ndarray, sigma_s: np.ndarray
    ) -> Coefficients:
        """ε̂ = (x_t − α_t x̂_0)/σ_t put in, so that only x̂_0 and x_t are left."""
        noise = self.eta * sigma_s / sigma_t * np.sqrt(1 - (alpha_t / alpha_s) ** 2)
        direction = np.sqrt(sigma_s**2 - noise**2) / sigma_t
        return Coefficients(
            x0=alpha_s - direction * alpha_t,
            x=direction,
            previous=np.zeros_like(noise),
            noise=noise,
        )
