"""The two kinds of random numbers diffusion needs, from whichever generator the caller has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from lit_offrl.common.randomness import ShardedGenerator

Generator = ShardedGenerator | torch.Generator | None
"""Where draws come from; None is PyTorch's global generator. One that lives on the device of the
result avoids a copy (and so a wait for the device) at every draw."""


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
    source = device if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, device=source, dtype=dtype).to(device)


def draw_times(
    rows: int, num_steps: int, generator: Generator, *, device: torch.device | str
) -> Int[Tensor, " B"]:
    """Diffusion times (B,), int64, uniform on 1 … ``num_steps``."""
    if isinstance(generator, ShardedGenerator):
        return generator.integers(1, num_steps + 1, (rows,)).to(device)
    source = device if generator is None else generator.device
    drawn = torch.randint(1, num_steps + 1, (rows,), generator=generator, device=source)
    return drawn.to(device)
