"""Mazes with states in them: where policies go, in data and in samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lit_offrl.figures.style import COLOURS, DASHED, in_style, looks

_CHUNKS = 20  # in which the points of several policies are drawn by turns
_WALL, _FLOOR = "#3d4652", "#f4f1ea"
_SOURCES = {"held_out": "data, held out", "data": "data", "samples": "samples of ρ"}


def draw_walls(axis: Axes, free: np.ndarray, corner: float) -> None:
    """Draw a maze as its pictures show it, x down and y to the right.

    Args:
        axis: Axis to draw on. Positions (x, y) are then drawn at (y, x).
        free: Whether a cell is free (X, Y).
        corner: Coordinate x and y of the first cell's outer corner. Cells have sides of 1.
    """
    lines, columns = free.shape
    axis.add_patch(Rectangle((corner, corner), columns, lines, color=_WALL, linewidth=0))
    for i, j in np.argwhere(free).tolist():
        axis.add_patch(Rectangle((corner + j, corner + i), 1, 1, color=_FLOOR, linewidth=0.4))
    right, bottom = corner + columns - 0.5, corner + lines - 0.5  # half of the outer walls
    axis.set(xlim=(corner + 0.5, right), ylim=(bottom, corner + 0.5), aspect="equal")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


@in_style
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
                axis.set_title(f"policy {row['policy']:g}")
            else:
                axis.set_xlabel(
                    f"distance of samples to data: {row['distance']:.3f}\n"
                    f"of the data's two halves: {row['floor']:.3f}\n"
                    f"of data to the nearest other policy: {row['ceiling']:.2f}"
                )
        axes[line][0].set_ylabel(_SOURCES[source])
    bar = figure.colorbar(dots, ax=axes, shrink=0.6, pad=0.02)
    bar.set_label("Δt, steps after the start")
    accuracy = numbers["accuracy"]
    figure.suptitle(
        f"{numbers['maze']}, γ = {numbers['gamma']:g}: a classifier finds the right policy for "
        f"{accuracy['samples']:.0%} of the samples and {accuracy['held_out']:.0%} of held-out data"
    )
    return figure


@in_style
def maze2d_gamma(numbers: Mapping[str, Any]) -> Figure:
    """Draw the numbers of ``studies.maze2d.Maze2dGamma`` (Fig. 4).

    Samples and data as γ grows, and the distance from the start against the horizon.
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
                axis.set_title(f"γ = {row['gamma']:g}")
            if column == 0:
                axis.set_ylabel(_SOURCES[source])
    axis = figure.add_subplot(grid[2, :])
    horizon = [row["data"]["mean_offset"] for row in rows]
    names = [f"policy {policy:g}" for policy in numbers["policies"]]
    for number, (name, look) in enumerate(looks(names).items()):
        ways = {s: [row[s]["way_by_policy"][number] for row in rows] for s in ("data", "samples")}
        style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "ms": 4, "lw": 1.2}
        axis.plot(horizon, ways["data"], mfc="white", ls=DASHED, **style)
        axis.plot(horizon, ways["samples"], **style)
        axis.annotate(
            name, (horizon[-1], ways["data"][-1]), (5, 0), va="center",
            textcoords="offset points", color=look.colour, fontsize=9,
        )  # fmt: skip
    axis.plot([], [], "o", ls=DASHED, color="0.4", mfc="white", ms=4, label="data")
    axis.plot([], [], "o-", color="0.4", ms=4, label="samples")
    axis.legend(loc="upper left", handlelength=3)
    axis.set_xscale("log")
    axis.set_xticks(horizon, [f"{steps:.0f}" for steps in horizon])
    axis.minorticks_off()
    axis.margins(x=0.08)
    axis.set(xlabel="mean Δt, steps (as γ grows)", ylabel="mean distance\nfrom the start, cells")
    axis.grid()
    return figure


def _panels(axis: Axes, panels: Sequence[Mapping[str, Any]]) -> None:
    """Scatter all policies' points by turns, so that none lies on top of the others."""
    kinds = looks([str(number) for number in range(len(panels))]).values()
    for chunk in range(_CHUNKS):
        for panel, look in zip(panels, kinds, strict=True):
            x, y = (np.asarray(panel[name])[chunk::_CHUNKS] for name in ("x", "y"))
            axis.scatter(y, x, c=look.colour, marker=look.marker, s=6, alpha=0.8, linewidths=0)


def _mark(axis: Axes, numbers: Mapping[str, Any], policy: int | None = None) -> None:
    """Mark the start by a ring, and the goals, or one policy's, by stars."""
    x, y = numbers["start"]
    axis.plot(y, x, "o", markerfacecolor="none", markeredgecolor="black", markersize=10)
    for number, (x, y) in enumerate(numbers.get("goals", ())):
        if policy is None or number == policy:
            colour = COLOURS[number % len(COLOURS) if policy is None else 5]
            axis.plot(y, x, "*", color=colour, markeredgecolor="black", markersize=12, mew=0.7)
