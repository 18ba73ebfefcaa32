"""When a run that goes on from a checkpoint takes its own steps, and when it trains.

initial own steps | block | U optimiser steps | block | U optimiser steps | … | U optimiser steps
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.ranges import require_fields


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The numbers of own steps and of optimiser steps, each as a function of the other.

    Args:
        steps: Number of own steps, the initial ones included.
        initial: Number of own steps before the first optimiser step.
        block: Number of own steps in a row.
        ratio: Number of optimiser steps for each own step after the initial ones.
        begun: Number of optimiser steps that the checkpoint has had.

    Raises:
        ConfigError: The numbers make no whole blocks.
    """

    steps: Annotated[int, "[1, inf)"]
    initial: Annotated[int, "[0, inf)"] = 0
    block: Annotated[int, "[1, inf)"] = 1
    ratio: Annotated[float, "(0, inf)"] = 1.0
    begun: Annotated[int, "[0, inf)"] = 0

    def __post_init__(self) -> None:
        require_fields(self)
        if self.initial >= self.steps:
            raise ConfigError(
                f"initial_steps is {self.initial} of {self.steps} steps, which leaves none to "
                "train after: lower it, or raise steps."
            )
        for name, number in (("steps", self.steps), ("initial_steps", self.initial)):
            self.require_blocks(name, number)
        if abs(self.ratio * self.block - self.updates) > 1e-9 * self.updates or not self.updates:
            raise ConfigError(
                f"updates_per_step {self.ratio:g} makes {self.ratio * self.block:g} updates after "
                f"{self.block} own steps, which steps_at_once says: let it be a whole number."
            )

    def require_blocks(self, name: str, number: int) -> None:
        """Refuse a number of own steps that is no whole number of blocks.

        Raises:
            ConfigError: naming the option.
        """
        if number % self.block:
            raise ConfigError(
                f"{name} is {number} and steps_at_once {self.block}: give a multiple of that."
            )

    @property
    def updates(self) -> int:
        """Number U of optimiser steps after each block."""
        return round(self.ratio * self.block)

    @property
    def last(self) -> int:
        """The last optimiser step, counted from the beginning of the checkpoint's run."""
        return self.begun + (self.steps - self.initial) // self.block * self.updates

    @property
    def origin(self) -> int:
        """The optimiser step that would have followed the first own step, had it not been initial.

        An optimiser step is at a multiple of n own steps where it is a multiple of their optimiser
        steps away from here.
        """
        return self.begun - self.initial // self.block * self.updates

    def needed(self, step: int) -> int:
        """Number of own steps before the optimiser step that follows ``step`` ones."""
        blocks = (step - self.begun) // self.updates + 1
        return min(self.steps, self.initial + blocks * self.block)

    def own(self, step: int) -> int:
        """Number of own steps that the weights after ``step`` optimiser steps were trained with."""
        if step <= self.begun:
            return 0
        return self.initial + (step - self.begun) // self.updates * self.block
