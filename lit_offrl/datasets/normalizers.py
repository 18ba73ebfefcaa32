"""Scaling of observations, as modules, so that the statistics live in the checkpoint."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError

# A dimension whose range is below this share of its magnitude is constant but for rounding.
_FLAT = 1e-6


class MinMaxNormalizer(nn.Module):
    """Maps each dimension's range in the data to [−1, 1] (DVF, Algorithm 1, line 1).

    A dimension that is constant in the data maps to 0 plus its distance from that constant, so that
    values met later stay finite; values outside the data's range map outside [−1, 1].

    Args:
        dim: o, the number of dimensions.
    """

    low: Float[Tensor, " o"]
    high: Float[Tensor, " o"]
    is_fitted: Bool[Tensor, ""]

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("low", -torch.ones(dim))
        self.register_buffer("high", torch.ones(dim))
        self.register_buffer("is_fitted", torch.tensor(False))

    @property
    def fitted(self) -> bool:
        """Whether ``fit`` has been called, here or before the checkpoint was written."""
        return bool(self.is_fitted)

    def fit(self, observations: Float[Tensor, "N o"] | np.ndarray) -> MinMaxNormalizer:
        """Take each dimension's range from the data.

        Raises:
            ConfigError: if the observations have another number of dimensions.
        """
        if observations.ndim != 2 or observations.shape[1] != len(self.low):
            raise ConfigError(
                f"normaliser of {len(self.low)} dimensions cannot be fitted to observations of "
                f"shape {tuple(observations.shape)}: give (N, {len(self.low)})."
            )
        if isinstance(observations, Tensor):
            low, high = observations.amin(dim=0), observations.amax(dim=0)
        else:
            low, high = torch.tensor(observations.min(0)), torch.tensor(observations.max(0))
        self.low.copy_(low)
        self.high.copy_(high)
        self.is_fitted.fill_(True)
        return self

    def normalize(self, observations: Float[Tensor, "*b o"]) -> Float[Tensor, "*b o"]:
        """Return raw observations scaled."""
        centre, half = self._centre_and_half()
        return (observations - centre) / half

    def denormalize(self, scaled: Float[Tensor, "*b o"]) -> Float[Tensor, "*b o"]:
        """Undo ``normalize``."""
        centre, half = self._centre_and_half()
        return scaled * half + centre

    def _centre_and_half(self) -> tuple[Tensor, Tensor]:
        centre, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        return centre, half.masked_fill(half <= _FLAT * (1 + centre.abs()), 1.0)
