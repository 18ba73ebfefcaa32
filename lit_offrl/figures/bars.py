"""Bars of scores by dataset, as in Mazoure et al., Fig. 5."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lit_offrl.figures.style import DASHED, Look, in_style, legend_above, looks

_IN_A_ROW = 6  # datasets that share an axis
_GROUP = 0.8  # of the distance between groups is taken by bars
_WIDEST = 0.35  # of one bar, in the same unit


class Bar(NamedTuple):
    """A bar's height, the ends of its interval (NaN for none), and the runs behind it (K,)."""

    value: float
    low: float
    high: float
    runs: np.ndarray


@in_style
def score_bars(
    bars: Mapping[tuple[str, str], Bar],
    datasets: Sequence[str],
    methods: Sequence[str],
    data: Mapping[str, float],
    *,
    label: str,
    share: bool = True,
) -> Figure:
    """Draw a group of bars for each dataset: a bar a method, a dot a run, a line for the data.

    Intervals that would dwarf the bars are cut, with an arrow.

    Args:
        bars: Bars by (dataset, method). The place of a missing one stays empty, with a cross.
        datasets: Datasets in the order of the figure.
        methods: Methods in the order of the figure.
        data: Mean over the episodes of each dataset, if known.
        label: Label of the vertical axis.
        share: Whether all datasets have one unit. Otherwise each has an axis of its own.
    """
    lines = math.ceil(len(datasets) / _IN_A_ROW)
    size = math.ceil(len(datasets) / lines) if share else 1
    groups = [datasets[first : first + size] for first in range(0, len(datasets), size)]
    columns = 1 if share else min(3, len(groups))
    rows = math.ceil(len(groups) / columns)
    wide = size * (0.5 + 0.42 * len(methods)) * columns
    figure = Figure(figsize=(max(5.6, 1.4 + wide), 0.5 + 3.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=share).ravel()
    look = looks(methods)
    for axis, group in zip(axes, groups, strict=False):
        _draw(axis, group, methods, bars, data, look)
        axis.set_xlim(-0.6, size - 0.4)  # bars of one width, also in a row that is not full
    for axis in axes[len(groups) :]:
        axis.set_axis_off()
    for axis in axes[::columns]:
        axis.set_ylabel(label)
    shown = [bar for key, bar in bars.items() if key[0] in datasets]
    for axis, group in zip(axes, [datasets] * len(groups) if share else groups, strict=False):
        own = [bar for key, bar in bars.items() if key[0] in group] if not share else shown
        _limit(axis, own, [data[name] for name in group if name in data])
    handles: list[Patch | Line2D] = [Patch(label=name, **look[name].fill) for name in methods]
    dot = {"marker": "o", "ls": "", "ms": 4, "mfc": "white", "mec": "0.25"}
    handles.append(Line2D([], [], label="a run", **dot))  # type: ignore[arg-type]
    if any(math.isfinite(bar.low) for bar in bars.values()):
        handles.append(Line2D([], [], color="0.15", lw=1.5, label="95 % interval of the mean"))
    if any(name in data for name in datasets):
        handles.append(Line2D([], [], color="black", ls=DASHED, lw=1.4, label="data"))
    legend_above(figure, handles)
    return figure


def from_numbers(numbers: Mapping[str, Any]) -> Figure:
    """Draw the numbers of ``studies.scores``."""
    bars = {
        (bar["dataset"], bar["method"]): Bar(
            bar["value"], bar["low"], bar["high"], np.asarray(bar["runs"])
        )
        for bar in numbers["bars"]
    }
    return score_bars(
        bars,
        numbers["datasets"],
        numbers["methods"],
        numbers["data"],
        label=numbers["label"],
        share=numbers["one_unit"],
    )


def _draw(
    axis: Axes,
    datasets: Sequence[str],
    methods: Sequence[str],
    bars: Mapping[tuple[str, str], Bar],
    data: Mapping[str, float],
    look: Mapping[str, Look],
) -> None:
    width = min(_GROUP / len(methods), _WIDEST)
    for place, dataset in enumerate(datasets):
        for order, method in enumerate(methods):
            x = place + (order - (len(methods) - 1) / 2) * width
            bar = bars.get((dataset, method))
            if bar is None:
                axis.plot(
                    x, 0, marker="x", color=look[method].colour, ms=6, clip_on=False, zorder=4
                )
                continue
            axis.bar(x, bar.value, 0.9 * width, zorder=2, **look[method].fill)
            if math.isfinite(bar.low):
                axis.vlines(x, bar.low, bar.high, color="0.15", lw=1.5, zorder=3)
            spots = x + width * 0.22 * np.linspace(-1, 1, len(bar.runs)) * (len(bar.runs) > 1)
            axis.scatter(spots, bar.runs, s=13, color="white", edgecolors="0.25", lw=0.8, zorder=4)
        if dataset in data:
            reach = width * len(methods) / 2 + 0.03
            ends = place - reach, place + reach
            axis.hlines(data[dataset], *ends, color="black", ls=DASHED, lw=1.4, zorder=3.5)
    axis.axhline(0, color="0.3", lw=0.8)
    axis.set_xticks(range(len(datasets)), [_folded(name) for name in datasets])
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="y", zorder=0)
    axis.spines["bottom"].set_visible(False)


def _limit(axis: Axes, bars: Sequence[Bar], data: Sequence[float]) -> None:
    """Fit the axis to runs and data; of the intervals as much as half their height again shows."""
    points = [0.0, *data, *(value for bar in bars for value in (bar.value, *bar.runs))]
    low, high = min(points), max(points)
    margin = 0.5 * ((high - low) or 1.0)
    ends = [end for bar in bars for end in (bar.low, bar.high) if math.isfinite(end)]
    bottom = max(min([low, *ends]), low - margin)
    top = min(max([high, *ends]), high + margin)
    pad = 0.04 * ((top - bottom) or 1.0)
    axis.set_ylim(bottom - pad * (bottom < 0), top + pad)
    reach = dict(zip(("v", "^"), axis.get_ylim(), strict=True))
    for lines in axis.collections:
        if getattr(lines, "get_segments", None) is None:
            continue
        for (x, start), (other, end) in lines.get_segments():  # type: ignore[attr-defined]
            for marker, y, cut in (("v", start, start < reach["v"]), ("^", end, end > reach["^"])):
                if x == other and cut and y is not None:
                    axis.plot(x, reach[marker], marker=marker, color="0.15", ms=5, clip_on=False)


def _folded(name: str) -> str:
    """Break a long name in two at the dash nearest to its middle."""
    dashes = [place for place, letter in enumerate(name) if letter == "-"]
    if len(name) < 14 or not dashes:
        return name
    cut = min(dashes, key=lambda place: abs(place - len(name) / 2))
    return f"{name[: cut + 1]}\n{name[cut + 1 :]}"
