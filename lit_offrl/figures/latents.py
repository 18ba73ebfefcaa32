"""Latents of LDCQ's skills, and where they lead: the numbers of ``studies.ldcq_latents``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from lit_offrl.figures.mazes import draw_walls
from lit_offrl.figures.style import in_style, looks

_TITLES = {"data": "data", "diffusion": "diffusion prior", "gaussian": "VAE's Gaussian prior"}


@in_style
def latents(numbers: Mapping[str, Any]) -> Figure:
    """Draw latents in the data's principal plane (LDCQ, Figs. 2 and 3): a row for each horizon."""
    rows = numbers["rows"]
    figure = Figure(figsize=(9.6, 0.5 + 3.2 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(_TITLES), squeeze=False)
    look = looks(list(_TITLES))
    for line, row in zip(axes, rows, strict=True):
        every = np.concatenate([np.asarray(row[name]["points"]) for name in _TITLES])
        low, high = np.quantile(every, [0.002, 0.998], axis=0)
        margin = 0.08 * (high - low)
        for axis, (name, title) in zip(line, _TITLES.items(), strict=True):
            shade = np.asarray(row["data"]["points"])
            if name != "data":
                axis.scatter(*shade.T, s=4, color="0.8", linewidths=0)
            points = np.asarray(row[name]["points"]).T
            axis.scatter(
                *points, s=5, color=look[name].colour, marker=look[name].marker, linewidths=0
            )
            axis.set_xlim(low[0] - margin[0], high[0] + margin[0])
            axis.set_ylim(low[1] - margin[1], high[1] + margin[1])
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(title)
            if name == "data":
                axis.set_xlabel(f"half to half {row['floor']:.3f}")
            else:
                axis.set_xlabel(
                    f"distance to the data {row[name]['distance']:.3f},\n"
                    f"{row[name]['outside']:.0%} outside of them"
                )
        line[0].set_ylabel(f"H = {row['horizon']}\n{row['variance']:.0%} of variance")
    return figure


@in_style
def ends(numbers: Mapping[str, Any]) -> Figure:
    """Draw where snippets of the data and, in the world model, the priors' latents end (Fig. 5).

    The first two numbers of a position are drawn, and a single one along a line.
    """
    rows = numbers["rows"]
    figure = Figure(figsize=(9.6, 0.5 + 3.3 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(_TITLES), squeeze=False)
    look = looks(list(_TITLES))
    for line, row in zip(axes, rows, strict=True):
        places = {name: _plane(row[name]["ends"]) for name in _TITLES}
        every = np.concatenate(list(places.values()))
        for axis, (name, title) in zip(line, _TITLES.items(), strict=True):
            x, y = places[name].T
            if "free" in numbers:
                draw_walls(axis, np.asarray(numbers["free"], bool), numbers["corner"])
            else:
                low, high = every.min(0), every.max(0)
                margin = np.where(high > low, 0.0, 0.5)  # where all are the same
                axis.set_xlim(low[1] - margin[1], high[1] + margin[1])
                axis.set_ylim(high[0] + margin[0], low[0] - margin[0])
                axis.set_aspect("equal")
            axis.scatter(y, x, s=5, color=look[name].colour, marker=look[name].marker, linewidths=0)
            start = _plane([row["start"]])[0]
            axis.plot(start[1], start[0], marker="*", color="black", ms=9)
            axis.set_title(title)
            distance = row["ends_floor"] if name == "data" else row[name]["ends_distance"]
            what = "half to half" if name == "data" else "distance to the data"
            axis.set_xlabel(f"{what} {distance:.3f}")
        line[0].set_ylabel(f"H = {row['horizon']}")
    return figure


def _plane(positions: ArrayLike) -> np.ndarray:
    """Return the first two numbers (N, 2) of positions (N, g), with a second one of 0 if g is 1."""
    taken = np.asarray(positions)[:, :2]
    return np.pad(taken, ((0, 0), (0, 2 - taken.shape[1])))
