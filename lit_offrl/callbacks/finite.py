"""Stops a run at the first number that is not finite, before it reaches a weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lit_offrl.common.errors import TrainingError
from lit_offrl.modules.base import last_checkpoint


class FiniteGuard(Callback):
    """Looks at losses and gradients before each optimiser step; one device synchronisation a step.

    NaN or infinity in a batch shows in its losses and gradients, so the columns are searched only
    once something was found. The weights are still those of the last step; whether they are finite,
    too, the module sees when it is saved.

    Steps that are captured as CUDA graphs cannot wait for the device. They note on it what they
    find, and once they are done one look at the notes ends the run before anything is saved.

    Attributes:
        noting: Whether steps note what they find.

    Raises:
        TrainingError: naming the column, loss or parameter group, the step and the last checkpoint.
    """

    sees_calls = True

    def __init__(self) -> None:
        self.noting = False
        self._first: dict[tuple[str, ...], Tensor] = {}
        """In which of the steps that note each number was not finite first, by their names."""
        self._steps: Tensor | None = None
        """How many have noted so far."""

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Check."""
        losses: dict[str, Tensor] = getattr(pl_module, "latest_losses", {})
        numbers = list(losses.values())
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if gradients and not scaled:  # in float16 an overflow is the scaler's to handle
            numbers += torch._foreach_norm(gradients)
        if not numbers:
            return
        found = torch.stack(numbers)
        if self.noting:
            self._note(found, _names(losses, optimizer))
        elif not all(map(math.isfinite, found.tolist())):
            column = _column(getattr(pl_module, "latest_batch", None))
            culprit = column or _culprit(losses, optimizer)
            raise _error(culprit, trainer.global_step, trainer)

    def _note(self, found: Tensor, names: tuple[str, ...]) -> None:
        if self._steps is None:
            self._steps = found.new_zeros(())
        if names not in self._first:
            self._first[names] = torch.full_like(found, math.inf)
        first = self._first[names]
        first.copy_(torch.where(found.isfinite(), first, torch.minimum(first, self._steps)))
        self._steps.add_(1)

    def look_back(
        self, trainer: Trainer, pl_module: LightningModule, batches: Sequence[Any]
    ) -> None:
        """Judge what the last steps, one a batch, have noted."""
        if self._steps is None or not batches:
            return
        noted = torch.cat([*self._first.values()]).tolist()
        for first in self._first.values():
            first.fill_(math.inf)
        self._steps.zero_()
        if (step := min(noted)) < math.inf:
            names = [name for names in self._first for name in names]
            culprit = _column(batches[int(step)]) or names[noted.index(step)]
            raise _error(culprit, trainer.global_step - len(batches) + int(step), trainer)


def _error(culprit: str, step: int, trainer: Trainer) -> TrainingError:
    place = f" (process {trainer.global_rank})" if trainer.world_size > 1 else ""
    return TrainingError(
        f"{culprit} is not finite at step {step}{place}; the last good checkpoint is "
        f"{last_checkpoint(trainer)}. Lower the learning rate or the gradient clipping, or check "
        "the data's ranges."
    )


def _column(batch: Any) -> str | None:
    for name, column in getattr(batch, "_asdict", dict)().items():
        if isinstance(column, Tensor) and not bool(column.isfinite().all()):
            return f"column '{name}' of the batch"
    return None


def _names(losses: dict[str, Tensor], optimizer: Optimizer) -> tuple[str, ...]:
    """What numbers are of: losses, and norms of the gradients that there are."""
    gradients = (
        f"the gradient of '{group.get('name', number)}'"
        for number, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
        if parameter.grad is not None
    )
    return (*(f"loss '{name}'" for name in losses), *gradients)


def _culprit(losses: dict[str, Tensor], optimizer: Optimizer) -> str:
    for name, loss in losses.items():
        if not bool(loss.isfinite()):
            return f"loss '{name}'"
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                return f"the gradient of '{group.get('name', number)}'"
    return "the norm of the gradients"
