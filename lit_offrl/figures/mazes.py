"""Mazes with states in them: where policies go, in data and in samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

POLICY_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_WALL, _FLOOR = "#3d4652", "#f4f1ea"
_SOURCES = {"held_out": "data, held out", "data": "data", "samples": "samples of ρ"}


def draw_walls(axis: Axes, free: np.ndarray, corner: float) -> None:
    """Draw a maze as its pictures show it, x down and y to the right.

    Args:
        axis: where; positions (x, y) are then drawn at (y, x).
        free: whether a cell is free (X, Y).
        corner: x and y of the first cell's outer corner; cells have sides of 1.
    """
    lines, columns = free.shape
    axis.add_patch(Rectangle((corner, corner), columns, lines, color=_WALL, linewidth=0))
    for i, j in np.argwhere(free).tolist():
        axis.add_patch(Rectangle((corner + j, corner + i), 1, 1, color=_FLOOR, linewidth=0.4))
    right, bottom = corner + columns - 0.5, corner + lines - 0.5  # half of the outer walls
    axis.set(xlim=(corner + 0.5, right), ylim=(bottom, corner + 0.5), aspect="equal")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def maze2d_policies(numbers: Mapping[str, Any]) -> Figure:
    """Draw the numbers of ``studies.maze2d.Maze2dPolicies`` (Fig. 3).

    Held-out data are above and samples below, a column a policy, coloured by Δt.
    """
    panels, rows = numbers["panels"], numbers["by_policy"]
    free = np.asarray(numbers["free"], bool)
    width = 2.6 * free.shape[1] / free.shape[0]
    figure = Figure(figsize=(width * len(rows) + 1.1, 6.0), layout="constrained")
    axes = figure.subplots(2, len(rows), squeeze=False)
    longest = max(max(panel["offset"]) for parts in panels.values() for panel in parts)
    colours = LogNorm(1, longest)
    for line, source in enumerate(("held_out", "samples")):
        for axis, panel, row in zip(axes[line], panels[source], rows, strict=True):
            draw_walls(axis, free, numbers["corner"])
            order = np.argsort(panel["offset"])[::-1]  # the early ones on top: they are few
            x, y, offset = (np.asarray(panel[name])[order] for name in ("x", "y", "offset"))
            dots = axis.scatter(y, x, c=offset, s=5, norm=colours, cmap="viridis", linewidths=0)
            _mark(axis, numbers, row["number"])
            if line == 0:
                axis.set_title(f"policy {row['policy']:g}", fontsize=11)
            else:
                axis.set_xlabel(
                    f"distance to the data {row['distance']:.3f}\n"
                    f"(data to data {row['floor']:.3f}, nearest policy {row['ceiling']:.2f})",
                    fontsize=8,
                )
        axes[line][0].set_ylabel(_SOURCES[source], fontsize=11)
    bar = figure.colorbar(dots, ax=axes, shrink=0.6, pad=0.02)
    bar.set_label("Δt, steps after the start", fontsize=9)
    accuracy = numbers["accuracy"]
    figure.suptitle(
        f"{numbers['maze']}, γ = {numbers['gamma']:g}: a classifier tells the policy of "
        f"{accuracy['samples']:.0%} of the samples, of {accuracy['held_out']:.0%} of held-out data",
        fontsize=11,
    )
    return figure


def maze2d_gamma(numbers: Mapping[str, Any]) -> Figure:
    """Draw the numbers of ``studies.maze2d.Maze2dGamma`` (Fig. 4).

    Samples and data as γ grows, and the way from the start against the horizon.
    """
    rows = numbers["by_gamma"]
    free = np.asarray(numbers["free"], bool)
    width = max(1.9, 1.9 * free.shape[1] / free.shape[0])
    height = width * free.shape[0] / free.shape[1]
    figure = Figure(figsize=(width * len(rows) + 0.4, 2 * height + 3.0), layout="constrained")
    grid = figure.add_gridspec(3, len(rows), height_ratios=[height, height, 2.5])
    for line, source in enumerate(("samples", "data")):
        for column, row in enumerate(rows):
            axis = figure.add_subplot(grid[line, column])
            draw_walls(axis, free, numbers["corner"])
            _panels(axis, row[source]["panels"])
            _mark(axis, numbers)
            if line == 0:
                axis.set_title(f"γ = {row['gamma']:g}", fontsize=11)
            if column == 0:
                axis.set_ylabel(_SOURCES[source], fontsize=11)
    axis = figure.add_subplot(grid[2, :])
    horizon = [row["data"]["mean_offset"] for row in rows]
    for number, policy in enumerate(numbers["policies"]):
        colour = POLICY_COLOURS[number % len(POLICY_COLOURS)]
        ways = {s: [row[s]["way_by_policy"][number] for row in rows] for s in ("data", "samples")}
        axis.plot(horizon, ways["data"], color=colour, linewidth=1.2, linestyle="--")
        axis.plot(horizon, ways["samples"], "o-", color=colour, markersize=4, linewidth=1.2)
        axis.annotate(
            f"policy {policy:g}", (horizon[-1], ways["data"][-1]), (5, 0), va="center",
            textcoords="offset points", color=colour, fontsize=9,
        )  # fmt: skip
    axis.plot([], [], "--", color="0.4", label="data")
    axis.plot([], [], "o-", color="0.4", markersize=4, label="samples")
    axis.legend(fontsize=9, frameon=False, loc="upper left")
    axis.set_xscale("log")
    axis.set_xticks(horizon, [f"{steps:.0f}" for steps in horizon])
    axis.minorticks_off()
    axis.margins(x=0.08)
    axis.set(xlabel="mean Δt, steps (as γ grows)", ylabel="mean way from the\nstart, cells")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    return figure


def _panels(axis: Axes, panels: Sequence[Mapping[str, Any]]) -> None:
    """Scatter all policies' points, mixed, so that none lies on top of the others."""
    x, y = (np.concatenate([panel[name] for panel in panels]) for name in ("x", "y"))
    which = np.repeat(np.arange(len(panels)), [len(panel["x"]) for panel in panels])
    order = np.random.default_rng(0).permutation(len(x))
    colours = np.array(POLICY_COLOURS)[which % len(POLICY_COLOURS)]
    axis.scatter(y[order], x[order], c=colours[order], s=3, alpha=0.7, linewidths=0)


def _mark(axis: Axes, numbers: Mapping[str, Any], policy: int | None = None) -> None:
    """Mark the start by a ring, and the goals, or one policy's, by stars."""
    x, y = numbers["start"]
    axis.plot(y, x, "o", markerfacecolor="none", markeredgecolor="black", markersize=10)
    for number, (x, y) in enumerate(numbers.get("goals", ())):
        if policy is None or number == policy:
            colour = POLICY_COLOURS[number % len(POLICY_COLOURS)] if policy is None else "#d62728"
            axis.plot(y, x, "*", color=colour, markeredgecolor="black", markersize=12, mew=0.7)
