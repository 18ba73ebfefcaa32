"""A legend above the axes that is never wider than its figure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

_LABEL = 30  # letters of a label in one line
_LETTERS = 15  # of a legend in an inch
_PATCH = 6  # width of the patch before a label, in letters
_LINE = 0.2  # inches of a line


def legend_above(figure: Figure, handles: Sequence[Artist]) -> None:
    """Put a legend above all axes: long labels are folded, and the figure grows by what it takes.

    Args:
        figure: with a constrained layout.
        handles: with their labels.
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
