"""Which rows training takes when: a pure function of (seed, step, rank, world size).

So a resumed run continues with the very next batch. Indexing tensors makes a batch faster than a
worker process could hand one over: the loader here has no workers, collation or copies.

stream   permutation of epoch 0 | permutation of epoch 1 | …        endless
step     [ rank 0 | rank 1 ][ rank 0 | rank 1 ] …                   B rows a rank
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.common.seeds import mix
from lit_offrl.datasets.rows import Spans
from lit_offrl.datasets.views.base import BoundView

# Keep the two streams of one seed apart.
_ORDER, _UNIFORMS = 0x0DE2, 0x0001F


class Draw(NamedTuple):
    """A rank's rows of steps, and their importance weights where they are not drawn equally."""

    rows: Int[Tensor, " B"]
    weights: Float[Tensor, " B"] | None


class Calls(Protocol):
    """Takes several batches at once, for what trains on all of them before it returns."""

    alone: bool
    """Whether it takes one at a time, now and later."""

    def take(self, most: int) -> int:
        """Return how many batches are wanted next, 1 to ``most``."""

    def split(self, rows: Any) -> Any:
        """Take the batches, whose rows follow one another; return the last."""


class Order(ABC):
    """Which rows, and which random numbers, each step trains on.

    All processes of a run cut the same stream: the blocks of the ranks, one after the other, are
    the batch of a single process with ``world_size * batch_size`` rows.

    Args:
        spans: Rows to take, such as those of a bound view; a number n means 0 … n−1.
        batch_size: Number B of rows that each rank takes in a step, at least 1.
        seed: Seed of the order.
        rank: Number of this process.
        world_size: Number of processes.
        device: Device of the rows and numbers that are returned; they are drawn on the CPU, so that
            they do not depend on it.

    Raises:
        ConfigError: There are no rows, the batch is empty or the rank does not exist.
    """

    def __init__(
        self,
        spans: Spans | int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        num_rows = spans if isinstance(spans, int) else len(spans)
        if num_rows < 1 or batch_size < 1:
            raise ConfigError(
                f"batches of {batch_size} rows out of {num_rows}: both must be at least 1."
            )
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is not one of {world_size} processes.")
        self.spans = Spans.first(spans) if isinstance(spans, int) else spans
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(device)

    @abstractmethod
    def draw(self, step: int, steps: int = 1) -> Draw:
        """Return this rank's rows of so many steps from one on, and their weights.

        The rows (steps · B,) follow one another, int64 on the device.
        """

    def uniforms(self, step: int, count: int, steps: int = 1) -> Float[Tensor, "B k"]:
        """Return float64 numbers (steps · B, count) in [0, 1) for this rank's rows of steps.

        Float64, since a float32 uniform has 2²⁴ values and would coarsen the tail of a geometric
        distribution with γ near 1.
        """
        size = (self.batch_size, count)
        if count == 0:
            return torch.empty(steps * size[0], 0, dtype=torch.float64, device=self.device)
        drawn = []
        for each in range(step, step + steps):
            generator = ShardedGenerator(
                self.seed, _UNIFORMS, each, rank=self.rank, world_size=self.world_size
            )
            drawn.append(generator.uniform(size, torch.float64))
        return torch.cat(drawn).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the step's number; usually nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state."""
        del state  # an order has none by default


class RowOrder(Order):
    """Every row once an epoch, in an order that depends only on the seed and the epoch."""

    _shuffled: tuple[int, Tensor] | None = None
    """The current epoch and its rows in order."""

    def draw(self, step: int, steps: int = 1) -> Draw:
        """Return this rank's rows (steps · B,), int64 on the device; all weigh the same."""
        return Draw(self.rows(step, steps), None)

    def rows(self, step: int, steps: int = 1) -> Int[Tensor, " B"]:
        """Return this rank's rows (steps · B,) of steps from one on, int64 on the device."""
        size = self.world_size * self.batch_size
        begin, end = step * size, (step + steps) * size
        pieces = []
        while begin < end:
            epoch, position = divmod(begin, self.num_rows)
            taken = min(end - begin, self.num_rows - position)
            pieces.append(self._epoch(epoch)[position : position + taken].long())
            begin += taken
        all_ranks = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return all_ranks.view(steps, self.world_size, -1)[:, self.rank].flatten()

    def _epoch(self, epoch: int) -> Tensor:
        """Return an epoch's rows in order, int32 where that holds them."""
        if self._shuffled is None or self._shuffled[0] != epoch:
            self._shuffled = None  # gives its memory back before the next one is made
            generator = torch.Generator().manual_seed(mix(self.seed, _ORDER, epoch))
            # The numbers of the permutation do not depend on the type.
            dtype = torch.int32 if self.spans.stop < 2**31 else torch.int64
            order = torch.randperm(self.num_rows, generator=generator, dtype=dtype)
            self.spans.replace(order)
            self._shuffled = epoch, order.to(self.device)
        return self._shuffled[1]


class TrainLoader:
    """Endless training batches, cut into epochs for Lightning's sake.

    Where it begins depends only on how many batches the run has trained on: a resumed run calls
    ``batches_done`` at its first batch and continues with the next one.

    Args:
        view: Makes batches from rows.
        order: Chooses the view's rows of each step, and their random numbers. Where it weighs rows,
            batches have the weights in their field ``weights``.
        length: Number of batches in an epoch that is not limited.
        batches_done: Returns how many batches the run has trained on so far.
        limit: Number of batches that the Trainer takes of an epoch; all by default.
        same: Whether each epoch has the same batches, random draws of the view included.
        calls: Says how many batches are wanted next, and takes all of them but the last; by default
            one at a time is given. Weighted rows have to be.
    """

    def __init__(
        self,
        view: BoundView,
        order: Order,
        length: int,
        batches_done: Callable[[], int],
        limit: int | None = None,
        same: bool = False,
        calls: Calls | None = None,
    ) -> None:
        self._view = view
        self._order = order
        self._length = length
        self._batches_done = batches_done
        self._limit = length if limit is None else limit
        self._same = same
        self._calls = calls

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        # Lightning makes iterators before it restores its counters. This runs at the first batch,
        # since a generator's body begins at its first ``next``.
        done = self._batches_done()
        end = done + self._limit - done % self._limit
        while done < end:
            calls = None if self._calls is None or self._calls.alone else self._calls
            count = 1 if calls is None else calls.take(end - done)
            first = done % self._limit if self._same else done
            batch = self._gather(first, count)
            done += count
            yield batch if calls is None or count == 1 else calls.split(batch)

    def _gather(self, step: int, steps: int) -> Any:
        """Return the batches of steps, one after another, as a single one."""
        rows, weights = self._order.draw(step, steps)
        uniforms = self._order.uniforms(step, self._view.num_uniforms, steps)
        batch = self._view.batch(rows, uniforms)
        return batch if weights is None else _weighted(batch, weights)

    def state_dict(self) -> dict[str, Any]:
        """There is nothing to keep; the method tells Lightning that resuming is exact."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to restore."""


def _weighted(batch: Any, weights: Tensor) -> Any:
    if "weights" not in batch._fields:
        raise ConfigError(
            f"a {type(batch).__name__} has no field for importance weights: rows can be drawn by "
            "priority only with the view Snippets."
        )
    return batch._replace(weights=weights)
