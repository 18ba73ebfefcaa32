"""Acting every so many optimiser steps, at one place for all callbacks that do."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_offrl.callbacks.lookup import validation_follows


class EveryNSteps(Callback):
    """Calls ``act`` every N optimiser steps; on all other steps it does nothing.

    A step that ends with a validation is acted on after that, so that what is saved or evaluated
    there is the state that was validated.

    Attributes:
        interval: N, at least 1; None never acts.
        origin: The step that the others are multiples of N away from.
        acts_at_last: Whether the last step of the run counts whatever N is; if not, that step is
            left to the end of the run.
        waits_for_validation: Whether to act only after the validation that belongs to the step.
    """

    sees_calls = True
    interval: int | None = None
    origin = 0
    acts_at_last = True
    waits_for_validation = True
    _latest = -1
    _due: int | None = None
    """The step that is to be acted on, or whose action has not ended."""

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do what is due after the step that has just ended."""
        raise NotImplementedError

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The step that the run starts at was acted on by the run that it resumes."""
        super().on_train_start(trainer, pl_module)
        self._latest, self._due = trainer.global_step, None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Act if the step is due, or wait for the validation that belongs to it."""
        step = trainer.global_step
        if self.interval is None or step == self._latest:
            return  # gradients are still being accumulated
        if step == trainer.max_steps:
            if not self.acts_at_last:
                return
        elif (step - self.origin) % self.interval:
            return
        self._latest = self._due = step
        if not (self.waits_for_validation and validation_follows(trainer)):
            self.act_now(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act if the step before this validation was due."""
        if self._due is not None and not trainer.sanity_checking:
            self.act_now(trainer, pl_module)

    def act_now(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act, and forget that this was due once it is done."""
        self.act(trainer, pl_module)
        self._due = None
