"""A second-order solver of the diffusion ODE, for good samples in few steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lit_offrl.diffusion.samplers.base import Coefficients, Sampler


@dataclass(frozen=True)
class DPMSolverPP(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): deterministic, one forward a step.

    Extrapolates x̂_0 linearly in λ = log(α/σ) from this step and the one before. The first step,
    which has none before, is of first order; so is the last, where λ is infinite.
    """

    name: ClassVar[str] = "dpm++"
    order: ClassVar[int] = 2

    def coefficients(
        self, alpha_t: np.ndarray, sigma_t: np.ndarray, alpha_s: np.ndarray, sigma_s: np.ndarray
    ) -> Coefficients:
        """x_s = (σ_s/σ_t) x_t + α_s (1 − e^{−h}) D, D = x̂_0 + c (x̂_0 − x̂_0'), c = h/(2 h')."""
        decay = sigma_s / sigma_t * alpha_t / alpha_s  # e^{−h}: no infinity at σ = 0
        gain = alpha_s * (1 - decay)
        h = -np.log(decay[:-1])
        slope = np.zeros_like(gain)
        slope[1:-1] = h[1:] / (2 * h[:-1])
        return Coefficients(
            x0=gain * (1 + slope),
            x=sigma_s / sigma_t,
            previous=-gain * slope,
            noise=np.zeros_like(gain),
        )
