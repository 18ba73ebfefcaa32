"""``SumTree``: draws proportional to weights that keep changing, by tensor operations alone.

level 2   [ 9.5 ............ ]          each entry is the sum of FAN entries below,
level 1   [ 4.0, 5.5, ...... ]          added up afresh when one of them changes, so that
level 0   [ 1, 3, 0, ... | 2, 3.5, ... ]    no rounding piles up
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

FAN = 32
"""Entries added into one: fewer make more levels, more make longer sums; 32 measured fastest."""


class SumTree:
    """Weights (N,) with their sums; a draw or an update takes a handful of operations a level.

    Args:
        weights: (N,) ≥ 0, float64, on the device where it shall be.
    """

    def __init__(self, weights: Float[Tensor, " N"]) -> None:
        self._size = len(weights)
        self._levels: list[Tensor] = []  # (blocks, FAN) each, from the weights up
        below = weights
        while True:
            padding = below.new_zeros(-len(below) % FAN)
            level = torch.cat([below, padding]).view(-1, FAN)
            self._levels.append(level)
            if len(level) == 1:
                break
            below = level.sum(1)

    def __len__(self) -> int:
        return self._size

    @property
    def weights(self) -> Float[Tensor, " N"]:
        """The weights; not to be written."""
        return self._levels[0].view(-1)[: self._size]

    @property
    def total(self) -> Float[Tensor, ""]:
        """The sum of all weights."""
        return self._levels[-1].sum()

    def set(self, index: Int[Tensor, " B"], weights: Float[Tensor, " B"]) -> None:
        """Replace weights; of several for one index the largest holds, whatever their order."""
        leaves = self._levels[0].view(-1)
        leaves[index] = 0.0
        leaves.scatter_reduce_(0, index, weights, "amax")
        for below, above in zip(self._levels, self._levels[1:], strict=False):
            index = index // FAN
            above.view(-1)[index] = below.index_select(0, index).sum(1)

    def find(self, shares: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Return the first index up to which the weights exceed a share of their sum.

        Args:
            shares: in [0, 1), float64: uniform numbers make draws proportional to the weights.

        Returns:
            (B,) int64; never one of weight 0, unless all are.
        """
        node = torch.zeros_like(shares, dtype=torch.int64)
        left = shares * self.total
        for level in reversed(self._levels):
            block = level.index_select(0, node)
            sums = block.cumsum(1)
            # Rounding may leave more than the block's sum: then the last that weighs something.
            last = sums[:, -1].nextafter(torch.zeros_like(left))
            left = torch.minimum(left, last)[:, None]
            chosen = torch.searchsorted(sums, left, right=True).clamp(max=FAN - 1)
            left = (left - sums.gather(1, chosen) + block.gather(1, chosen)).squeeze(1)
            left = left.clamp(min=0.0)
            node = node * FAN + chosen.squeeze(1)
        return node
