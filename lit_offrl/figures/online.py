"""The curve of the online mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def improvement_curve(rounds: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Draw each round's return against the environment steps that it was learned from.

    Args:
        rounds: with ``environment_steps``, ``return_mean``, ``return_standard_error`` (of the
            evaluation) and ``collected_return_mean`` (of the rows that the round collected).
        title: of the figure.

    Returns:
        A figure with one panel.
    """
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    steps = np.array([one["environment_steps"] for one in rounds], float)
    mean = np.array([one["return_mean"] for one in rounds], float)
    error = np.array([one["return_standard_error"] for one in rounds], float)
    collected = [one["collected_return_mean"] for one in rounds]
    axis.fill_between(steps, mean - error, mean + error, alpha=0.25, linewidth=0)
    axis.plot(steps, mean, marker="o", markersize=3, label="policy, ± s.e.")
    axis.plot(steps, collected, marker="s", markersize=3, color="0.5", label="data, with noise")
    axis.set_xlabel("environment steps")
    axis.set_ylabel("return")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure
