"""The one place from which a fit's metrics reach loggers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lit_offrl.callbacks.checkpoints import Checkpoints
from lit_offrl.callbacks.every import EveryNSteps
from lit_offrl.callbacks.lookup import find_callback, settings
from lit_offrl.common.files import write_whole
from lit_offrl.evaluation.record import present_names

CURVES_FILE = "curves.csv"
"""In the run's folder: every metric that was logged, one ``step,metric,value`` a line."""


class Curves(EveryNSteps):
    """Keeps and logs metrics by optimiser step, and keeps them in the checkpoint.

    Lightning logs by a counter of its own, after checkpoints are written; a run killed in between
    would lose a point. Here a step's point is part of the checkpoint of that step, so a resumed run
    has the whole curve and no hole. ``curves.csv`` in the run's folder has the same points while
    the fit runs; a resumed fit first takes those out that its checkpoint does not have.

    Metrics of training are taken every ``trainer.log_every_n_steps`` steps (each logging call costs
    MLflow about 5 ms), and at the last step.
    """

    waits_for_validation = False

    def __init__(self) -> None:
        self.history: dict[str, list[tuple[int, float]]] = {}

    def record(self, trainer: Trainer, values: Mapping[str, Any]) -> None:
        """Add metrics of the step at hand and log them."""
        if not trainer.is_global_zero or not values:
            return
        tensors = [torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in values.values()]
        numbers = dict(zip(values, torch.stack(tensors).tolist(), strict=True))
        step = trainer.global_step
        for name, number in numbers.items():
            self.history.setdefault(name, []).append((step, number))
        path = _file(trainer)
        if path is not None:
            with contextlib.suppress(OSError), path.open("a") as file:  # the checkpoint has them
                file.writelines(f"{step},{name},{number!r}\n" for name, number in numbers.items())
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log as often as the Trainer's options say, and write what has been logged so far."""
        super().on_train_start(trainer, pl_module)
        self.interval = max(1, settings(trainer).log_every_n_steps)
        path = _file(trainer)
        if path is not None and trainer.is_global_zero:
            points = ((s, name, v) for name, line in self.history.items() for s, v in line)
            lines = (f"{step},{name},{value!r}\n" for step, name, value in sorted(points))
            write_whole(path, "step,metric,value\n" + "".join(lines))

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the metrics of this very training step.

        The Trainer's own dictionary also holds what an earlier step logged last, such as the loss
        of a network that has finished training.
        """
        self.record(trainer, getattr(pl_module, "latest_metrics", {}))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the metrics of the last validation.

        The Trainer keeps a loss that the module has no more, such as that of a network which rests,
        and would show it to early stopping and to the curves as if it had been measured again; a
        resumed run has no such memory.
        """
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            kept = trainer.callback_metrics
            for name in [name for name in kept if name.startswith("val/")]:
                del kept[name]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the metrics of a validation during fit."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            metrics = trainer.callback_metrics.items()
            self.record(trainer, {k: v for k, v in metrics if k.startswith("val/")})

    def state_dict(self) -> dict[str, Any]:
        """The history so far, in plain types."""
        return {"history": {name: [list(p) for p in line] for name, line in self.history.items()}}

    def on_save_checkpoint(self, trainer: Trainer, *args: Any) -> None:
        """What loggers of files still hold back is written before the checkpoint that has it."""
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the history back."""
        history = present_names(state_dict["history"])
        self.history = {name: [(s, v) for s, v in line] for name, line in history.items()}


def record_metrics(trainer: Trainer, values: Mapping[str, Any]) -> None:
    """Add metrics of the step at hand to the Trainer's curves."""
    curves = find_callback(trainer, Curves)
    if curves is not None:
        curves.record(trainer, values)


def _file(trainer: Trainer) -> Path | None:
    checkpoints = find_callback(trainer, Checkpoints)
    if checkpoints is None or not checkpoints.dirpath or settings(trainer).fast_dev_run:
        return None
    return Path(checkpoints.dirpath) / CURVES_FILE
