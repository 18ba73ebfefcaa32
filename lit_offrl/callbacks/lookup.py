"""Small questions to a Trainer."""

from __future__ import annotations

from typing import Any, TypeVar

from lightning.pytorch import Callback, Trainer

T = TypeVar("T", bound=Callback)


def settings(trainer: Trainer) -> Any:
    """Return the Trainer, untyped: parts of it set attributes that type checkers do not see."""
    return trainer


def find_callback(trainer: Trainer, kind: type[T]) -> T | None:
    """Return the Trainer's callback of a kind, if it has one."""
    return next((c for c in settings(trainer).callbacks if isinstance(c, kind)), None)


def validation_follows(trainer: Trainer) -> bool:
    """Whether a validation comes before the next batch; to be called when a batch ends."""
    loop = trainer.fit_loop
    if loop._data_fetcher is None or not sum(trainer.num_val_batches):
        return False
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def steps_now(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a training batch ends with an optimiser step, not with gradients to add to."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0
