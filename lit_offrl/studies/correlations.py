"""Correlations of two quantities."""

from __future__ import annotations

import numpy as np
from scipy.stats import pearsonr, spearmanr


def correlations(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Return Spearman's and Pearson's correlation of two lists (N,); NaN where one is constant."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return {"spearman": float("nan"), "pearson": float("nan")}
    return {
        "spearman": float(spearmanr(one, other).statistic),
        "pearson": float(pearsonr(one, other).statistic),
    }
