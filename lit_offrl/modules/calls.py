"""Several optimiser steps in one call of Lightning's loop, which costs more than a small step.

batches    0 | 1 2 3 4 5 6 7 | 8 9 | 10 …      | ends a call: its last batch is the loop's own,
loop sees  0               7     9             the earlier ones are trained on just before it

A call ends where something is due: logging, a checkpoint, an evaluation, a validation, the end of
an epoch or of the run. So whatever looks at the weights between two calls sees them at the same
steps for every length of calls, and finds Lightning's counters as they would be without.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from lightning.pytorch.profilers import PassThroughProfiler

from lit_offrl.modules.graphs import CapturableAdamW, Graphs, go_without

if TYPE_CHECKING:
    from lit_offrl.modules.base import OfflineModule

SECONDS = 0.5
"""How long a call lasts at most, where its length is left to be chosen: a signal waits for it."""
MOST = 100
"""Steps of a call where its length is left to be chosen; more would save nothing that shows."""
BYTES = 1 << 26
"""Size of a call's batches at most, where its length is left to be chosen."""

_OF_BATCHES = ["on_train_batch_start", "on_train_batch_end", "on_before_zero_grad"]
_OF_BATCHES += ["on_before_backward", "on_after_backward"]
_OF_TRANSFER = ["on_before_batch_transfer", "on_after_batch_transfer"]


class Calls:
    """The calls of one fit: how many batches each has, and the steps before its last batch.

    A callback that acts on single batches, and is not of those that say ``sees_calls``, has calls
    of one batch, as do a module that acts on them by Lightning's hooks, a profiler, and what
    changes batches on their way to the device.

    Args:
        module: The module in training; its ``steps_per_call`` limits the steps of a call, and None
            leaves them to be chosen by the time that a step takes.

    Attributes:
        alone: Whether all calls have one batch, which is known once the first one has begun.
        count: Number of batches in the current call.
    """

    def __init__(self, module: OfflineModule) -> None:
        self._module = module
        self._trainer: Any = module.trainer
        self._earlier: list[Any] = []
        self._guards: list[Any] | None = None  # found at the first call, when all are there
        self._graphs: Graphs | None = None
        self.alone = False
        self.count, self._chosen = 1, 1
        self._change = math.inf

    # ---- what the loader asks ------------------------------------------------------------------

    def take(self, most: int) -> int:
        """Begin a call: return the number of its batches, at most ``most``, and count them."""
        if self._guards is None:
            self._look_around()
        self.count = self._room(most)
        if self.count > 1:  # Lightning itself counts one
            fit = self._trainer.fit_loop
            fit.epoch_loop.batch_progress.increment_by(self.count - 1)
            fit._data_fetcher.fetched += self.count - 1
        return self.count

    def split(self, rows: Any) -> Any:
        """Keep all batches of the call but the last, which is returned, as views of its rows."""
        trainer = self._trainer
        rows = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(rows))
        parts = [
            [None] * self.count if part is None else part.tensor_split(self.count) for part in rows
        ]
        *self._earlier, last = (type(rows)._make(each) for each in zip(*parts, strict=True))
        return last

    def _room(self, most: int) -> int:
        module, trainer = self._module, self._trainer
        progress = trainer.fit_loop.epoch_loop.batch_progress
        ready, step = progress.current.ready, trainer.global_step
        if step >= self._change:
            self._chosen = 1  # until it is known what a step costs now
        change = module.cost_changes(step)
        self._change = math.inf if change is None else change.step
        steps = 1 if self.alone else module.steps_per_call or self._chosen
        if steps == 1 or ready == 0:  # an epoch's first batch is logged, whatever its number
            return 1
        every = [(max(1, trainer.log_every_n_steps), 0)]
        every += [_interval(each) for each in trainer.callbacks if _sees(each)]
        ends = [step + steps, *(step + n - (step - origin) % n for n, origin in every if n)]
        ends += [end for end in (trainer.max_steps, trainer.min_steps) if (end or 0) > step]
        accumulated = trainer.accumulate_grad_batches
        last = int(min(*ends, self._change))
        room = min(most, (last - step) * accumulated - ready % accumulated)
        if isinstance(check := trainer.val_check_batch, int):
            each_epoch = trainer.check_val_every_n_epoch is not None
            room = min(room, check - (ready if each_epoch else progress.total.ready) % check)
        return max(1, room - (ready + room) % accumulated)

    def _look_around(self) -> None:
        module, trainer = self._module, self._trainer
        callbacks, data = trainer.callbacks, trainer.datamodule
        self._guards = [
            each for each in callbacks if _overrides(each, Callback, "on_before_optimizer_step")
        ]
        self.alone = (
            bool(trainer.fast_dev_run or module.steps_per_call == 1)
            or not isinstance(trainer.profiler, PassThroughProfiler)
            or _overrides(module, LightningModule, *_OF_BATCHES, *_OF_TRANSFER)
            or _overrides(module, LightningModule, "optimizer_zero_grad")
            or _overrides(data, LightningDataModule, *_OF_TRANSFER)
            or any(
                _overrides(each, Callback, *_OF_BATCHES, "on_before_optimizer_step")
                for each in callbacks
                if not (_sees(each) or isinstance(each, Timer))
            )
        )

        optimizer = trainer.optimizers[0]
        if isinstance(optimizer, CapturableAdamW):
            if self.alone:
                go_without(module, "calls have one step, see steps_per_call")
            elif not all(hasattr(each, "noting") for each in self._guards):
                go_without(module, "a callback looks at the gradients of each step")
            else:
                self._graphs = Graphs(module, partial(self._step, optimizer))

    # ---- what the module asks ------------------------------------------------------------------

    def train_on_earlier(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the steps of the call before its last batch's, which Lightning takes."""
        batches, self._earlier = self._earlier, []
        module: Any = self._module
        ready = self._trainer.fit_loop.epoch_loop.batch_progress.current.ready
        within, module._current_fx_name = module._current_fx_name, "training_step"
        if self._trainer.accumulate_grad_batches > 1:  # by a callback, from some epoch on
            self._graphs = None
        with nullcontext() if self._graphs is None else self._noting(batches):
            for number, batch in enumerate(batches, ready - self.count):
                self._train_on(batch, number, optimizer)
        module._current_fx_name = within

    def _train_on(self, batch: Any, number: int, optimizer: Any) -> None:
        """Do what Lightning's automatic optimisation does with a batch, in its order."""
        module, loop = self._module, self._trainer.fit_loop.epoch_loop
        accumulated = self._trainer.accumulate_grad_batches
        progress = loop.automatic_optimization.optim_progress.optimizer
        steps = (number + 1) % accumulated == 0
        if number % accumulated == 0:
            progress.zero_grad.increment_by(1)
        if steps:
            progress.step.increment_ready()
            module.set_rates(optimizer)
        if self._graphs is None:
            self._step(optimizer, batch, number)
        else:
            self._graphs.take(batch, number)
        if steps:
            progress.step.increment_completed()
            loop._batches_that_stepped += 1

    @contextmanager
    def _noting(self, batches: list[Any]) -> Iterator[None]:
        """Have callbacks note on the device what they look at, and judge it after the steps."""
        guards = self._guards or ()
        for guard in guards:
            guard.noting = True
        try:
            yield
        finally:
            for guard in guards:
                guard.noting = False
        for guard in guards:
            guard.look_back(self._trainer, self._module, batches)

    def _step(self, optimizer: Any, batch: Any, number: int) -> None:
        """Compute a step: all that is captured where it is, and nothing of Lightning's counts."""
        module, trainer = self._module, self._trainer
        strategy, accumulated = trainer.strategy, trainer.accumulate_grad_batches
        scaler = getattr(strategy.precision_plugin, "scaler", None)
        steps = (number + 1) % accumulated == 0
        with nullcontext() if steps else _block_parallel_sync_behavior(strategy, block=True):
            loss = strategy.training_step(batch, number)
            if number % accumulated == 0:
                optimizer.zero_grad()
            if accumulated > 1:
                loss = loss / accumulated
            module.backward(loss if scaler is None else scaler.scale(loss))
        if not steps:
            return
        if scaler is not None:
            scaler.unscale_(optimizer)
        for guard in self._guards or ():
            guard.on_before_optimizer_step(trainer, module, optimizer)
        module.on_before_optimizer_step(optimizer)
        module.configure_gradient_clipping(
            optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm
        )
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        module.after_step()

    def ended(self, seconds: float) -> None:
        """Choose the length of the next call by how long this one took."""
        if self._module.steps_per_call is not None:
            return
        if self._trainer.world_size > 1:  # all processes have calls of the same length
            taken = torch.tensor(seconds, device=self._module.device)
            seconds = float(self._trainer.strategy.reduce(taken, reduce_op="max"))
        accumulated = self._trainer.accumulate_grad_batches
        size = sum(part.nbytes for part in self._module.latest_batch if part is not None)
        in_time = int(SECONDS * self.count / (accumulated * max(seconds, 1e-9)))
        in_memory = BYTES // (accumulated * max(size, 1))
        twice = 2 * max(1, self.count // accumulated)
        self._chosen = max(1, min(MOST, in_time, in_memory, twice))


def _sees(callback: Any) -> bool:
    return getattr(callback, "sees_calls", False)


def _interval(callback: Any) -> tuple[int | None, int]:
    return getattr(callback, "interval", None), getattr(callback, "origin", 0)


def _overrides(one: Any, base: type, *names: str) -> bool:
    return any(
        name in vars(one) or getattr(type(one), name) is not getattr(base, name) for name in names
    )
