"""Signals in a fit: finish the step, save, and leave with the signal's exit code."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.connectors.signal_connector import (
    _HandlersCompose,
    _SignalConnector,
)

from lit_offrl.callbacks.checkpoints import Checkpoints
from lit_offrl.callbacks.lookup import find_callback, settings, steps_now, validation_follows
from lit_offrl.common import signals
from lit_offrl.common.errors import LitOffRLError
from lit_offrl.common.signals import Interrupted
from lit_offrl.modules.base import OfflineModule

_ASKED = "lit_offrl/asked"  # key in the processes' common store, set once one gets a signal
_CLOSING_SECONDS = 10.0  # for loggers, which have limits of their own: a machine may be overloaded
_LOOK_SECONDS = 0.2  # how often the store is read during roll-outs


class GracefulStop(Callback):
    """Turns the first SIGTERM, SIGINT or SIGUSR1 into a checkpoint and an end.

    Before the first step, in roll-outs and after the last step, the signal stops the fit wherever
    it is. From the first step to the last it is noted: the processes agree at the step's end (after
    the validation that belongs to it), where the checkpoint is exact. A second signal ends the
    process at once. What takes long before the first step looks at the note itself, by the module's
    ``stopping``.
    """

    sees_calls = True

    def __init__(self) -> None:
        self._listening = ExitStack()
        self._holding = False
        self._begun = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen, where no command does so already, and let the module look for signals."""
        self._begun = False
        if stage == "fit":
            self._listening.enter_context(signals.listening())
            leave_signals_to_us(trainer)
            if isinstance(pl_module, OfflineModule):
                pl_module.stopping = self

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """From the first step on signals wait for the end of a step."""
        self._begun = True
        if not self._holding:
            signals.hold()
            self._holding = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop, unless the step has yet to be completed or validated."""
        if trainer.world_size == 1 and not signals.state.received:
            return
        if steps_now(trainer, batch_idx) and not validation_follows(trainer):
            self.stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the validation that belongs to the step, which may have been the best."""
        if trainer.sanity_checking or not (number := self._agreed(trainer)):
            return
        checkpoints = find_callback(trainer, Checkpoints)
        if checkpoints is not None:
            checkpoints.on_validation_end(trainer, pl_module)
        raise Interrupted(number, trainer.global_step, agreed=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on nothing is left to save."""
        self.end_training(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save, where the weights are between two steps; then leave in seconds."""
        if isinstance(exception, Interrupted):
            exception.step = trainer.global_step
            checkpoints = find_callback(trainer, Checkpoints)
            if not self._begun:
                exception.kept = exception.kept or "no new step to save"
            elif checkpoints is not None:
                try:
                    if exception.agreed or trainer.world_size == 1:
                        checkpoints.save_now(trainer)
                except LitOffRLError as error:
                    exception.kept = f"nothing saved: {str(error).rstrip('.')}"
                else:
                    exception.checkpoint = checkpoints.last_model_path or None
            signals.end_within(_CLOSING_SECONDS)
        self._leave(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen no more."""
        self._leave(pl_module)

    def _leave(self, pl_module: LightningModule) -> None:
        self._let_go()
        self._listening.close()
        if isinstance(pl_module, OfflineModule):
            pl_module.stopping = None

    def _let_go(self) -> None:
        if self._holding:
            signals.release()
            self._holding = False

    # ---- whether to stop -----------------------------------------------------------------------

    def end_training(self, trainer: Trainer) -> None:
        """Save the last step, stop if a signal came before, and from here on stop at once.

        All processes must call this; only the first call does anything.

        Raises:
            Interrupted: in all processes.
        """
        if not self._holding:
            return
        checkpoints = find_callback(trainer, Checkpoints)
        if checkpoints is not None:
            checkpoints.save_now(trainer)
        self.stop_if_asked(trainer)
        self._let_go()

    @contextmanager
    def rolling_out(self, trainer: Trainer) -> Iterator[Callable[[], int]]:
        """Let roll-outs between two steps be stopped within them.

        One process is stopped wherever it is. Several have to leave together: what is given says
        between two steps of the environments whether to stop, by the number of a signal or 0.
        """
        if trainer.world_size == 1:
            with signals.at_once():
                yield signals.received
            return
        looked, number = time.monotonic(), 0

        def look() -> int:
            nonlocal looked, number
            if time.monotonic() - looked > _LOOK_SECONDS:
                looked, number = time.monotonic(), self._number(trainer)
            return number

        with signals.held():
            yield look
            self.stop_if_asked(trainer)

    def asked(self, trainer: Trainer) -> bool:
        """Whether a signal has come, as far as this process knows; it does not wait for others."""
        return bool(self._number(trainer))

    def _number(self, trainer: Trainer) -> int:
        if trainer.world_size == 1:
            return signals.received()
        store = torch.distributed.distributed_c10d._get_default_store()
        if signals.received():
            store.set(_ASKED, str(signals.received()))
        return int(store.get(_ASKED)) if store.check([_ASKED]) else 0

    def stop_if_asked(self, trainer: Trainer, kept: str = "") -> None:
        """Stop if a signal has come to any process; all must call this.

        Args:
            trainer: Trainer of the fit.
            kept: What is kept if no checkpoint is saved.

        Raises:
            Interrupted: in all processes.
        """
        if number := self._agreed(trainer):
            raise Interrupted(number, trainer.global_step, kept, agreed=True)

    def _agreed(self, trainer: Trainer) -> int:
        number = signals.received()
        if trainer.world_size > 1:  # a signal may have reached one process only
            known = torch.tensor(number, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(known, op=torch.distributed.ReduceOp.MAX)
            number = int(known)
        return number


def end_training(trainer: Trainer) -> None:
    """Save the last step, and let signals stop what comes after it; all processes must call this.

    Raises:
        Interrupted: in all processes, if a signal came before.
    """
    stop = find_callback(trainer, GracefulStop)
    if stop is not None:
        stop.end_training(trainer)
    checkpoints = find_callback(trainer, Checkpoints)
    if checkpoints is not None:
        checkpoints.save_now(trainer)


def leave_signals_to_us(trainer: Trainer) -> None:
    """Take the handling of signals from Lightning; to be called before the Trainer runs."""
    settings(trainer)._signal_connector = _LeftToUs(trainer)


class _LeftToUs(_SignalConnector):
    """Lightning's handling of signals, reduced to what the user has asked for.

    Its own handler for SIGTERM leaves with exit code 0, may stop half-way through accumulated
    gradients, and talks to the other processes from within the handler. Its handler for SIGUSR1
    saves from within the handler and submits the job again: only for whoever names
    ``SLURMEnvironment`` with ``auto_requeue`` among the plugins, not wherever SLURM is found.
    """

    def register_signal_handlers(self) -> None:
        """Register no handler except the one for requeueing, if that is requested."""
        self.received_sigterm = False
        asked = settings(self.trainer)._accelerator_connector._cluster_environment_flag
        if isinstance(asked, SLURMEnvironment) and asked.auto_requeue and asked.requeue_signal:
            self._original_handlers = self._get_current_signal_handlers()
            self._register_signal(
                asked.requeue_signal, _HandlersCompose([self._slurm_sigusr_handler_fn])
            )
