"""Why a fit ended: its last line on the screen, and a small file for the parent process."""

from __future__ import annotations

import json
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from lit_offrl.callbacks.checkpoints import run_folder
from lit_offrl.callbacks.lookup import settings
from lit_offrl.callbacks.mlflow_run import MLflowRun
from lit_offrl.common.files import write_whole
from lit_offrl.common.finished import FINISHED
from lit_offrl.common.quiet import say


class SayWhyEnded(Callback):
    """Ends every fit with a line that says why it ended, and writes it to ``finished.json``.

    Lightning lets ``trainer.max_time`` and ``EarlyStopping`` end a fit without a word, and a fit
    that is resumed after early stopping trains on until the next validation. Here such a fit has
    nothing to do, and says what to change so that it goes on.

    The file holds ``step``, the optimiser steps of the run, those before it was resumed included,
    their limit ``max_steps``, the ``reason`` (``max_steps``, ``max_epochs``, ``max_time``,
    ``EarlyStopping`` or ``should_stop``) and the ``line``. It is removed when training begins, so a
    fit that was killed or stopped by a signal leaves none.
    """

    def __init__(self) -> None:
        self._stoppers: list[EarlyStopping] = []
        self._patience: list[int] = []
        self._settings_when_stopped: dict[str, Any] = {}
        self._trained = False
        self._time_is_up = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember the patience that was given: Lightning takes the checkpoint's instead."""
        callbacks = settings(trainer).callbacks
        self._stoppers = [each for each in callbacks if isinstance(each, EarlyStopping)]
        self._patience = [each.patience for each in self._stoppers]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a run that was stopped early stay stopped, unless its stopper was changed."""
        self._trained = self._time_is_up = False
        for stopper, patience in zip(self._stoppers, self._patience, strict=True):
            stopper.patience = patience
            if stopper.stopping_reason is EarlyStoppingReason.NOT_STOPPED:
                continue
            then = self._settings_when_stopped.get(stopper.state_key)
            if then in (None, _settings(stopper)):
                trainer.should_stop = True
            else:
                stopper.stopping_reason = EarlyStoppingReason.NOT_STOPPED
                stopper.stopping_reason_message = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the file of an earlier fit of this run."""
        self._trained = True
        there = {each.state_key for each in self._stoppers}
        for name in self._settings_when_stopped.keys() - there:
            kind = name.partition("{")[0]
            say(f"{kind} had stopped this run; it is left out now, so the run goes on")
        if trainer.is_global_zero and not settings(trainer).fast_dev_run:
            (run_folder(trainer) / FINISHED).unlink(missing_ok=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See whether the time is up, before roll-outs at the end take some of it, too."""
        self._time_is_up = _time_is_up(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say why, and write it down: after progress bars, some of which end here."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        if settings(trainer).fast_dev_run:
            say(f"ended trainer.fast_dev_run after step {trainer.global_step}; nothing is saved")
            return
        step, limit = trainer.global_step, trainer.max_steps
        at = f"at step {step:,} of {limit:,}" if limit >= 0 else f"at step {step:,}"
        reason, line, way_on = self._why(trainer, at)
        if not self._trained:
            line = f"nothing to do: {line}; {way_on}"
        folder, most = run_folder(trainer), limit if limit >= 0 else None
        if folder.is_dir():
            facts = {"step": step, "max_steps": most, "reason": reason, "line": line}
            write_whole(folder / FINISHED, json.dumps(facts) + "\n")
        for logger in trainer.loggers:
            if isinstance(logger, MLflowRun):  # what it says of its end is not the last line
                logger.finalize("success")
        say(line)

    def _why(self, trainer: Trainer, at: str) -> tuple[str, str, str]:
        """Return the reason, a sentence about it, and what lets the run go on."""
        steps, epochs = trainer.max_steps, trainer.max_epochs
        if 0 <= steps <= trainer.global_step:
            line = f"reached trainer.max_steps {at}" if self._trained else f"it is {at}"
            return "max_steps", line, "raise trainer.max_steps to go on"
        epochs_done = settings(trainer).fit_loop.epoch_progress.current.processed
        if epochs is not None and 0 <= epochs <= epochs_done:
            line = f"reached trainer.max_epochs, {epochs:,}, {at}"
            return "max_epochs", line, "raise trainer.max_epochs to go on"
        for stopper in self._stoppers:
            if stopper.stopping_reason is not EarlyStoppingReason.NOT_STOPPED:
                name = type(stopper).__name__
                line = f"stopped by {name} {at}: {_why_early(stopper)}"
                return "EarlyStopping", line, f"change its options or leave {name} out to go on"
        if self._time_is_up or (not self._trained and _time_is_up(trainer)):
            limit = self._time_limit(trainer)
            if self._trained:
                return "max_time", f"stopped by {limit} {at}", ""
            line = f"{limit} is used up {at}, as it counts all jobs of a run"
            return "max_time", line, "raise it to go on"
        return "should_stop", f"stopped by a callback {at}", "leave it out to go on"

    def _time_limit(self, trainer: Trainer) -> str:
        """Name the option: the Trainer puts its own timer behind the callbacks that are given."""
        kinds = [type(each) for each in settings(trainer).callbacks]
        given = any(issubclass(kind, Timer) for kind in kinds[: kinds.index(type(self))])
        return "a Timer's duration" if given else "trainer.max_time"

    def state_dict(self) -> dict[str, Any]:
        """The settings of stoppers that have stopped the run."""
        return {
            each.state_key: _settings(each)
            for each in self._stoppers
            if each.stopping_reason is not EarlyStoppingReason.NOT_STOPPED
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self._settings_when_stopped = state_dict


def _settings(stopper: EarlyStopping) -> dict[str, Any]:
    names = ("patience", "min_delta", "stopping_threshold", "divergence_threshold", "check_finite")
    return {name: getattr(stopper, name) for name in names}


def _why_early(stopper: EarlyStopping) -> str:
    reason, monitor = stopper.stopping_reason, stopper.monitor
    if reason is EarlyStoppingReason.PATIENCE_EXHAUSTED:
        count, best = stopper.wait_count, float(stopper.best_score)
        times = "validation" if count == 1 else f"{count} validations"
        return f"{monitor} did not improve in the last {times}; its best value is {best:.6g}"
    if reason is EarlyStoppingReason.STOPPING_THRESHOLD:
        return f"{monitor} reached stopping_threshold {stopper.stopping_threshold:g}"
    if reason is EarlyStoppingReason.DIVERGENCE_THRESHOLD:
        return f"{monitor} passed divergence_threshold {stopper.divergence_threshold:g}"
    return f"{monitor} is not finite"


def _time_is_up(trainer: Trainer) -> bool:
    timers = [each for each in settings(trainer).callbacks if isinstance(each, Timer)]
    left = [timer.time_remaining() for timer in timers]
    return any(seconds is not None and seconds <= 0 for seconds in left)
