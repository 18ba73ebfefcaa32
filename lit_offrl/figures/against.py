"""Scores against an option, or against the optimiser step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from lit_offrl.figures.style import in_style, legend_above, looks

_COLUMNS = 3


@in_style
def from_numbers(numbers: Mapping[str, Any]) -> Figure:
    """Draw the numbers of ``studies.scores.ScoreAgainst``: a panel a dataset, a line a method.

    Values of the option that are all numbers stand at their place, on a logarithmic axis where they
    span more than tenfold; others stand side by side.
    """
    places = _places(list(dict.fromkeys(point["option"] for point in numbers["points"])))
    figure, axes = _panels(numbers, places)
    for axis in axes:
        if _spread(places) > 10:
            axis.set_xscale("log")
        axis.set_xticks([*places.values()], [*places])
        axis.minorticks_off()
    return figure


@in_style
def learning_curves(numbers: Mapping[str, Any]) -> Figure:
    """Draw the numbers of ``studies.learning_curves``: a panel a dataset, a line a method."""
    places = {point["option"]: float(point["option"]) for point in numbers["points"]}
    figure, axes = _panels(numbers, places)
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    return figure


def _panels(
    numbers: Mapping[str, Any], places: Mapping[str, float]
) -> tuple[Figure, Sequence[Axes]]:
    """Draw the lines with their intervals and runs; return the panels that are in use, too."""
    points = numbers["points"]
    datasets = list(dict.fromkeys(point["dataset"] for point in points))
    methods = sorted({point["method"] for point in points})
    columns = min(_COLUMNS, len(datasets))
    rows = math.ceil(len(datasets) / columns)
    figure = Figure(figsize=(max(5.0, 4.0 * columns), 0.6 + 3.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, dataset in zip(axes, datasets, strict=False):
        unit = "return"
        for method, look in looks(methods).items():
            line = [p for p in points if p["dataset"] == dataset and p["method"] == method]
            if not line:
                continue
            unit = line[0]["unit"]
            x = np.array([places[p["option"]] for p in line])
            y, low, high = (np.array([p[k] for p in line], float) for k in ("value", "low", "high"))
            style = {"color": look.colour, "ls": look.line, "marker": look.marker}
            axis.plot(x, y, lw=2, ms=5, label=method, zorder=3, **style)
            axis.fill_between(x, low, high, color=look.colour, alpha=0.15, lw=0)
            for place, point in zip(x, line, strict=True):
                spots = np.full(len(point["runs"]), place)
                dots = {"marker": look.marker, "facecolors": "white", "edgecolors": look.colour}
                axis.scatter(spots, point["runs"], s=12, zorder=4, **dots)
        # Of the runs: an interval of two or three seeds may be many times as wide.
        shown = [y for p in points if p["dataset"] == dataset for y in (p["value"], *p["runs"])]
        margin = 0.06 * ((max(shown) - min(shown)) or 1.0)
        axis.set_ylim(min(shown) - margin, max(shown) + margin)
        label = "normalised score" if unit == "score" else "return"
        axis.set(title=dataset, xlabel=numbers["option"], ylabel=label)
        axis.grid()
    for axis in axes[len(datasets) :]:
        axis.set_axis_off()
    if len(methods) > 1:  # each in the panel of any dataset
        found = (axis.get_legend_handles_labels() for axis in axes)
        lines = {label: line for both in found for line, label in zip(*both, strict=True)}
        legend_above(figure, [lines[method] for method in methods])
    return figure, list(axes[: len(datasets)])


def _places(texts: list[str]) -> dict[str, float]:
    try:
        return {text: float(text) for text in texts}
    except ValueError:
        return {text: float(place) for place, text in enumerate(texts)}


def _spread(places: Mapping[str, float]) -> float:
    """Return the ratio of the largest to the smallest place; 0 where one is not positive."""
    low, high = min(places.values()), max(places.values())
    return high / low if low > 0 else 0.0
