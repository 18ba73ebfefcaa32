"""Mountain Car: values, returns and predicted rewards of graded controllers (DVF, Fig. 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_offrl.figures.style import COLOURS, DASHED, in_style


@in_style
def mountain_car(numbers: Mapping[str, Any]) -> Figure:
    """Draw the numbers of ``studies.mountain_car``.

    Values stand over returns, rewards over values, and values against gradient steps.

    Each quantity is scaled to [0, 1] over the policies, in the last panel by the returns' range.
    """
    final, steps = numbers["by_step"][-1], numbers["by_step"]
    returns = np.asarray(numbers["return"], float)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.95, len(returns)))
    wide = len(steps) > 1
    figure = Figure(figsize=(13 if wide else 8.6, 4), layout="constrained")
    axes = figure.subplots(1, 3 if wide else 2)
    together = final["correlations"]
    pairs = (("return", returns, "value", final["value"]),
             ("value", final["value"], "reward", final["reward"]))  # fmt: skip
    axis_names = {
        "return": f"discounted return in the data (γ = {numbers['gamma']:g})",
        "value": "DVF value at the start",
        "reward": "reward predicted at samples of ρ",
    }
    for axis, (first, one, second, other) in zip(axes, pairs, strict=False):
        axis.plot([0, 1], [0, 1], color="0.7", ls=DASHED, lw=1)
        axis.scatter(_scaled(one), _scaled(other), c=colours, s=60, edgecolors="black", lw=0.5)
        _title(axis, together[f"{first}_{second}"])
        axis.set_xlabel(f"{axis_names[first]}, normalised")
        axis.set_ylabel(f"{axis_names[second]}, normalised")
    if wide:
        _development(axes[2], numbers, colours)
    for axis in axes:
        axis.grid()
    shades = matplotlib.cm.ScalarMappable(cmap="viridis")
    shades.set_clim(float(min(numbers["policies"])), float(max(numbers["policies"])) / 0.95)
    shades.set_array([])
    bar = figure.colorbar(shades, ax=axes, pad=0.01, shrink=0.8)
    bar.ax.set_ylim(min(numbers["policies"]), max(numbers["policies"]))
    bar.set_label("grade of the controller, φ")
    return figure


def _development(axis: Axes, numbers: Mapping[str, Any], colours: np.ndarray) -> None:
    """Values of each policy against gradient steps, and what it earns as a dashed line."""
    returns = np.asarray(numbers["return"], float)
    low, span = returns.min(), max(float(np.ptp(returns)), 1e-12)
    steps = [row["step"] for row in numbers["by_step"]]
    values = np.array([row["value"] for row in numbers["by_step"]], float)
    for earned, line, colour in zip(returns, values.T, colours, strict=True):
        axis.plot(steps, (line - low) / span, "o-", color=colour, markersize=3, linewidth=1.2)
        axis.axhline((earned - low) / span, color=colour, ls=DASHED, lw=0.8, alpha=0.8)
    ranks = [row["correlations"]["return_value"]["spearman"] for row in numbers["by_step"]]
    known = [
        (step, rank)
        for step, rank in zip(steps, ranks, strict=True)
        if rank is not None and rank == rank
    ]
    if known:
        beside = axis.twinx()
        beside.plot(*zip(*known, strict=True), "s", ls=(0, (1, 1)), color=COLOURS[5], lw=1.6, ms=4)
        beside.set_ylim(-1.05, 1.05)
        beside.set_ylabel("Spearman of value and return (squares)", color=COLOURS[5])
        beside.spines["right"].set_visible(True)
    axis.set(xlabel="gradient steps", ylabel="value (dots) and return (dashed), normalised")


def _scaled(values: Any) -> np.ndarray:
    array = np.asarray(values, float)
    span = np.ptp(array)
    return (array - array.min()) / span if span > 0 else np.full(array.shape, 0.5)


def _title(axis: Axes, found: Mapping[str, float | None]) -> None:
    measures = [f"{k.capitalize()} {v:.2f}" for k, v in found.items() if v is not None and v == v]
    axis.set_title(", ".join(measures) or "constant")
