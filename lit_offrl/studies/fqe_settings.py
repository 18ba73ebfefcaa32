"""Settings of fitted Q evaluation, apart from it: a verb's help names them without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from lit_offrl.common.ranges import require_fields


@dataclass(frozen=True)
class FQESettings:
    """Settings of fitted Q evaluation.

    Args:
        steps: Number of optimiser steps.
        batch_size: B, rows a step; the same rows for all candidates.
        hidden: Widths of each candidate's hidden layers.
        learning_rate: Adam's rate.
        tau: Rate of the target. An update of the whole target takes 1/τ steps, and a reward that is
            given T steps ahead needs about T of those: the sparser the reward, the more steps × τ.

    Raises:
        ConfigError: A number is out of its range.
    """

    steps: Annotated[int, "[1, inf)"] = 10_000
    batch_size: Annotated[int, "[1, inf)"] = 128
    hidden: tuple[int, ...] = (256, 256)
    learning_rate: float = 3e-4
    tau: Annotated[float, "(0, 1]"] = 0.05

    def __post_init__(self) -> None:
        require_fields(self)
