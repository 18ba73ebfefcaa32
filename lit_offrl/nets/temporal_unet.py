"""Convolutions over time: a denoiser of windows in the shape of a U, and a value of windows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.tracing import traced
from lit_offrl.nets.embeddings import sinusoidal
from lit_offrl.nets.mlp import Mish

_GROUPS = 8  # of GroupNorm
_KERNEL = 5
_SHORT, _MANY = 4, 32  # steps, and rows, of a window for which a matrix is faster on a CPU


class _Layer:
    """A convolution that is one matrix product over all steps of short windows.

    At four steps half of what the five taps see is padding, and a CPU sorts the weights anew in
    each call. So where many windows are planned by frozen weights, on a CPU, the layer's matrix is
    made once, and again when the weights have changed.
    """

    weight: Tensor
    bias: Any
    _matrix: tuple[tuple[int, int, int], Tensor] | None = None

    def forward(self, x: Float[Tensor, "B before L"]) -> Float[Tensor, "B after _"]:
        """Map ``(B, before, L)`` to ``(B, after, L')``."""
        convolve = super().forward  # type: ignore[misc]
        if traced() or x.device.type != "cpu" or self.weight.requires_grad:
            return convolve(x)
        if x.shape[2] > _SHORT or len(x) < _MANY:
            return convolve(x)
        made_of = (id(self.weight), self.weight._version, x.shape[2])
        if self._matrix is None or self._matrix[0] != made_of:
            # plans outlive inference mode, whose tensors have no gradients later
            with torch.inference_mode(False), torch.no_grad():
                one_hot = torch.eye(x[0].numel(), dtype=self.weight.dtype).view(-1, *x.shape[1:])
                matrix = (convolve(one_hot) - self.bias[:, None]).flatten(1)
            self._matrix = (made_of, matrix)
        matrix = self._matrix[1]
        bias = self.bias.repeat_interleave(matrix.shape[1] // len(self.bias))
        return torch.addmm(bias, x.flatten(1), matrix).unflatten(1, (len(self.bias), -1))


class Conv(_Layer, nn.Conv1d):
    """``nn.Conv1d``, see ``_Layer``."""


class TransposedConv(_Layer, nn.ConvTranspose1d):  # type: ignore[misc]
    """``nn.ConvTranspose1d``, see ``_Layer``."""


class ConvBlock(nn.Module):
    """Mish(GroupNorm(Conv(x))), over 5 steps and in 8 groups of channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = Conv(before, after, _KERNEL, padding=_KERNEL // 2)
        self.norm = nn.GroupNorm(_GROUPS, after)
        self.activation = Mish()

    def forward(self, x: Float[Tensor, "B before L"]) -> Float[Tensor, "B after L"]:
        """Map ``(B, before, L)`` to ``(B, after, L)``."""
        return self.activation(self.norm(self.conv(x)))


class TemporalBlock(nn.Module):
    """second(first(x) + c) + Wx, where c is the block's share of time and condition."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.width = after
        self.first = ConvBlock(before, after)
        self.second = ConvBlock(after, after)
        self.around = nn.Identity() if before == after else Conv(before, after, 1)

    def forward(
        self, x: Float[Tensor, "B before L"], c: Float[Tensor, "_ after"]
    ) -> Float[Tensor, "B after L"]:
        """Map ``(B, before, L)`` to ``(B, after, L)``."""
        return self.second(self.first(x) + c[:, :, None]) + self.around(x)


class Temporal(nn.Module):
    """What both networks share: the shares of time and condition in all blocks, side by side.

    Time t and, where there is one, the condition have an embedding each. Each block adds a linear
    map of the two, one product for all blocks. ``times`` gives those of the whole schedule, once
    for a sampling call, and ``encode`` those of conditions; a condition that is dropped adds 0.

    Args:
        event_dim: Size e of a step of a window.
        diffusion_steps: Number T of diffusion steps.
        condition_dim: Size c of a condition; 0 without.
        width: Number of channels at the first level, a multiple of 8.
        multipliers: Channels of each level as multiples of ``width``, at least one; each level
            but the first has half as many steps as the one before.

    Raises:
        ConfigError: The widths cannot be.
    """

    angles: Tensor

    def __init__(
        self,
        event_dim: int,
        diffusion_steps: int,
        *,
        condition_dim: int = 0,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4, 8),
    ) -> None:
        super().__init__()
        if width < 1 or width % _GROUPS or not multipliers or min(multipliers) < 1:
            raise ConfigError(
                f"width is {width} and multipliers {list(multipliers)}: give a multiple of "
                f"{_GROUPS}, and whole numbers of at least 1."
            )
        self.levels = [width * multiplier for multiplier in multipliers]
        angles = sinusoidal(torch.arange(diffusion_steps), width)
        self.register_buffer("angles", angles, persistent=False)
        self.time = nn.Sequential(
            nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width)
        )
        self.condition: nn.Module | None = None
        if condition_dim:
            self.condition = nn.Sequential(
                *(nn.Linear(condition_dim, width), nn.Mish()),
                *(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width)),
            )

    def share(self, blocks: Iterable[Any]) -> None:
        """Make the maps of time and condition to what each ``TemporalBlock`` adds."""
        self.shares: list[int] = [block.width for block in blocks]
        width = self.angles.shape[1]
        self.from_time = nn.Linear(width, sum(self.shares))
        if self.condition is not None:
            self.from_condition = nn.Linear(width, sum(self.shares), bias=False)

    def encode(self, condition: Float[Tensor, "S c"]) -> Float[Tensor, "S total"]:
        """Return the conditions' share in all blocks; zeros are that of a dropped one."""
        assert self.condition is not None  # with condition_dim
        hidden = self.condition(condition.to(self.from_condition.weight.dtype))
        return self.from_condition(F.mish(hidden))

    def times(self, t: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B total"]:
        """Return the share of times ``t``, or of 1 … T if None, in all blocks."""
        return self.from_time(F.mish(self.embed(t)))

    def embed(self, t: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B width"]:
        """Return the embeddings of times ``t``, or of 1 … T if None."""
        angles = self.angles if t is None else self.angles.index_select(0, t - 1)
        return self.time(angles.to(self.from_time.weight.dtype))

    def late(self, t: Tensor, times: Tensor | None, encoded: Tensor | None) -> Tensor:
        """Return all shares of rows at times t (B,), (B, total), or (1, total) where all agree."""
        t = t[:1] if t.stride() == (0,) else t  # samplers expand one number
        found = self.times(t) if times is None else times.index_select(0, t - 1)
        return found if encoded is None else found + encoded


class TemporalUNet(Temporal):
    """A denoiser of windows of H steps by convolutions over time (Janner et al. 2022, app. C).

    Two residual blocks a level on the way down, each level half as long as the one before, two in
    the middle, and two a level on the way up, which see what the way down left at that level.

    Args:
        event_dim: Size e of a step of a window.
        horizon: Number H of steps of a window, a multiple of 2 to the number of levels − 1.
        *args: T, as in ``Temporal``.
        **kwargs: Condition and widths, as in ``Temporal``.

    Raises:
        ConfigError: The widths cannot be, or do not go with the horizon.
    """

    def __init__(self, event_dim: int, horizon: int, *args: int, **kwargs: Any) -> None:
        super().__init__(event_dim, *args, **kwargs)
        halvings = len(self.levels) - 1
        if horizon < 1 or horizon % 2**halvings:
            raise ConfigError(
                f"horizon is {horizon}: give a multiple of {2**halvings}, as {halvings + 1} levels "
                f"(multipliers) halve it {halvings} times."
            )
        self.down, self.shorten = nn.ModuleList(), nn.ModuleList()
        for before, after in pairwise([event_dim, *self.levels]):
            self.down += [TemporalBlock(before, after), TemporalBlock(after, after)]
        for width in self.levels[:-1]:
            self.shorten.append(Conv(width, width, 3, stride=2, padding=1))
        deepest = self.levels[-1]
        self.middle = nn.ModuleList(TemporalBlock(deepest, deepest) for _ in range(2))
        self.up, self.lengthen = nn.ModuleList(), nn.ModuleList()
        for before, after in pairwise(self.levels[::-1]):
            self.up += [TemporalBlock(2 * before, after), TemporalBlock(after, after)]
            self.lengthen.append(TransposedConv(after, after, 4, stride=2, padding=1))
        first = self.levels[0]
        self.last = nn.Sequential(ConvBlock(first, first), Conv(first, event_dim, 1))
        self.share([*self.down, *self.middle, *self.up])

    def denoise(
        self,
        x_t: Float[Tensor, "B H e"],
        t: Int[Tensor, " B"],
        encoded: Float[Tensor, "S total"] | None = None,
        times: Float[Tensor, "T total"] | None = None,
    ) -> Float[Tensor, "B H e"]:
        """Predict (B, H, e) at times ``t`` in 1 … T.

        Args:
            x_t: Noisy windows.
            t: Their times; one that is expanded from one number, as samplers do, is looked up once.
            encoded: Result of ``encode``, of B rows or of one; nothing is added if None.
            times: Result of ``times()``; computed for these rows if None.
        """
        shares = iter(self.late(t, times, encoded).split(self.shares, dim=1))
        x = x_t.to(self.from_time.weight.dtype).transpose(1, 2)
        kept: list[Tensor] = []
        for level in range(len(self.levels)):
            for block in self.down[2 * level : 2 * level + 2]:
                x = block(x, next(shares))
            if level < len(self.shorten):
                kept.append(x)
                x = self.shorten[level](x)
        skip = x
        for block in self.middle:
            x = block(x, next(shares))
        for level, lengthen in enumerate(self.lengthen):
            x = torch.cat([x, skip], dim=1)
            for block in self.up[2 * level : 2 * level + 2]:
                x = block(x, next(shares))
            x, skip = lengthen(x), kept.pop()
        return self.last(x).transpose(1, 2)


class TemporalValue(Temporal):
    """A number for each window of H steps: the way down of the U, two more levels, and an MLP.

    Args:
        event_dim: Size e of a step of a window.
        horizon: Number H of steps of a window, at least 1.
        *args: T, as in ``Temporal``.
        **kwargs: Condition and widths, as in ``Temporal``; the last level has at least 32 channels.

    Raises:
        ConfigError: The widths cannot be.
    """

    def __init__(self, event_dim: int, horizon: int, *args: int, **kwargs: Any) -> None:
        super().__init__(event_dim, *args, **kwargs)
        deepest = self.levels[-1]
        if deepest % (4 * _GROUPS):
            raise ConfigError(
                f"the last level has {deepest} channels, which the value halves twice: give width "
                f"and multipliers of which the last makes a multiple of {4 * _GROUPS}."
            )
        self.blocks, self.shorten = nn.ModuleList(), nn.ModuleList()
        self.runs = [2] * len(self.levels) + [1, 1]  # blocks before each shortening
        for before, after in pairwise([event_dim, *self.levels]):
            self.blocks += [TemporalBlock(before, after), TemporalBlock(after, after)]
        self.blocks.append(TemporalBlock(deepest, deepest // 2))
        self.blocks.append(TemporalBlock(deepest // 2, deepest // 4))
        for width in (*self.levels, deepest // 2, deepest // 4):
            self.shorten.append(Conv(width, width, 3, stride=2, padding=1))
            horizon = (horizon + 1) // 2
        flat = deepest // 4 * horizon
        self.head = nn.Linear(flat, flat // 2)
        self.head_time = nn.Linear(self.angles.shape[1], flat // 2, bias=False)
        self.out = nn.Sequential(nn.Mish(), nn.Linear(flat // 2, 1))
        self.share(self.blocks)
        self.shares.append(flat // 2)

    def times(self, t: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B total"]:
        """Return the share of times ``t``, or of 1 … T if None, in all blocks and in the head."""
        embedded = self.embed(t)
        return torch.cat([self.from_time(F.mish(embedded)), self.head_time(embedded)], dim=1)

    def forward(
        self,
        x_t: Float[Tensor, "B H e"],
        t: Int[Tensor, " B"],
        times: Float[Tensor, "T total"] | None = None,
    ) -> Float[Tensor, " B"]:
        """Predict the values (B,) of noisy windows at times ``t`` in 1 … T.

        Args:
            x_t: Noisy windows.
            t: Their times; one that is expanded from one number is looked up once.
            times: Result of ``times()``; computed for these rows if None.
        """
        shares = iter(self.late(t, times, None).split(self.shares, dim=1))
        x = x_t.to(self.from_time.weight.dtype).transpose(1, 2)
        blocks = iter(self.blocks)
        for run, shorten in zip(self.runs, self.shorten, strict=True):
            for _ in range(run):
                x = next(blocks)(x, next(shares))
            x = shorten(x)
        return self.out(self.head(x.flatten(1)) + next(shares)).squeeze(1)
