"""Stops a run at the first number that is not finite, before it reaches a weight."""

from __future__ import annotations

import math

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

    Raises:
        TrainingError: naming the column, loss or parameter group, the step and the last checkpoint.
    """

    sees_calls = True

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
        if not numbers or all(map(math.isfinite, torch.stack(numbers).tolist())):
            return
        place = f" (process {trainer.global_rank})" if trainer.world_size > 1 else ""
        raise TrainingError(
            f"{_culprit(pl_module, losses, optimizer)} is not finite at step {trainer.global_step}"
            f"{place}; the last good checkpoint is {last_checkpoint(trainer)}."
            " Lower the learning rate or the gradient clipping, or check the data's ranges."
        )


def _culprit(module: LightningModule, losses: dict[str, Tensor], optimizer: Optimizer) -> str:
    for name, column in getattr(getattr(module, "latest_batch", None), "_asdict", dict)().items():
        if isinstance(column, Tensor) and not bool(column.isfinite().all()):
            return f"column '{name}' of the batch"
    for name, loss in losses.items():
        if not bool(loss.isfinite()):
            return f"loss '{name}'"
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                return f"the gradient of '{group.get('name', number)}'"
    return "the norm of the gradients"
