"""How figures look, and how they become files.

A series has a colour, a line, a marker and a hatch of its own, so that figures can be read by the
colour-blind and in black and white. Sizes of text are alike in all of them.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.colors import to_rgb
from matplotlib.text import Text

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
    "figure.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "grid.alpha": 0.25,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "hatch.linewidth": 0.7,
    "figure.constrained_layout.use": True,
    "figure.dpi": 80,
}
"""Pass it to ``plt.rcParams.update`` to make your own drawings look like those made here."""

DASHED = (0, (4, 2))
"""The line of what is compared with: the data, the truth."""

_HYPHEN = re.compile(r"(?<!\w)-(?=\d)")
_Line = str | tuple[int, tuple[float, ...]]
_LINES: Sequence[_Line] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (2, 2)))
_MARKERS = "os^Dv<>PX*hp"
_HATCHES = (
    *("", "////", "....", r"\\\\", "xxxx", "----", "||||", "++++"),
    *("//..", "--..", "||..", "xx--"),
)
_LIGHT = 0.55  # luminance from which black on a colour is clearer than white

_P = ParamSpec("_P")

_LABEL = 30  # letters of a label in one line
_LETTERS = 15  # of a legend in an inch
_PATCH = 6  # width of the patch before a label, in letters
_LINE = 0.2  # inches of a line


class Look(NamedTuple):
    """What tells a series from the others, each by itself."""

    colour: str
    line: _Line
    marker: str
    hatch: str

    @property
    def fill(self) -> dict[str, Any]:
        """Options of a patch with this colour and hatch."""
        light = np.dot(to_rgb(self.colour), (0.299, 0.587, 0.114)) > _LIGHT
        ink = "0.3" if light else "white"
        return {"facecolor": self.colour, "edgecolor": ink, "hatch": self.hatch, "linewidth": 0}


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Give each name a look, by its place in the list; the thirteenth begins again."""
    every = zip(cycle(COLOURS), cycle(_LINES), cycle(_MARKERS), cycle(_HATCHES), strict=True)
    return {name: Look(*parts) for name, parts in zip(names, every, strict=False)}


def in_style(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Draw with ``STYLE``, whatever settings of matplotlib the caller has, and with minus signs
    where the texts' numbers have hyphens, as the axes' own have.
    """

    @wraps(draw)
    def styled(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        settings: dict[Any, Any] = dict(STYLE)
        with matplotlib.rc_context(settings):
            figure = draw(*args, **kwargs)
        for text in figure.findobj(Text):
            text.set_text(_HYPHEN.sub("−", text.get_text()))
        return figure

    return styled


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
        handlelength=3,
    )


def save_figure(figure: Figure, path: Path, dpi: int = 120) -> Path:
    """Write a figure as a PNG and return its path; missing folders are made.

    Raises:
        FileError: it cannot be written; what was there is there still.
    """
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
    return path
