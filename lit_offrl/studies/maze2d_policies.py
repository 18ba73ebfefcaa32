"""Samples of ρ against data, policy by policy (Mazoure et al., Fig. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from lit_offrl.studies import maze2d
from lit_offrl.studies.inputs import Study


@dataclass(frozen=True, kw_only=True)
class Maze2dPolicies(maze2d.Maze2dStudy):
    """Where each policy goes, in held-out data and in samples.

    Args:
        gamma: Discount in [0, 1) that the offsets follow; without it, the checkpoint's.
    """

    gamma: Annotated[float | None, "[0, 1)"] = None

    def run(self) -> Study:
        """Measure; see :func:`lit_offrl.studies.maze2d.separation`.

        Raises:
            LitOffRLError: The checkpoint or the data do not fit the study.
        """
        comparison = maze2d.Comparison(self)
        gamma = comparison.module.gamma if self.gamma is None else self.gamma
        found = maze2d.separation(comparison, gamma)
        metrics = {f"accuracy_{name}": value for name, value in found["accuracy"].items()}
        for name in ("distance", "floor", "ceiling", "in_walls"):
            each = [row[name] for row in found["by_policy"]]
            metrics[name] = sum(each) / len(each)
        numbers = maze2d.drawn_maze(comparison) | {"gamma": gamma} | found
        facts = maze2d.facts(comparison, self, gamma=gamma)
        return Study(numbers, metrics, facts, self.ckpt_path)
