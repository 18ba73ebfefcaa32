"""Summaries of episode returns or scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of values (K,); NaN for fewer than two."""
    if len(values) < 2:
        return math.nan
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half of values (K,), K ≥ 1 (Agarwal et al., 2021, section 4.3).

    A quarter of the values, rounded down, is left out at each end.
    """
    cut = len(values) // 4
    return float(np.sort(values)[cut : len(values) - cut].mean())


def bootstrap_interval(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], float] = interquartile_mean,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of values (K,), K ≥ 1; the same each time."""
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    spread = [statistic(values[draw]) for draw in draws]
    low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
