"""Numbers as networks take and give them: sinusoidal embeddings, and the symmetric logarithm."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn


def sinusoidal(
    x: Num[Tensor, "*shape"], dim: int, max_period: float = 10_000.0
) -> Float[Tensor, "*shape {dim}"]:
    """Embed numbers by cosines and sines of log-spaced wavelengths (Vaswani et al. 2017, 3.5).

    The angles are ``x * max_period ** (-i / half)`` for i in 0 … half−1 with half = dim / 2: the
    first one tells neighbouring integers apart, the last one orders numbers up to ``max_period``.
    The result is ``[cos(angles), sin(angles)]``.

    Args:
        x: Numbers of any shape, integer or floating.
        dim: Size of the embedding, even.
        max_period: Ratio of the longest to the shortest wavelength (which is 2π).

    Returns:
        Embeddings of shape ``(*shape, dim)``: float64 for float64 input, float32 for any other,
        also under autocast: bfloat16 does not tell 1000 from 1001.

    Raises:
        ValueError: ``dim`` is odd.
    """
    if dim % 2:
        raise ValueError(f"a sinusoidal embedding has an even size; got dim={dim}")
    half = dim // 2
    numbers = x if x.dtype == torch.float64 else x.float()
    steps = torch.arange(half, device=x.device, dtype=numbers.dtype)
    angles = numbers.unsqueeze(-1) * torch.exp(steps * (-math.log(max_period) / half))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class NumberEmbedding(nn.Module):
    """Maps numbers ``(…)`` to ``(…, width)`` by a sinusoidal embedding and a two-layer MLP."""

    def __init__(self, width: int, max_period: float = 10_000.0) -> None:
        super().__init__()
        self.width = width
        self.max_period = max_period
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, x: Num[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        """Embed ``x`` of any shape."""
        return self.layers(sinusoidal(x, self.width, self.max_period))

    def layers(self, features: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
        """Apply the MLP alone, to features of ``sinusoidal``."""
        # Weights may be bfloat16 or float64 (Lightning's true precisions); the angles never are.
        return self.second(F.silu(self.first(features.to(self.first.weight.dtype))))


def symlog(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``sign(x) * log(1 + |x|)``: close to x near 0, logarithmic far from it.

    Source: Hafner et al. 2023, Eq. 1.
    """
    return torch.sign(x) * torch.log1p(x.abs())


def symexp(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``sign(x) * (exp(|x|) - 1)``, the inverse of `symlog`; overflows float32 above 88."""
    return torch.sign(x) * torch.expm1(x.abs())
