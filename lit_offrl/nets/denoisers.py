"""MLPs as denoisers of actions: a residual one of IDQL and ACD, a plain one of Diffusion-QL."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_offrl.common.ranges import require_in
from lit_offrl.common.tracing import traced
from lit_offrl.nets.embeddings import sinusoidal
from lit_offrl.nets.mlp import MLP, Dropout, make_activation


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


_CACHED = 1 << 18
"""Size of a layer's features (1 MB) up to which a CPU's cache holds them from layer to layer."""


class ActionDenoiser(nn.Module):
    """ε(x_t, t, condition) by a network whose first layer takes all three joined.

    That layer is a sum of three parts. ``encode`` computes the condition's, and ``encode_times``
    the time's, for all T times: both once per sampling call. A subclass gives ``embed`` and
    ``body``.

    Args:
        event_dim: Size of x_t.
        condition_dim: Size of a condition.
        time: Network that embeds times, for ``embed``; the first among the parameters.
        time_dim: Size of a time's embedding.
        diffusion_steps: Number T of diffusion steps.
        width: Width of the first layer.
        widest: Width of the widest one.

    Raises:
        ConfigError: The width is below 1.
    """

    def __init__(
        self,
        event_dim: int,
        condition_dim: int,
        time: nn.Module,
        *,
        time_dim: int,
        diffusion_steps: int,
        width: int,
        widest: int,
    ) -> None:
        super().__init__()
        require_in("[1, inf)", width=width)
        self._together = max(1, _CACHED // widest)
        self.diffusion_steps = diffusion_steps
        self.time = time
        total = event_dim + condition_dim + time_dim  # as one layer would be initialised
        self.from_event = _part(event_dim, width, total, bias=True)
        self.from_condition = _part(condition_dim, width, total)
        self.from_time = _part(time_dim, width, total)

    def embed(self, times: Int[Tensor, " T"]) -> Float[Tensor, "T time"]:
        """Embed times in 1 … T."""
        raise NotImplementedError

    def body(self, first: Float[Tensor, "B width"]) -> Float[Tensor, "B event"]:
        """Map what the first layer gives, before its activation, to the prediction."""
        raise NotImplementedError

    def encode(self, condition: Float[Tensor, "B c"]) -> Float[Tensor, "B width"]:
        """Return the condition's part of the first layer."""
        return self.from_condition(condition)

    def encode_times(self) -> Float[Tensor, "T width"]:
        """Return the time's part of the first layer, for times 1 … T."""
        times = torch.arange(1, self.diffusion_steps + 1, device=self.from_event.weight.device)
        return self.from_time(self.embed(times))

    def denoise(
        self,
        x_t: Float[Tensor, "B event"],
        t: Int[Tensor, " B"],
        encoded: Float[Tensor, "B width"],
        times: Float[Tensor, "T width"] | None = None,
    ) -> Float[Tensor, "B event"]:
        """Predict ``(B, event)`` at times ``t`` in 1 … T; ``times`` is ``encode_times()``.

        Without gradients a CPU takes as many rows at once as its cache holds: with 1,024 of them
        (ACD-F of 64 samples in 8 environments) in seven to eight tenths of the time.
        """
        times = self.encode_times() if times is None else times
        t = t[:1] if t.stride() == (0,) else t  # one time for all rows, as samplers have it
        x_t = x_t.to(self.from_event.weight.dtype)
        first = self.from_event(x_t) + encoded + times.index_select(0, t - 1)
        if traced() or torch.is_grad_enabled() or first.device.type != "cpu":
            return self.body(first)
        if len(first) <= self._together:
            return self.body(first)
        return torch.cat([self.body(rows) for rows in first.split(self._together)])

    def forward(
        self, x_t: Float[Tensor, "B event"], t: Int[Tensor, " B"], condition: Float[Tensor, "B c"]
    ) -> Float[Tensor, "B event"]:
        """Predict from a condition that is not encoded yet."""
        return self.denoise(x_t, t, self.encode(condition))


class ResNetDenoiser(ActionDenoiser):
    """An MLP of residual blocks with LayerNorm (IDQL; ACD, section 5).

    Dense(width) of (x_t, condition, time) → ``blocks`` residual blocks → activation → Dense.

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
        require_in("[0, inf)", blocks=blocks)
        time = nn.Sequential(
            FourierFeatures(time_dim),
            nn.Linear(time_dim, 2 * time_dim),
            make_activation(activation),
            nn.Linear(2 * time_dim, 2 * time_dim),
        )
        super().__init__(
            event_dim,
            condition_dim,
            time,
            time_dim=2 * time_dim,
            diffusion_steps=diffusion_steps,
            width=width,
            widest=4 * width,
        )
        self.blocks = nn.Sequential(
            *(ResidualBlock(width, dropout, activation) for _ in range(blocks))
        )
        self.out = nn.Sequential(make_activation(activation), nn.Linear(width, event_dim))

    def embed(self, times: Int[Tensor, " T"]) -> Float[Tensor, "T time"]:
        """Embed t / T by learned Fourier features and two layers."""
        return self.time(times.to(self.from_event.weight.dtype) / self.diffusion_steps)

    def body(self, first: Float[Tensor, "B width"]) -> Float[Tensor, "B event"]:
        """The blocks and the last layer."""
        return self.out(self.blocks(first))


class MLPDenoiser(ActionDenoiser):
    """A plain MLP, the network of Diffusion-QL (Wang et al. 2023, appendix B, and its code).

    ``blocks`` layers of ``width`` with Mish, and a linear one, of (x_t, time, condition); the time
    by a sinusoidal embedding of 16 and layers of 32 and 16.

    Args:
        event_dim: Size of x_t.
        condition_dim: Size of a condition.
        diffusion_steps: Number T of diffusion steps.
        width: Width of the hidden layers.
        blocks: Number of hidden layers, at least 1.
        dropout: Probability in [0, 1) of dropping a unit of those after the first; the authors have
            no dropout.
        time_dim: Size of the time's embedding, even.

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
        dropout: float = 0.0,
        time_dim: int = 16,
    ) -> None:
        require_in("[1, inf)", blocks=blocks)
        require_in("[0, 1)", dropout=dropout)
        super().__init__(
            event_dim,
            condition_dim,
            MLP(time_dim, (2 * time_dim,), time_dim, activation="mish"),
            time_dim=time_dim,
            diffusion_steps=diffusion_steps,
            width=width,
            widest=width,
        )
        # the frequencies of the authors' embedding, the last of which is 1/10,000
        half = time_dim // 2
        self._features = partial(
            sinusoidal, dim=time_dim, max_period=10_000.0 ** (half / (half - 1))
        )
        self.activation = make_activation("mish")
        hidden = (width,) * (blocks - 1)
        self.rest = MLP(width, hidden, event_dim, activation="mish", dropout=dropout)

    def embed(self, times: Int[Tensor, " T"]) -> Float[Tensor, "T time"]:
        """Embed t − 1, which the authors count from 0."""
        return self.time(self._features(times - 1).to(self.from_event.weight.dtype))

    def body(self, first: Float[Tensor, "B width"]) -> Float[Tensor, "B event"]:
        """The first layer's activation and the layers after it."""
        return self.rest(self.activation(first))


DENOISERS: Mapping[str, Callable[..., ActionDenoiser]] = {
    "residual": ResNetDenoiser,
    "mlp": MLPDenoiser,
}
"""Denoisers of actions by their names in options."""


def _part(in_dim: int, out_dim: int, total: int, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(in_dim, out_dim, bias=bias)
    nn.init.uniform_(layer.weight, -(total**-0.5), total**-0.5)
    return layer
