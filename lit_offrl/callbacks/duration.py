"""How long a fit is going to take, said once it can be known and again when steps change."""

from __future__ import annotations

import math
import threading
from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_offrl.callbacks.lookup import settings, steps_now
from lit_offrl.common.quiet import say
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.optimizer import CostChange

LISTEN = 10.0
"""Seconds of steps that an estimate rests on; a run that is shorter than these needs none."""
PATIENCE = 20.0
"""Seconds after which a first step is long."""
_DAY = 86400.0


class Duration(Callback):
    """Says how long the steps to come take, as soon as some have been measured.

    The first step may itself take minutes (DVF at its paper's size on a CPU core). While it does, a
    thread says what the run takes at least. After ``LISTEN`` seconds of steps there is a measured
    estimate; where the module knows a step at which the cost of one changes (``cost_changes``),
    the estimate is made anew there, and before it is called what it is, a lower bound. What takes
    more than a day on a CPU is met with advice. Validations and roll-outs come on top.

    Nothing is computed or drawn for it, so training is the same with and without.
    """

    sees_calls = True

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None
        self._begun = 0.0
        self._last: int | None = None
        self._change: CostChange | None = None
        self._said = False
        self._count, self._sum, self._dearest = 0, 0.0, (0.0, 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the first step."""
        steps = trainer.estimated_stepping_batches
        known = math.isfinite(steps) and steps > 0 and not settings(trainer).fast_dev_run
        self._last = int(steps) if known else None
        self._measure_anew(trainer, pl_module)
        # The first step of a resumed run may be the one that samples a table: that is no sign.
        if known and trainer.global_step == 0 and trainer.is_global_zero:
            self._timer = threading.Timer(PATIENCE, self.warn, (trainer, pl_module))
            self._timer.daemon = True
            self._timer.start()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any
    ) -> None:
        """Look at the clock; a new estimate is due where the cost of a step changes."""
        if self._change is not None and trainer.global_step >= self._change.step:
            self._measure_anew(trainer, pl_module)
        self._begun = perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say it, once."""
        self._stop_waiting()
        last, step = self._last, trainer.global_step
        if self._said or last is None:
            return
        cost = perf_counter() - self._begun
        calls = pl_module.calls if isinstance(pl_module, OfflineModule) else None
        batches = 1 if calls is None else calls.count
        self._count += batches
        self._sum += cost
        if cost * self._dearest[1] >= self._dearest[0] * batches:
            self._dearest = cost, batches
        # Without the dearest: the first one allocates, and one of a phase may sample a table.
        count, usual = self._count - self._dearest[1], self._sum - self._dearest[0]
        if count < 1 or usual < LISTEN or not steps_now(trainer, batch_idx) or step >= last:
            return
        self._said = True
        change = self._change if self._change is not None and self._change.step < last else None
        until = last if change is None or change.dearer else change.step
        seconds = (until - step) * usual / count * trainer.accumulate_grad_batches
        steps = (
            f"the {until - step:,} steps {'to come' if until == last else f'up to step {until:,}'}"
        )
        bound = "at least" if change is not None and change.dearer else "about"
        then = "" if change is None else f"; from step {change.step:,} on a step costs "
        then += "" if change is None else "more" if change.dearer else "something else"
        advice = _advice(trainer, pl_module, seconds)
        say(f"{steps} take {bound} {in_words(seconds)}{then}.{advice}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is to be said any more."""
        self._stop_waiting()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Nothing is to be said any more."""
        self._stop_waiting()

    def warn(self, trainer: Trainer, module: LightningModule) -> None:
        """Say what a run takes at least whose first step is not done after ``PATIENCE`` seconds."""
        assert self._last is not None  # else there is no timer
        seconds = PATIENCE * self._last
        say(
            f"the first step takes more than {PATIENCE:.0f} s; at this rate the {self._last:,} "
            f"steps take more than {in_words(seconds)}.{_advice(trainer, module, seconds)}"
        )

    def _measure_anew(self, trainer: Trainer, module: LightningModule) -> None:
        self._said = False
        self._count, self._sum, self._dearest = 0, 0.0, (0.0, 0)
        assert isinstance(module, OfflineModule)
        self._change = module.cost_changes(trainer.global_step)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def in_words(seconds: float) -> str:
    """Return a time span in its two largest units, such as ``2 h 5 min``."""
    seconds = max(1, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    units = (("days", 86400), ("h", 3600), ("min", 60), ("s", 1))
    first = next(i for i, (_, size) in enumerate(units) if seconds >= size)
    (name, size), (smaller, part) = units[first], units[first + 1]
    count, rest = divmod(round(seconds / part), size // part)
    return f"{count:,} {name}" + (f" {rest} {smaller}" if rest and count < 100 else "")


def _advice(trainer: Trainer, module: LightningModule, seconds: float) -> str:
    if seconds <= _DAY or trainer.strategy.root_device.type != "cpu":
        return ""
    own = module.cpu_advice if isinstance(module, OfflineModule) else None
    general = "an accelerator, a smaller network or fewer --trainer.max_steps make it shorter"
    return f" On a CPU that is long: {own + '; ' if own else ''}{general}."
