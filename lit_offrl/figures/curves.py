"""Curves of a training, and of the rounds of the online mode."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from lit_offrl.figures.style import DASHED, in_style, looks

_COLUMNS = 3


class _ThreeDigits(LogFormatter):
    """Labels the ticks that a logarithmic axis labels, with digits enough to tell them apart."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:.3g}" if super().__call__(x, pos) else ""


@in_style
def training_curves(history: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Draw each metric against the optimiser step, ``train/x`` and ``val/x`` in one panel.

    Args:
        history: (step, value) pairs by metric name.
    """
    panels: dict[str, dict[str, Sequence[tuple[int, float]]]] = {}
    for name, points in sorted(history.items()):
        split, _, rest = name.partition("/")
        shared = split in ("train", "val") and rest
        panels.setdefault(rest if shared else name, {})[split if shared else name] = points
    rows = max(1, math.ceil(len(panels) / _COLUMNS))
    height = 2.8 * rows
    figure = Figure(figsize=(4.2 * _COLUMNS, height), constrained_layout=False)
    # A layout that measures all labels first takes longer than the drawing itself.
    figure.subplots_adjust(
        left=0.06, right=0.98, bottom=0.5 / height, top=1 - 0.35 / height, wspace=0.22, hspace=0.5
    )
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axis, (title, lines) in zip(axes, panels.items(), strict=False):
        for (label, points), look in zip(lines.items(), looks([*lines]).values(), strict=True):
            steps, values = np.asarray(points, dtype=float).reshape(-1, 2).T
            marker = look.marker if len(steps) < 20 else None
            axis.plot(
                steps, values, label=label, marker=marker, ms=3, lw=1.2, ls=look.line,
                color=look.colour,
            )  # fmt: skip
        axis.set_title(title)
        axis.set_xlabel("optimiser step")
        axis.grid()
        positive = all(value > 0 for points in lines.values() for _, value in points)
        if positive and "loss" in title:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(_ThreeDigits())
            axis.yaxis.set_minor_formatter(_ThreeDigits(minor_thresholds=(1, 0.4)))
        if len(lines) > 1:
            axis.legend()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure


def from_numbers(numbers: Mapping[str, Any]) -> Figure:
    """Draw the numbers of ``studies.training_curves``."""
    return training_curves(numbers["history"])


@in_style
def improvement_curve(rounds: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Draw each round's return against the environment steps that it was learned from.

    Args:
        rounds: Rounds with ``environment_steps``, ``return_mean``, ``return_standard_error`` (of
            the evaluation) and, if any rows were collected, their ``collected_return_mean``.
        title: Title of the figure.
    """
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    steps = np.array([one["environment_steps"] for one in rounds], float)
    names = ("return_mean", "return_standard_error", "collected_return_mean")
    mean, error, collected = (
        np.array([one.get(name, math.nan) for one in rounds], float) for name in names
    )
    axis.fill_between(steps, mean - error, mean + error, alpha=0.25, linewidth=0)
    axis.plot(steps, mean, "o-", ms=4, label="policy, ± s.e.")
    axis.plot(steps, collected, "s", ls=DASHED, ms=4, color="0.4", label="data, with noise")
    axis.set(xlabel="environment steps", ylabel="return", title=title)
    axis.grid()
    axis.legend()
    return figure
