"""Colours that stay the same from figure to figure, and apart for colour-blind readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cycler import cycler

COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7F7F7F"),
    # Okabe and Ito (2008), with grey in black's place: black is for the data; dark ones of Tol's
    *("#332288", "#882255", "#117733", "#999933"),
)

STYLE: Mapping[str, Any] = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "grid.alpha": 0.25,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 80,
}
"""For ``plt.rcParams.update``, so that one's own drawings look like those made here."""


def colours(names: Sequence[str]) -> dict[str, str]:
    """Give each name a colour, by its place in the list; the thirteenth begins again."""
    return {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}
