"""Ancestral sampling of denoising diffusion probabilistic models."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import numpy as np

from lit_offrl.diffusion.samplers.base import Coefficients, Sampler


@dataclass(frozen=True)
class DDPM(Sampler):
    """Ancestral sampling: x_s from q(x_s | x_t, x̂_0) (Ho et al. 2020, eqs. 6, 7 and algorithm 2).

    On a subsampled grid q is that of the coarse chain, from ratios of ᾱ: β = 1 − ᾱ_t/ᾱ_s.

    Args:
        variance: of a step, ``beta`` (β, exact for data that are standard normal) or ``posterior``
            (β σ_s²/σ_t², exact for data that are one point). They differ little with many steps.
            With few out of many, samples are too wide by ``beta``, too narrow by ``posterior``;
            with all of few (vp, T = 5) too narrow by both, more by ``posterior``. The last step
            adds no noise.

    Raises:
        ConfigError: as `Sampler`, or an unknown variance.
    """

    name: ClassVar[str] = "ddpm"
    order: ClassVar[int] = 1

    _: KW_ONLY
    variance: Literal["beta", "posterior"] = "beta"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.variance in ("beta", "posterior"), "variance", "'beta' or 'posterior'")

    def coefficients(
        self, alpha_t: np.ndarray, sigma_t: np.ndarray, alpha_s: np.ndarray, sigma_s: np.ndarray
    ) -> Coefficients:
        """Mean and standard deviation of q(x_s | x_t, x_0)."""
        ratio = alpha_t / alpha_s
        beta = 1 - ratio**2
        posterior = beta * (sigma_s / sigma_t) ** 2
        variance = posterior if self.variance == "posterior" else np.where(sigma_s > 0, beta, 0.0)
        return Coefficients(
            x0=alpha_s * beta / sigma_t**2,
            x=ratio * (sigma_s / sigma_t) ** 2,
            previous=np.zeros_like(beta),
            noise=np.sqrt(variance),
        )
