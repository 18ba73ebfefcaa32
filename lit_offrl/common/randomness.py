"""Random numbers as pure functions of (seed, step, …), the same for one process and for many.

Training draws nothing from global generators. Each step makes its numbers from a key, so a resumed
run continues with the numbers that the unbroken run would have drawn, and nothing about generators
has to be stored in a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lit_offrl.common.seeds import mix


class ShardedGenerator:
    """Draws for the global batch and hands each rank its own block.

    Every rank draws the same ``(world_size * B, …)`` numbers and keeps rows
    ``rank * B … (rank + 1) * B``. So two processes with B rows each see what one process with 2 B
    rows sees, at the price of drawing (not of computing with) the other ranks' numbers. Integers,
    for example ``(seed, step)``, name the stream.
    """

    def __init__(
        self, *keys: int, device: torch.device | str = "cpu", rank: int = 0, world_size: int = 1
    ) -> None:
        self.device = torch.device(device)
        self.rank = rank
        self.world_size = world_size
        self.source = torch.Generator(self.device).manual_seed(mix(*keys))
        """PyTorch's own generator, which stays the same one."""

    def reseed(self, *keys: int) -> None:
        """Begin the stream of other keys, as a generator made of them would.

        A CUDA graph keeps what is drawn where it is captured, and whoever replays it reseeds: in a
        capture this does nothing.
        """
        if self.device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            self.source.manual_seed(mix(*keys))

    def _draw(self, draw: Callable[..., Tensor], shape: Sequence[int], **options: Any) -> Tensor:
        rows, everyone = shape[0], (shape[0] * self.world_size, *shape[1:])
        drawn = draw(size=everyone, generator=self.source, device=self.device, **options)
        return drawn[self.rank * rows : (self.rank + 1) * rows]

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers of ``shape``, whose first dimension counts this rank's rows."""
        return self._draw(torch.randn, shape, dtype=dtype)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers in [0, 1) of ``shape``, whose first dimension counts this rank's rows."""
        return self._draw(torch.rand, shape, dtype=dtype)

    def common(self, shape: Sequence[int]) -> Tensor:
        """Numbers in [0, 1) of ``shape``, the same ones for every rank."""
        return torch.rand(tuple(shape), generator=self.source, device=self.device)

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Tensor:
        """Integers in [low, high) of ``shape``, whose first dimension counts this rank's rows."""
        return self._draw(torch.randint, shape, low=low, high=high)


Generator = ShardedGenerator | torch.Generator | None
"""Where draws come from; None is PyTorch's global generator. One on the device of the result avoids
a copy, and so a wait for the device, at every draw."""


def draw_normal(
    shape: Sequence[int],
    generator: Generator,
    *,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers of ``shape`` on ``device``."""
    if isinstance(generator, ShardedGenerator):
        return generator.normal(shape, dtype).to(device)
    return _draw(torch.randn, shape, generator, device, dtype)


def draw_uniform(
    shape: Sequence[int],
    generator: Generator,
    *,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Numbers in [0, 1) of ``shape`` on ``device``."""
    if isinstance(generator, ShardedGenerator):
        return generator.uniform(shape, dtype).to(device)
    return _draw(torch.rand, shape, generator, device, dtype)


def _draw(
    function: Callable[..., Tensor],
    shape: Sequence[int],
    generator: torch.Generator | None,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Tensor:
    source = device if generator is None else generator.device
    return function(tuple(shape), generator=generator, device=source, dtype=dtype).to(device)


def draw_times(
    rows: int, num_steps: int, generator: Generator, *, device: torch.device | str
) -> Int[Tensor, " B"]:
    """Diffusion times (B,), int64, uniform on 1 … ``num_steps``."""
    if isinstance(generator, ShardedGenerator):
        return generator.integers(1, num_steps + 1, (rows,)).to(device)
    source = device if generator is None else generator.device
    drawn = torch.randint(1, num_steps + 1, (rows,), generator=generator, device=source)
    return drawn.to(device)


def truncated_geometric(uniforms: Tensor, gamma: float, limit: Tensor | float) -> Tensor:
    """Offsets Δt in {1, 2, …} with P(Δt = k) ∝ γ^(k−1), conditional on Δt ≤ ``limit``.

    Args:
        uniforms: numbers in [0, 1), any shape; float64 keeps the tail of a γ near 1.
        gamma: discount γ in [0, 1).
        limit: largest offset: a number, ``math.inf``, or a tensor that broadcasts.

    Returns:
        int64 offsets of the shape of ``uniforms``: the distribution function
        P(Δt ≤ k) = (1 − γ^k) / (1 − γ^limit), inverted.
    """
    limit = torch.as_tensor(limit, dtype=torch.float64, device=uniforms.device)
    log_gamma = math.log(gamma) if gamma > 0 else -math.inf
    # log1p and expm1 keep the digits that 1 − γ^limit loses where γ is near 1
    steps = torch.log1p(uniforms.double() * torch.expm1(limit * log_gamma)) / log_gamma
    return torch.minimum(steps.ceil().clamp(min=1.0), limit).long()
