"""Loaders: iterables of ready batches, without workers, collation or copies.

Indexing tensors makes a batch faster than a worker process could hand one over, so a loader here
only decides which rows come when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_offrl.datasets.sampler import RowOrder
from lit_offrl.datasets.views import BoundView


class TrainLoader:
    """Endless training batches, cut into epochs for Lightning's sake.

    Where it begins depends on how many batches the run has trained on, and on nothing else: a
    resumed run asks at its first batch and goes on with the next one.

    Args:
        view: makes batches from rows.
        order: which rows a step takes, and its random numbers.
        length: batches in an epoch.
        batches_done: tells how many batches the run has trained on so far.
    """

    def __init__(
        self, view: BoundView, order: RowOrder, length: int, batches_done: Callable[[], int]
    ) -> None:
        self._view = view
        self._order = order
        self._length = length
        self._batches_done = batches_done

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        # Lightning makes iterators before it restores its counters: so the question is put at the
        # first batch (a generator's body runs at its first ``next``), not here.
        first = self._batches_done()
        for step in range(first, first + self._length - first % self._length):
            index = self._view.rows[self._order.rows(step)]
            yield self._view.batch(index, self._order.uniforms(step, self._view.num_uniforms))

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep; that there is this method tells Lightning that resuming is exact."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""


class FixedLoader:
    """The same batches in the same order each time, each row once over all processes.

    Every process gets equally many batches, since some strategies wait for each other in each;
    their sizes differ by one row at most.

    Args:
        view: makes batches from rows.
        batch_size: rows in a batch, at most.
        uniforms: float64 (n, k) on the view's device, one line a row of the view.
        rank: this process.
        world_size: number of processes.
        max_batches: takes so many batches a process at most, of rows spread over all of them.
    """

    def __init__(
        self,
        view: BoundView,
        batch_size: int,
        uniforms: Tensor,
        rank: int = 0,
        world_size: int = 1,
        max_batches: int | None = None,
    ) -> None:
        total = len(view.rows)
        taken = total
        if max_batches is not None:
            taken = min(total, max_batches * batch_size * world_size)
        chosen = np.arange(taken) * total // taken
        share = np.array_split(chosen, world_size)
        batches = max(1, -(-len(share[0]) // batch_size))  # the first share is the longest
        self._positions = [
            torch.from_numpy(part).to(view.rows.device)
            for part in np.array_split(share[rank], batches)
        ]
        self._view = view
        self._uniforms = uniforms

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Any]:
        for positions in self._positions:
            yield self._view.batch(self._view.rows[positions], self._uniforms[positions])
