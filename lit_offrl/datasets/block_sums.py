"""``BlockSums``: draws proportional to weights that keep changing, by tensor operations only.

blocks     [ 6.0 ................ | 5.5 ........ | … ]    N / BLOCK sums, added up for each draw
weights    [ 1, 3, 0, 2, … BLOCK  | 2, 3.5, …    | … ]    a block is summed again when it changes

Two levels, not the twenty of a binary sum-tree: at 10⁶ weights each takes some ten operations on
short rows, where what counts is how many operations there are. No rounding piles up.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 64
"""Weights in a block: for 10⁶ both levels of a draw of 256 are then as long."""


class BlockSums:
    """Weights (N,) with the sums of their blocks.

    Args:
        weights: (N,) ≥ 0, float64, on the device where it shall be.
    """

    def __init__(self, weights: Float[Tensor, " N"]) -> None:
        self._size = len(weights)
        padding = weights.new_zeros(-len(weights) % BLOCK)
        self._weights = torch.cat([weights, padding]).view(-1, BLOCK)
        self._blocks = self._weights.sum(1)

    @property
    def weights(self) -> Float[Tensor, " N"]:
        """The weights; not to be written."""
        return self._weights.view(-1)[: self._size]

    @property
    def total(self) -> Float[Tensor, ""]:
        """The sum of all weights."""
        return self._blocks.sum()

    def set(self, index: Int[Tensor, " B"], weights: Float[Tensor, " B"]) -> None:
        """Replace weights; of several for one index the largest holds, whatever their order."""
        set_largest(self._weights.view(-1), index, weights)
        block = index // BLOCK
        self._blocks[block] = self._weights.index_select(0, block).sum(1)

    def find(self, shares: Float[Tensor, " B"]) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
        """Return the first index up to which the weights exceed a share of their sum.

        Args:
            shares: Numbers in [0, 1], float64. Uniform numbers make draws proportional to the
                weights.

        Returns:
            (B,) int64 indices, never of weight 0 unless all are, and (B,) shares of the sum that
            their own weights have.
        """
        sums = self._blocks.cumsum(0)
        left = _below(shares * sums[-1], sums[-1])
        block = torch.searchsorted(sums, left, right=True).clamp(max=len(sums) - 1)
        left = left - sums[block] + self._blocks[block]
        weights = self._weights.index_select(0, block)
        inside = weights.cumsum(1)
        left = _below(left, inside[:, -1])
        at = torch.searchsorted(inside, left[:, None], right=True).clamp(max=BLOCK - 1)
        return block * BLOCK + at.squeeze(1), weights.gather(1, at).squeeze(1) / sums[-1]


def set_largest(
    values: Float[Tensor, " N"], index: Int[Tensor, " B"], new: Float[Tensor, " B"]
) -> None:
    """Write ``new`` ≥ 0 into ``values``; of several for one index the largest."""
    values[index] = 0.0
    values.scatter_reduce_(0, index, new, "amax")


def _below(values: Tensor, limit: Tensor) -> Tensor:
    """Undo what rounding may have done: into [0, limit), where the last that weighs is found."""
    return torch.minimum(values, limit.nextafter(torch.zeros_like(limit))).clamp(min=0.0)
