"""SIGTERM and SIGINT: finish the step, save, and leave with the signal's exit code."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_offrl.callbacks.lookup import steps_now, validation_follows
from lit_offrl.modules.base import OfflineModule

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ASKED = "lit_offrl/asked"  # in the processes' common store, once a signal has come to one of them


class Interrupted(SystemExit):
    """A signal asked to stop; raised between two steps or before the first, in all processes.

    Args:
        number: of the signal; the exit code is 128 more.
        step: optimiser steps taken.
        kept: what is, where there is no checkpoint.
    """

    def __init__(self, number: int, step: int, kept: str = "nothing saved") -> None:
        super().__init__(128 + number)
        self.number = number
        self.step = step
        self.kept = kept
        self.checkpoint: str | None = None

    def __str__(self) -> str:
        kept = f"saved {self.checkpoint}" if self.checkpoint else self.kept
        return f"stopped by {signal.Signals(self.number).name} after step {self.step}; {kept}."


class GracefulStop(Callback):
    """Turns the first SIGTERM or SIGINT into a checkpoint and an end; a second SIGINT ends at once.

    Lightning's own handler leaves with exit code 0, may stop half-way through accumulated
    gradients, and talks to the other processes from within the handler. Here the handler only takes
    a note; the processes agree at the step's end, where the checkpoint is exact. What takes long
    before the first step looks at the note itself, by the module's ``stopping``.
    """

    def __init__(self) -> None:
        self._received = 0
        self._before: dict[int, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the handlers that are there: right after this, Lightning puts its own in place."""
        self._received = 0
        if isinstance(pl_module, OfflineModule):
            pl_module.stopping = self
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen."""
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen."""
        self._listen()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop, unless the step has yet to be completed or validated."""
        if steps_now(trainer, batch_idx) and not validation_follows(trainer):
            self.stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the validation that belongs to the step."""
        if not trainer.sanity_checking:
            self.stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on nothing is left to save: leave at once."""

        def leave(number: int, frame: FrameType | None) -> None:
            raise Interrupted(number, trainer.global_step)

        for number in self._before:
            signal.signal(number, leave)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Do not let an impatient second signal spoil the checkpoint."""
        if isinstance(exception, Interrupted) and self._before:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen no more."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if isinstance(pl_module, OfflineModule):
            pl_module.stopping = None

    # ---- whether to stop -----------------------------------------------------------------------

    def asked(self, trainer: Trainer) -> bool:
        """Whether a signal has come, as far as this process knows; it does not wait for others."""
        if trainer.world_size == 1:
            return bool(self._received)
        store = torch.distributed.distributed_c10d._get_default_store()
        if self._received:
            store.set(_ASKED, "yes")
        return store.check([_ASKED])

    def stop_if_asked(self, trainer: Trainer, kept: str = "nothing saved") -> None:
        """Stop if a signal has come to any process; all must call this.

        Args:
            trainer: of the fit.
            kept: what is, where no checkpoint is saved.

        Raises:
            Interrupted: in all processes.
        """
        number = self._received
        if trainer.world_size > 1:  # a signal may have reached one process only
            told = torch.tensor(number, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
            number = int(told)
        if number:
            raise Interrupted(number, trainer.global_step, kept)

    def _listen(self) -> None:
        for number in self._before:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received:
            raise KeyboardInterrupt
        self._received = number
