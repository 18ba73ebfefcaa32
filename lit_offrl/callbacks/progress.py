"""One bar for a whole fit."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class StepProgress(ProgressBar):
    """Counts optimiser steps of the run, also those before it was resumed; epochs are not shown.

    On a terminal the bar moves every half second, in a file there is a line now and then.
    """

    sees_calls = True

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None
        self._enabled = True

    def enable(self) -> None:
        """Show the bar, on the first process."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the bar."""
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            desc="fit",
            initial=trainer.global_step,
            total=trainer.max_steps if trainer.max_steps > 0 else None,
            unit="step",
            disable=not (self._enabled and trainer.is_global_zero),
            dynamic_ncols=on_terminal,
            mininterval=0.5 if on_terminal else 30.0,
            smoothing=0.05,
        )

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Move it."""
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave it as it is."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Leave it as it is, so that the error gets a line of its own."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
