"""The order of rows: a pure function of (seed, step, rank, world size), so resuming just goes on.

stream   permutation of epoch 0 | permutation of epoch 1 | …        endless
step     [ rank 0 | rank 1 ][ rank 0 | rank 1 ] …                   B rows a rank
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_offrl.errors import ConfigError
from lit_offrl.randomness import ShardedGenerator, mix

# Keep the two streams of one seed apart.
_ORDER, _UNIFORMS = 0x0DE2, 0x0001F


class RowOrder:
    """Which rows, and which random numbers, each step trains on.

    Every row comes once an epoch, in an order that depends on the seed and the epoch alone. All
    processes of a run cut the same stream: the blocks of the ranks, one after the other, are the
    batch of a single process with ``world_size * batch_size`` rows.

    Args:
        num_rows: n, rows in an epoch.
        batch_size: B, rows a rank takes in a step.
        seed: of the order.
        rank: this process.
        world_size: number of processes.
        device: where the rows and numbers are wanted; they are drawn on the CPU, so that they do
            not depend on it.

    Raises:
        ConfigError: if there are no rows, the batch is empty or the rank does not exist.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_rows < 1 or batch_size < 1:
            raise ConfigError(
                f"batches of {batch_size} rows out of {num_rows}: both must be at least 1."
            )
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is not one of {world_size} processes.")
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(device)
        self._permutations: dict[int, Tensor] = {}

    def rows(self, step: int) -> Int[Tensor, " B"]:
        """Return this rank's rows of a step: int64 positions in [0, num_rows)."""
        begin = (step * self.world_size + self.rank) * self.batch_size
        end = begin + self.batch_size
        pieces = []
        while begin < end:
            epoch, position = divmod(begin, self.num_rows)
            taken = min(end - begin, self.num_rows - position)
            pieces.append(self._permutation(epoch)[position : position + taken])
            begin += taken
        return torch.cat(pieces)

    def uniforms(self, step: int, count: int) -> Float[Tensor, "B k"]:
        """Return float64 numbers (B, count) in [0, 1) for this rank's rows of a step.

        Float64, since a float32 uniform has 2²⁴ values and would coarsen the tail of a geometric
        distribution with γ near 1.
        """
        generator = ShardedGenerator(
            self.seed, _UNIFORMS, step, rank=self.rank, world_size=self.world_size
        )
        return generator.uniform((self.batch_size, count), torch.float64).to(self.device)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._permutations:
            if len(self._permutations) > 1:  # a batch may straddle two epochs, seldom more
                self._permutations.clear()
            generator = torch.Generator().manual_seed(mix(self.seed, _ORDER, epoch))
            order = torch.randperm(self.num_rows, generator=generator)
            self._permutations[epoch] = order.to(self.device)
        return self._permutations[epoch]
