"""Where a dataset's advantages lie."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

_MOST_BINS = 200


def advantage_histogram(advantages: np.ndarray, bin_width: float = 0.25) -> Figure:
    """Draw the histogram of advantages with a mark at 0 (ACD, Figure 1).

    Args:
        advantages: (N,), in the rewards' units.
        bin_width: of a bin; where the advantages reach over more than 200 of them, a multiple.

    Returns:
        A figure with a logarithmic count, so that the thin coverage above 0 is visible.
    """
    values = np.asarray(advantages, dtype=float)
    low, high = values.min(), values.max()
    width = bin_width * max(1.0, np.ceil((high - low) / (bin_width * _MOST_BINS)))
    edges = width * np.arange(np.floor(low / width), np.floor(high / width) + 2)
    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.hist(values, bins=edges, color="#4c78a8", log=True)
    axis.axvline(0.0, color="0.2", linewidth=1, linestyle="--")
    share = 100 * float((values > 0).mean())
    axis.set_title(f"{len(values):,} held-out steps, {share:.1f} % above 0", fontsize=10)
    axis.set_xlabel(f"advantage Q(s, a) − V(s) (bins of {width:g})")
    axis.set_ylabel("steps")
    axis.grid(alpha=0.3)
    return figure
