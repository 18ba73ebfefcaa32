"""How often the intervals covered the truth in a simulation, as kept in ``coverage.json``.

``python -m benchmarks coverage --json FILE`` makes the numbers anew.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("coverage.json")


@cache
def simulated() -> dict[tuple[str, int, int, str], float]:
    """Coverage by statistic (``mean``, ``IQM``), seeds, datasets and the scores' distribution."""
    rows = json.loads(FILE.read_text())["coverage"]
    return {
        (row["statistic"], row["seeds"], row["datasets"], row["scores"]): row["coverage"]
        for row in rows
    }


def coverage(statistic: str, seeds: int, datasets: int) -> tuple[int, int, dict[str, float]]:
    """Return the simulated setting nearest below, its seeds and datasets, and its coverages.

    Args:
        statistic: ``mean`` or ``IQM``.
        seeds: fewest runs of a dataset, at least 2.
        datasets: at least 1.

    Returns:
        Seeds and datasets of that setting, and the coverage by the scores' distribution.
    """
    grid = simulated()
    runs = max(count for _, count, _, _ in grid if count <= seeds)
    tasks = max(count for _, _, count, _ in grid if count <= datasets)
    found = {
        shape: share
        for (name, s, d, shape), share in grid.items()
        if (name, s, d) == (statistic, runs, tasks)
    }
    return runs, tasks, found
