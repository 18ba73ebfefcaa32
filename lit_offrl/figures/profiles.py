"""Performance profiles: which share of runs scores above each threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lit_offrl.figures.style import in_style, legend_above, looks


class Profile(NamedTuple):
    """Share of runs above each threshold (T,), and the ends of its band (T,)."""

    share: np.ndarray
    low: np.ndarray
    high: np.ndarray


@in_style
def performance_profiles(
    thresholds: np.ndarray,
    profiles: Mapping[str, Profile],
    *,
    label: str,
    data: Mapping[str, float] | None = None,
    methods: Sequence[str] = (),
) -> Figure:
    """Draw each method's share of runs with score > τ (Agarwal et al., 2021, section 4.2).

    A curve that lies above another's everywhere is better everywhere.

    Args:
        thresholds: Thresholds τ (T,), ascending.
        profiles: Profiles by method.
        label: Label of the horizontal axis.
        data: Mean over the episodes of each dataset, marked on the axis.
        methods: Methods of the table, if some have no profile: each keeps the colour of its bars.
    """
    figure = Figure(figsize=(6.2, 3.9), layout="constrained")
    axis = figure.subplots()
    look_of = looks(methods or list(profiles))
    for name, (share, low, high) in profiles.items():
        look = look_of[name]
        axis.fill_between(thresholds, low, high, step="post", color=look.colour, alpha=0.18, lw=0)
        axis.step(
            thresholds, share, where="post", color=look.colour, ls=look.line, lw=2, label=name
        )
    if data:
        axis.vlines(list(data.values()), 0, 0.06, color="black", lw=1.8, label="data's mean")
    axis.axhline(0.5, color="0.6", lw=0.8, ls=":", zorder=0)
    axis.set(xlim=(thresholds[0], thresholds[-1]), ylim=(-0.01, 1.02))
    axis.set(xlabel=f"{label} τ", ylabel="share of runs above τ", yticks=np.linspace(0, 1, 5))
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.grid()
    legend_above(figure, axis.get_legend_handles_labels()[0])
    return figure
