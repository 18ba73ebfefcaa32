"""d3rlpy's samplers on given columns, timed; run by the Python of an environment that has it.

``python peer_d3rlpy.py COLUMNS.npz OUT.json BUDGET WINDOW,BATCH …`` writes each job's rows/s. It
imports nothing of this project, whose packages that environment need not have.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from d3rlpy.constants import ActionSpace
from d3rlpy.dataset import MDPDataset


def measure(run: Callable[[], object], budget: float) -> float:
    """Median seconds of a call within a budget, after a first that is not timed."""
    run()
    taken: list[float] = []
    end = time.perf_counter() + budget
    while not taken or time.perf_counter() < end:
        before = time.perf_counter()
        run()
        taken.append(time.perf_counter() - before)
    return median(taken)


def main(columns: str, out: str, budget: str, *jobs: str) -> None:
    """Time each job, ``WINDOW,BATCH`` with WINDOW 0 for transitions, and write rows a second."""
    with np.load(columns, allow_pickle=False) as file:
        data = MDPDataset(
            file["observations"],
            file["actions"],
            file["rewards"],
            file["terminals"].astype(np.float32),
            file["timeouts"].astype(np.float32),
            action_space=ActionSpace.CONTINUOUS,
        )
    speeds = []
    for job in jobs:
        window, batch = (int(part) for part in job.split(","))

        def draw(window: int = window, batch: int = batch) -> object:
            if window == 0:
                return data.sample_transition_batch(batch)
            return data.sample_trajectory_batch(batch, window)

        speeds.append(batch / measure(draw, float(budget)))
    Path(out).write_text(json.dumps(speeds))


if __name__ == "__main__":
    main(*sys.argv[1:])
