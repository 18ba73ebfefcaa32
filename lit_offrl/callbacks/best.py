"""The best checkpoint so far by a metric of validations: which that is, and how it is chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch import Trainer

from lit_offrl.common.errors import ConfigError, nearest

FILE = "best.ckpt"
LOSSES = "val/loss"
"""The sum of all of a method's losses on held-out episodes, ``val/loss/actor`` and so on."""

Mode = Literal["min", "max"]


class Best:
    """Watches a metric of validations, or ``val/loss``, and keeps the best value and its step."""

    def __init__(self, monitor: str = LOSSES, mode: Mode = "min") -> None:
        self.monitor, self.mode = monitor, mode
        self.value: float | None = None  # before the first validation
        self.step = 0

    @property
    def rule(self) -> str:
        """How the checkpoint is chosen, as records of evaluations say it."""
        return f"best, {'lowest' if self.mode == 'min' else 'highest'} {self.monitor}"

    def improves(self, trainer: Trainer) -> bool:
        """Look at a validation's metrics; whether they are the best so far, which then counts.

        Raises:
            ConfigError: there is no such metric.
        """
        found = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        losses = [value for name, value in found.items() if name.startswith(f"{LOSSES}/")]
        value = sum(losses) if self.monitor == LOSSES and losses else found.get(self.monitor)
        if value is None:
            there = [LOSSES, *sorted(found)] if losses else sorted(found)
            raise ConfigError(
                f"checkpoint.monitor '{self.monitor}': validations have no such metric (they have"
                f" {', '.join(there)}).{nearest(self.monitor, there)}"
            )
        sign = 1 if self.mode == "min" else -1
        better = self.value is None or sign * value < sign * self.value
        # the first process decides, since a saving is for all of them
        if not trainer.strategy.broadcast(math.isfinite(value) and better):
            return False
        self.value, self.step = value, trainer.global_step
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know, in plain types."""
        return {**vars(self), "rule": self.rule}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the state back, unless it is of another metric."""
        if (state["monitor"], state["mode"]) == (self.monitor, self.mode):
            self.value, self.step = state["value"], state["step"]
