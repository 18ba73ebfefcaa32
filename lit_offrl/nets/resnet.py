"""A residual MLP as a denoiser of actions, the network of IDQL and ACD."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_offrl.common.ranges import require_in
from lit_offrl.nets.mlp import Dropout, make_activation


class FourierFeatures(nn.Module):
    """Maps numbers ``(B,)`` to cosines and sines ``(B, dim)`` of learned frequencies.

    Source: IDQL (Hansen-Estruch et al. 2023), whose time embedding is learned.
    """

    def __init__(self, dim: int = 64) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"Fourier features have an even size; got dim={dim}")
        self.frequencies = nn.Parameter(0.2 * torch.randn(dim // 2))

    def forward(self, x: Float[Tensor, " B"]) -> Float[Tensor, "B dim"]:
        """Embed numbers."""
        angles = 2 * math.pi * x[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResidualBlock(nn.Module):
    """x + Dense(activation(Dense(LayerNorm(Dropout(x))))), four times as wide inside."""

    def __init__(self, width: int, dropout: float, activation: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Dropout(dropout),
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            make_activation(activation),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Float[Tensor, "B width"]) -> Float[Tensor, "B width"]:
        """Apply the block."""
        return x + self.body(x)


class ResNetDenoiser(nn.Module):
    """ε(x_t, t, condition) by an MLP of residual blocks with LayerNorm (IDQL; ACD, section 5).

    Dense(width) of (x_t, condition, time) → ``blocks`` residual blocks → activation → Dense.
    The first layer is a sum of three parts. ``encode`` computes the condition's, and
    ``encode_times`` the time's, for all T times: both once per sampling call.

    Args:
        event_dim: Size of x_t.
        condition_dim: Size of a condition.
        diffusion_steps: Number T of diffusion steps.
        width: Width of the residual stream.
        blocks: Number of residual blocks.
        dropout: Probability in [0, 1) of dropping a unit at a block's entrance.
        activation: A name of `ACTIVATIONS`.
        time_dim: Size of the time's Fourier features, even.

    Raises:
        ConfigError: A number is out of its range.
    """

    def __init__(
        self,
        event_dim: int,
        condition_dim: int,
        diffusion_steps: int,
        *,
        width: int = 256,
        blocks: int = 3,
        dropout: float = 0.1,
        activation: str = "mish",
        time_dim: int = 64,
    ) -> None:
        super().__init__()
        require_in("[1, inf)", width=width)
        require_in("[0, inf)", blocks=blocks)
        self.diffusion_steps = diffusion_steps
        self.time = nn.Sequential(
            FourierFeatures(time_dim),
            nn.Linear(time_dim, 2 * time_dim),
            make_activation(activation),
            nn.Linear(2 * time_dim, 2 * time_dim),
        )
        total = event_dim + condition_dim + 2 * time_dim  # as one layer would be initialised
        self.from_event = _part(event_dim, width, total, bias=True)
        self.from_condition = _part(condition_dim, width, total)
        self.from_time = _part(2 * time_dim, width, total)
        self.blocks = nn.Sequential(
            *(ResidualBlock(width, dropout, activation) for _ in range(blocks))
        )
        self.out = nn.Sequential(make_activation(activation), nn.Linear(width, event_dim))

    def encode(self, condition: Float[Tensor, "B c"]) -> Float[Tensor, "B width"]:
        """Return the condition's part of the first layer."""
        return self.from_condition(condition)

    def encode_times(self) -> Float[Tensor, "T width"]:
        """Return the time's part of the first layer, for times 1 … T."""
        weight = self.from_event.weight
        times = torch.arange(1, self.diffusion_steps + 1, device=weight.device, dtype=weight.dtype)
        return self.from_time(self.time(times / self.diffusion_steps))

    def denoise(
        self,
        x_t: Float[Tensor, "B event"],
        t: Int[Tensor, " B"],
        encoded: Float[Tensor, "B width"],
        times: Float[Tensor, "T width"] | None = None,
    ) -> Float[Tensor, "B event"]:
        """Predict ``(B, event)`` at times ``t`` in 1 … T; ``times`` is ``encode_times()``."""
        times = self.encode_times() if times is None else times
        x_t = x_t.to(self.from_event.weight.dtype)
        entrance = self.from_event(x_t) + encoded + times.index_select(0, t - 1)
        return self.out(self.blocks(entrance))

    def forward(
        self, x_t: Float[Tensor, "B event"], t: Int[Tensor, " B"], condition: Float[Tensor, "B c"]
    ) -> Float[Tensor, "B event"]:
        """Predict from a condition that is not encoded yet."""
        return self.denoise(x_t, t, self.encode(condition))


def _part(in_dim: int, out_dim: int, total: int, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(in_dim, out_dim, bias=bias)
    nn.init.uniform_(layer.weight, -(total**-0.5), total**-0.5)
    return layer
