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

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.sampler import Order
from lit_offrl.datasets.views import BoundView


class TrainLoader:
    """Endless training batches, cut into epochs for Lightning's sake.

    Where it begins depends on how many batches the run has trained on, and on nothing else: a
    resumed run asks at its first batch and goes on with the next one.

    Args:
        view: makes batches from rows.
        order: which of the view's rows a step takes, and its random numbers. Where it weighs rows,
            batches carry the weights in their field ``weights``.
        length: batches in an epoch that is not limited.
        batches_done: tells how many batches the run has trained on so far.
        limit: batches that the Trainer takes of an epoch; all by default.
        same: gives the very same batches in each epoch, random draws of the view included.
    """

    def __init__(
        self,
        view: BoundView,
        order: Order,
        length: int,
        batches_done: Callable[[], int],
        limit: int | None = None,
        same: bool = False,
    ) -> None:
        self._view = view
        self._order = order
        self._length = length
        self._batches_done = batches_done
        self._limit = length if limit is None else limit
        self._same = same

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        # Lightning makes iterators before it restores its counters: so the question is put at the
        # first batch (a generator's body runs at its first ``next``), not here.
        done = self._batches_done()
        for number in range(done, done + self._limit - done % self._limit):
            step = number % self._limit if self._same else number
            index, weights = self._order.draw(step)
            batch = self._view.batch(index, self._order.uniforms(step, self._view.num_uniforms))
            yield batch if weights is None else _weighted(batch, weights)

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep; that there is this method tells Lightning that resuming is exact."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""


def _weighted(batch: Any, weights: Tensor) -> Any:
    if "weights" not in batch._fields:
        raise ConfigError(
            f"a {type(batch).__name__} has no field for importance weights: rows can be drawn by "
            "priority with the view Snippets alone."
        )
    return batch._replace(weights=weights)


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
        total = len(view.spans)
        taken = total
        if max_batches is not None:
            taken = min(total, max_batches * batch_size * world_size)
        chosen = np.arange(taken) * total // taken
        share = np.array_split(chosen, world_size)
        batches = max(1, -(-len(share[0]) // batch_size))  # the first share is the longest
        positions = torch.from_numpy(share[rank])
        self._parts = [
            (uniforms[at.to(uniforms.device)], view.spans.at(at).to(view.device))
            for at in positions.tensor_split(batches)
        ]
        self._view = view

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Any]:
        for uniforms, index in self._parts:
            yield self._view.batch(index, uniforms)
