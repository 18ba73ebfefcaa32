"""Pictures as files, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lit_offrl.common.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path, dpi: int = 120) -> Path:
    """Write a figure as a PNG and return its path; missing folders are made.

    Raises:
        FileError: it cannot be written; what was there is there still.
    """
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
    return path
