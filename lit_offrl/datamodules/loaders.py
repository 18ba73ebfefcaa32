"""Batches of an epoch, and of rows that are the same each time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.views import BoundView


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
