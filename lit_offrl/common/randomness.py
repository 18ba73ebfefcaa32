"""Random numbers as pure functions of (seed, step, …), the same for one process and for many.

Training draws nothing from global generators. Each step makes its numbers from a key, so a resumed
run continues with the numbers that the unbroken run would have drawn, and nothing about generators
has to be stored in a checkpoint.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
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


class GivenNoise:
    """Numbers for decisions that are given beforehand, in the place of the global generator's.

    A decision for E states takes the same count n of standard normal numbers for each of them, in
    the same order, whatever it draws them for: so it is a function of these numbers, which can be
    exported, or repeated. While ``used``, what draws from the global generator takes the next
    columns; an exponential number is −log Φ(−z) of one.

    Args:
        numbers: Standard normal (E, n).
        sizes: Counts of numbers a state that each draw takes, as ``CountedNoise`` has found them,
            for tracing, where E is a symbol that nothing can be counted by.

    Raises:
        ValueError: While drawing: n is too small.
    """

    def __init__(self, numbers: Tensor, sizes: Sequence[int] | None = None) -> None:
        self.numbers, self._known = numbers, sizes
        self.sizes: list[int] = []
        """Counts of numbers a state that each draw has taken."""
        self.differentiates = False
        """Whether decisions have taken gradients, see ``row_gradient``."""
        self.choices: list[tuple[Tensor, Tensor]] = []
        """Where choices that last for several decisions were due, (E,), and those, (E, …)."""

    def normal(self, shape: Sequence[int]) -> Tensor:
        """The next numbers for E states, of ``shape``, (E · k, …) or (E, …), state-major."""
        first = sum(self.sizes)
        if self._known is None:
            size = shape[0] // len(self.numbers) * math.prod(shape[1:])
        else:
            size = self._known[len(self.sizes)]
        self.sizes.append(size)
        return self._columns(first, size).reshape(tuple(shape))

    def _columns(self, first: int, size: int) -> Tensor:
        if first + size > self.numbers.shape[1]:
            raise ValueError(f"{self.numbers.shape[1]} numbers a state are too few: more are drawn")
        return self.numbers[:, first : first + size]

    @contextlib.contextmanager
    def used(self) -> Iterator[GivenNoise]:
        """Draw from these numbers instead of the global generator."""
        token = _GIVEN.set(self)
        try:
            yield self
        finally:
            _GIVEN.reset(token)


class CountedNoise(GivenNoise):
    """Numbers that are made as they are drawn, which finds out how many decisions take.

    Args:
        rows: Number E of states.
        device: Where the numbers are.
    """

    def __init__(self, rows: int, device: torch.device | str = "cpu") -> None:
        super().__init__(torch.empty(rows, 0, device=device))
        self._source = torch.Generator().manual_seed(0)

    def _columns(self, first: int, size: int) -> Tensor:
        shape = (len(self.numbers), size)
        return torch.randn(shape, generator=self._source).to(self.numbers.device)


_LEAST_WAIT = 2.0**-25  # what float32 tells apart from 0, which would choose what has probability 0
_GIVEN: ContextVar[GivenNoise | None] = ContextVar("given_noise", default=None)


def given_noise() -> GivenNoise | None:
    """Return the numbers that decisions draw from; None where the global generator makes them."""
    return _GIVEN.get()


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
    if generator is None and (given := _GIVEN.get()) is not None:
        return given.normal(shape).to(device, dtype)
    return _draw(torch.randn, shape, generator, device, dtype)


def draw_one(probabilities: Tensor) -> Tensor:
    """Draw an index (B,), int64, of each row of ``probabilities`` (B, N) by the global generator.

    The index of the least of N exponential waiting times with these rates, which is what
    ``torch.multinomial`` does, to the bit.
    """
    if (given := _GIVEN.get()) is None:
        waits = torch.empty_like(probabilities).exponential_()
    else:
        # by erf, which runtimes of exported graphs have, unlike its complement
        erf = torch.erf(given.normal(probabilities.shape).to(probabilities) * math.sqrt(0.5))
        waits = -torch.log(0.5 - 0.5 * erf).clamp(max=-_LEAST_WAIT)
    return (probabilities / waits).argmax(dim=1)


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
        uniforms: Numbers in [0, 1) of any shape. float64 keeps the tail of a γ near 1.
        gamma: Discount factor γ in [0, 1).
        limit: Largest offset: a number, ``math.inf``, or a tensor that broadcasts.

    Returns:
        int64 offsets of the shape of ``uniforms``: the distribution function
        P(Δt ≤ k) = (1 − γ^k) / (1 − γ^limit), inverted.
    """
    limit = torch.as_tensor(limit, dtype=torch.float64, device=uniforms.device)
    log_gamma = math.log(gamma) if gamma > 0 else -math.inf
    # log1p and expm1 keep the digits that 1 − γ^limit loses where γ is near 1
    steps = torch.log1p(uniforms.double() * torch.expm1(limit * log_gamma)) / log_gamma
    return torch.minimum(steps.ceil().clamp(min=1.0), limit).long()
