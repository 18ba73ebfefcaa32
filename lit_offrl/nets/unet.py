"""A residual MLP in the shape of a U as a denoiser of latents: the diffusion prior of LDCQ."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.tracing import traced
from lit_offrl.nets.embeddings import NumberEmbedding, sinusoidal
from lit_offrl.nets.mlp import MLP, make_activation

_ROWS = 512  # rows of one pass on a CPU without gradients, whose features stay in its cache


class UBlock(nn.Module):
    """Wx + V act(LayerNorm(Ux + c)), where c is the block's share of time and condition."""

    def __init__(self, in_dim: int, out_dim: int, activation: str) -> None:
        super().__init__()
        self.first = nn.Linear(in_dim, 2 * out_dim)  # U and W in one product
        self.norm = nn.LayerNorm(out_dim)
        self.second = nn.Linear(out_dim, out_dim)
        self.activation = make_activation(activation)

    def forward(
        self, x: Float[Tensor, "*rows in"], c: Float[Tensor, "*#rows out"]
    ) -> Float[Tensor, "*rows out"]:
        """Map rows ``(…, in_dim)`` to ``(…, out_dim)``."""
        if traced() or len(c) > 1 or torch.is_grad_enabled():
            inner, around = self.first(x).chunk(2, dim=-1)
            return around + self.second(self.activation(self.norm(inner + c)))
        # One share for all rows is part of the bias, and products are added where they are made.
        (inner_weight, weight), (inner_bias, bias) = (
            self.first.weight.chunk(2),
            self.first.bias.chunk(2),
        )
        inner = torch.addmm(inner_bias + c[0], x, inner_weight.t())
        inner = self.activation(self.norm(inner))
        around = torch.addmm(bias + self.second.bias, x, weight.t())
        return torch.addmm(around, inner, self.second.weight.t())


class UResNetDenoiser(nn.Module):
    """A denoiser of vectors by 8 residual blocks, narrow in the middle (LDCQ, A.2.2).

    x_t → 128 → 32 → 16 → 8 → 16 → 32 → 128 → prediction. The output of a block on the way down is
    added to that of the block of the same width on the way up. Condition and time are encoded by
    two layers each and concatenated to the input of every block, so that each block adds a linear
    map of them. ``encode`` computes the condition's part in all blocks once per sampling call,
    ``times`` the time's part for the whole schedule.

    Rows may share conditions: with S encoded conditions for B = S · n rows, the rows are
    state-major and n candidates cost one encoding.

    Args:
        event_dim: Size of x_t.
        condition_dim: Size of a condition.
        diffusion_steps: Number T of diffusion steps.
        widths: Widths between the blocks, the same read backwards.
        width: Width of the two encoders.
        time_dim: Size of the time's sinusoidal features, even.
        activation: A name of `ACTIVATIONS`.

    Raises:
        ConfigError: The widths are not the same read backwards, or one is below 1.
    """

    angles: Tensor

    def __init__(
        self,
        event_dim: int,
        condition_dim: int,
        diffusion_steps: int,
        *,
        widths: Sequence[int] = (128, 32, 16, 8, 16, 32, 128),
        width: int = 256,
        time_dim: int = 256,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        widths = tuple(widths)
        if not widths or widths != widths[::-1] or min(widths) < 1:
            raise ConfigError(
                f"widths is {list(widths)}: give numbers of at least 1 that are the same read "
                "backwards."
            )
        self.diffusion_steps = diffusion_steps
        angles = sinusoidal(torch.arange(1, diffusion_steps + 1), time_dim)
        self.register_buffer("angles", angles, persistent=False)
        self.time = NumberEmbedding(time_dim)
        self.condition = nn.Sequential(
            MLP(condition_dim, (width,), width, activation, precise=False),
            make_activation(activation),
        )
        self.outs = (*widths, event_dim)
        self.from_time = nn.Linear(time_dim, sum(self.outs), bias=False)
        self.from_condition = nn.Linear(width, sum(self.outs), bias=False)
        self.blocks = nn.ModuleList(
            UBlock(before, after, activation) for before, after in pairwise((event_dim, *self.outs))
        )

    def encode(self, condition: Float[Tensor, "S c"]) -> Float[Tensor, "S total"]:
        """Return the conditions' part in all blocks, side by side."""
        dtype = self.from_condition.weight.dtype
        return self.from_condition(self.condition(condition.to(dtype)))

    def times(self, t: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B total"]:
        """Return the part of times ``t``, or of 1 … T if None, in all blocks."""
        angles = self.angles if t is None else self.angles.index_select(0, t - 1)
        return self.from_time(self.time.layers(angles))

    def denoise(
        self,
        x_t: Float[Tensor, "B event"],
        t: Int[Tensor, " B"],
        encoded: Float[Tensor, "S total"],
        times: Float[Tensor, "T total"] | None = None,
    ) -> Float[Tensor, "B event"]:
        """Predict ``(B, event)`` at times ``t`` in 1 … T for S conditions of B / S rows each.

        Args:
            x_t: Noisy rows, state-major.
            t: Their times; one that is expanded from one number, as samplers do, is looked up once.
            encoded: Result of ``encode``.
            times: Result of ``times()``; computed for these rows if None.
        """
        same = t.stride() == (0,)
        t = t[:1] if same else t
        late = self.times(t) if times is None else times.index_select(0, t - 1)
        rows, states = x_t.shape[0], encoded.shape[0]
        if not same and states < rows:  # each row has its own time, and so its own sum
            encoded = encoded.repeat_interleave(rows // states, dim=0)
        shares = encoded + late
        x = x_t.to(shares.dtype)
        if traced() or x.device.type != "cpu" or torch.is_grad_enabled():
            return self._run(x, shares)
        each = rows // len(shares)
        some = max(1, _ROWS // each)
        parts = zip(x.split(some * each), shares.split(some), strict=True)
        return torch.cat([self._run(*part) for part in parts])

    def forward(
        self, x_t: Float[Tensor, "B event"], t: Int[Tensor, " B"], condition: Float[Tensor, "S c"]
    ) -> Float[Tensor, "B event"]:
        """Predict from conditions that are not encoded yet."""
        return self.denoise(x_t, t, self.encode(condition))

    def _run(self, x: Tensor, shares: Tensor) -> Tensor:
        apart = traced() or 1 < len(shares) < len(x)
        if apart:
            x, shares = x.unflatten(0, (shares.shape[0], -1)), shares[:, None]
        kept: list[Tensor] = []
        down = (len(self.outs) - 1) // 2  # blocks of each way; an odd number leaves one between
        for number, (block, share) in enumerate(
            zip(self.blocks, shares.split(self.outs, dim=-1), strict=True)
        ):
            x = block(x, share)
            if number < down:
                kept.append(x)
            elif number >= len(self.outs) - 1 - down and kept:
                x = x + kept.pop()
        return x.flatten(0, 1) if apart else x
