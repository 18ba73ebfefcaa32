"""How figures look, and how they become files.

Colours stay the same from figure to figure, and apart for colour-blind readers.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cycler import cycler

from lit_offrl.common.files import whole_file

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

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

_LABEL = 30  # letters of a label in one line
_LETTERS = 15  # of a legend in an inch
_PATCH = 6  # width of the patch before a label, in letters
_LINE = 0.2  # inches of a line


def colours(names: Sequence[str]) -> dict[str, str]:
    """Give each name a colour, by its place in the list; the thirteenth begins again."""
    return {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}


def legend_above(figure: Figure, handles: Sequence[Artist]) -> None:
    """Put a legend above all axes of a figure with a constrained layout.

    Long labels are folded, and the figure grows by what they take.
    """
    labels = [textwrap.fill(str(handle.get_label()), _LABEL) for handle in handles]
    widest = max(len(line) for label in labels for line in label.split("\n"))
    width = figure.get_figwidth()
    per_row = int(_LETTERS * width / (widest + _PATCH))
    columns = max(1, min(max(3, round(width / 1.9)), len(labels), per_row))
    sizes = [1 + label.count("\n") for label in labels]
    lines = max(int(column.sum()) for column in np.array_split(sizes, columns))
    figure.set_figheight(figure.get_figheight() + _LINE * (lines - 1))
    figure.legend(
        handles=list(handles),
        labels=labels,
        frameon=False,
        loc="outside upper center",
        ncols=columns,
        fontsize=9,
    )


def save_figure(figure: Figure, path: Path, dpi: int = 120) -> Path:
    """Write a figure as a PNG and return its path; missing folders are made.

    Raises:
        FileError: it cannot be written; what was there is there still.
    """
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
    return path
