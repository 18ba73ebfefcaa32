"""How far ahead ρ looks as γ grows (Mazoure et al., Fig. 4)."""

from __future__ import annotations

from dataclasses import dataclass, field

from lit_offrl.common.ranges import require_in
from lit_offrl.studies import maze2d
from lit_offrl.studies.inputs import Study


@dataclass(frozen=True, kw_only=True)
class Maze2dGamma(maze2d.Maze2dStudy):
    """Distances of samples and data from the start, by discount.

    Args:
        gammas: Discounts in [0, 1) that the offsets follow, one after another.
    """

    gammas: list[float] = field(default_factory=lambda: [0.9, 0.95, 0.97, 0.99, 0.995])

    def run(self) -> Study:
        """Measure; see :func:`lit_offrl.studies.maze2d.reach`.

        Raises:
            LitOffRLError: The checkpoint, the data or a γ do not fit the study.
        """
        for gamma in self.gammas:
            require_in("[0, 1)", gammas=gamma)
        comparison = maze2d.Comparison(self)
        by_gamma = maze2d.reach(comparison, sorted(self.gammas))
        metrics = {
            f"way_{source}_{row['gamma']:g}": row[source]["way"]
            for row in by_gamma
            for source in ("data", "samples")
        }
        numbers = maze2d.drawn_maze(comparison) | {"by_gamma": by_gamma}
        facts = maze2d.facts(comparison, self, gammas=sorted(self.gammas))
        return Study(numbers, metrics, facts, self.ckpt_path)
