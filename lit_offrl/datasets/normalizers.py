"""Scaling of observations, as modules, so that the statistics live in the checkpoint."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError

Normalization = Literal[False, True, "min_max", "mean_std"]
"""How observations are scaled: not at all (False), by their range (True) or by their spread."""

# A dimension whose range is below this share of its magnitude is constant but for rounding.
_FLAT = 1e-6
_ROWS = 65_536  # summed at once, so that memory-mapped data are never in memory as a whole


class Normalizer(nn.Module):
    """Maps observations to (observation − centre) / unit, by statistics of the training data.

    Args:
        dim: Number o of dimensions.
    """

    is_fitted: Bool[Tensor, ""]

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("is_fitted", torch.tensor(False))

    @property
    def fitted(self) -> bool:
        """Whether ``fit`` has been called, here or before the checkpoint was written."""
        return bool(self.is_fitted)

    def fit(self, observations: Float[Tensor, "N o"] | np.ndarray) -> Normalizer:
        """Take the statistics of each dimension from the data.

        Raises:
            ConfigError: The observations have another number of dimensions.
        """
        if observations.ndim != 2 or observations.shape[1] != self.dim:
            raise ConfigError(
                f"normaliser of {self.dim} dimensions cannot be fitted to observations of "
                f"shape {tuple(observations.shape)}: give (N, {self.dim})."
            )
        self._measure(observations)
        self.is_fitted.fill_(True)
        return self

    def normalize(self, observations: Float[Tensor, "*b o"]) -> Float[Tensor, "*b o"]:
        """Return raw observations scaled."""
        centre, unit = self._centre_and_unit()
        return (observations - centre) / unit

    def denormalize(self, scaled: Float[Tensor, "*b o"]) -> Float[Tensor, "*b o"]:
        """Undo ``normalize``."""
        centre, unit = self._centre_and_unit()
        return scaled * unit + centre

    def _measure(self, observations: Tensor | np.ndarray) -> None:
        raise NotImplementedError

    def _centre_and_unit(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class MinMaxNormalizer(Normalizer):
    """Maps each dimension's range in the data to [−1, 1] (DVF, Algorithm 1, line 1).

    A dimension that is constant in the data maps to 0 plus its distance from that constant, so that
    other values in later observations stay finite; values outside the data's range map outside
    [−1, 1].
    """

    low: Float[Tensor, " o"]
    high: Float[Tensor, " o"]

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.register_buffer("low", -torch.ones(dim))
        self.register_buffer("high", torch.ones(dim))

    def _measure(self, observations: Tensor | np.ndarray) -> None:
        if isinstance(observations, Tensor):
            low, high = observations.amin(dim=0), observations.amax(dim=0)
        else:
            low, high = torch.tensor(observations.min(0)), torch.tensor(observations.max(0))
        self.low.copy_(low)
        self.high.copy_(high)

    def _centre_and_unit(self) -> tuple[Tensor, Tensor]:
        centre, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        return centre, half.masked_fill(half <= _FLAT * (1 + centre.abs()), 1.0)


class MeanStdNormalizer(Normalizer):
    """Maps each dimension to (observation − mean) / (standard deviation + 1e-3).

    Source: TD3+BC (Fujimoto & Gu 2021), section 5. The added constant keeps dimensions that hardly
    vary in the data from growing without limit.
    """

    mean: Float[Tensor, " o"]
    std: Float[Tensor, " o"]

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def _measure(self, observations: Tensor | np.ndarray) -> None:
        mean = self._average(observations, torch.zeros_like(self.mean, dtype=torch.double), 1)
        self.std.copy_(self._average(observations, mean, 2).sqrt())
        self.mean.copy_(mean)

    @staticmethod
    def _average(observations: Tensor | np.ndarray, centre: Tensor, power: int) -> Tensor:
        """Mean (o,) of (observation − centre) to a power, in float64."""
        total = torch.zeros_like(centre)
        for begin in range(0, len(observations), _ROWS):
            rows = torch.as_tensor(np.array(observations[begin : begin + _ROWS]))
            total += (rows.to(centre) - centre).pow(power).sum(dim=0)
        return total / len(observations)

    def _centre_and_unit(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.std + 1e-3


def make_normalizer(normalize: Normalization, dim: int) -> Normalizer:
    """Make the normaliser that an option names; that of ``False`` is made but not used."""
    return MeanStdNormalizer(dim) if normalize == "mean_std" else MinMaxNormalizer(dim)
