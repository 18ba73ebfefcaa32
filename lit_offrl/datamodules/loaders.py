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
        # Lightning makes iterators before it restores its counters. This runs at the first batch,
        # since a generator's body begins at its first ``next``.
        done = self._batches_done()
        for number in range(done, done + self._limit - done % self._limit):
            step = number % self._limit if self._same else number
            index, weights = self._order.draw(step)
            batch = self._view.batch(index, self._order.uniforms(step, self._view.num_uniforms))
            yield batch if weights is None else _weighted(batch, weights)

    def state_dict(self) -> dict[str, Any]:
        """There is nothing to keep; the method tells Lightning that resuming is exact."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to restore."""


def batches_of_epoch(trainer: Any, length: int) -> tuple[int, bool]:
    """Return how many batches of an epoch are trained on, and whether they are always the same.

    Args:
        trainer: The Trainer, whose limits count; None has no limits.
        length: Number of batches in an epoch that is not limited.

    Raises:
        ConfigError: They make no whole number of optimiser steps.
    """
    if trainer is None or trainer.fast_dev_run:
        return length, False
    same = trainer.overfit_batches > 0
    name = "overfit_batches" if same else "limit_train_batches"
    most, accumulated = trainer.limit_train_batches, trainer.accumulate_grad_batches
    limit = min(length, most) if isinstance(most, int) else int(length * most)
    if limit % accumulated:
        raise ConfigError(
            f"trainer.{name} takes {limit} batches of an epoch, and trainer."
            f"accumulate_grad_batches is {accumulated}: give a multiple of that."
        )
    return max(1, limit), same


def _weighted(batch: Any, weights: Tensor) -> Any:
    if "weights" not in batch._fields:
        raise ConfigError(
            f"a {type(batch).__name__} has no field for importance weights: rows can be drawn by "
            "priority with the view Snippets alone."
        )
    return batch._replace(weights=weights)


class FixedLoader:
    """The same batches in the same order each time, each row once over all processes.

    Every process gets equally many batches, since processes may wait for each other in each batch;
    the sizes of batches differ by one row at most.

    Args:
        view: Makes batches from rows.
        batch_size: Largest number of rows in a batch.
        uniforms: Random numbers in [0, 1), float64 (n, k) on the view's device, for its n rows.
        rank: Number of this process.
        world_size: Number of processes.
        max_batches: Largest number of batches a process, of rows that are spread over all rows; all
            rows by default.
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
