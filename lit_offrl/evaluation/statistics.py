"""Summaries of episode returns or scores, with intervals that hold for few values.

The unit that is resampled is one value: a run within a dataset where runs are compared, an episode
where one run is described.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

Statistic = Callable[..., Any]
"""Takes strata (..., K_m), K_m of each, and ``axis``; returns (...)."""

ENOUGH = 6
"""Values whose range has their median between its ends in 97 % of samples, 1 − 2^(1 − 6)."""
MANY = 20
"""Episodes of all runs on a dataset from which on their range is taken for what is possible."""

_HELD = 20_000_000  # numbers that one batch of resamples may have


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of values (K,); NaN for fewer than two."""
    if len(values) < 2:
        return math.nan
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def interquartile_mean(*strata: np.ndarray, axis: int = -1) -> Any:
    """Mean of the middle half of all values together (Agarwal et al., 2021, section 4.3).

    A quarter of the values, rounded down, is left out at each end: of fewer than four none is.

    Args:
        strata: Values (..., K_m) of each stratum, at least one in all.
        axis: Axis along which the values lie.
    """
    values = np.sort(np.concatenate(strata, axis=axis), axis=axis)
    count = values.shape[axis]
    cut = count // 4
    return np.take(values, range(cut, count - cut), axis=axis).mean(axis=axis)


def mean(*strata: np.ndarray, axis: int = -1) -> Any:
    """Mean over strata (..., K_m) of their means: each dataset counts alike."""
    return sum(values.mean(axis=axis) for values in strata) / len(strata)


def stratified_interval(
    strata: Sequence[np.ndarray],
    statistic: Statistic,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of a statistic of strata, such as the scores of runs by dataset; repeatable.

    The statistic ± t · its standard error over resamples within each stratum (scipy's bootstrap of
    several samples). Two corrections make this hold for three to five values, where percentiles of
    resamples cover the truth in 75 to 88 % of cases instead of 95 %: values are moved away from
    their stratum's mean by √(K/(K−1)), without which resamples vary too little, and t has the
    degrees of freedom of the strata's variances (Satterthwaite, 1946), K − 1 for one stratum. For a
    mean of one stratum this is Student's interval. ``python -m benchmarks coverage`` simulates
    how often it covers the truth.

    Args:
        strata: Values (..., K_m) of each stratum. Leading dimensions are separate problems.
        statistic: :func:`mean`, :func:`interquartile_mean` or the like.
        level: Share of cases that the interval should cover.
        resamples: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        Its ends (...), NaN where a stratum has fewer than two values.
    """
    from scipy import stats  # half a second to import: only where there is an interval

    strata = [np.asarray(values, np.float64) for values in strata]
    estimate = np.asarray(statistic(*strata, axis=-1))
    sizes = np.array([values.shape[-1] for values in strata])
    if sizes.min() < 2:
        return np.full_like(estimate, math.nan), np.full_like(estimate, math.nan)
    centres = [values.mean(axis=-1, keepdims=True) for values in strata]
    spread = [
        centre + math.sqrt(count / (count - 1)) * (values - centre)
        for values, centre, count in zip(strata, centres, sizes.tolist(), strict=True)
    ]
    error = _bootstrap(spread, statistic, level, resamples, seed).standard_error
    variances = np.stack([values.var(axis=-1, ddof=1) / values.shape[-1] for values in strata])
    shares = variances / np.maximum(variances.sum(axis=0), np.finfo(np.float64).tiny)
    weights = (shares**2 / (sizes - 1).reshape(-1, *[1] * (shares.ndim - 1))).sum(axis=0)
    freedom = 1 / np.maximum(weights, 1 / sizes.sum())  # all equal: no width, whatever t is
    reach = stats.t.ppf((1 + level) / 2, freedom) * error
    return estimate - reach, estimate + reach


def _bootstrap(
    strata: Sequence[np.ndarray],
    statistic: Statistic,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Any:
    from scipy import stats

    return stats.bootstrap(
        strata,
        statistic,
        n_resamples=resamples,
        batch=max(1, _HELD // sum(values.size for values in strata)),
        vectorized=True,
        axis=-1,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )


def interval_within_range(
    values: np.ndarray, statistic: Statistic = interquartile_mean
) -> tuple[float, float]:
    """Interval of a statistic of a run's episodes (K,), cut at the least and the most of them.

    A length lies between 1 and the step limit and many a return between 0 and a goal's reward,
    which Student's interval around a few does not know. The range of fewer than ``ENOUGH`` values
    misses the truth too often to cut at, and there is no interval: NaN.
    """
    if len(values) < ENOUGH:
        return math.nan, math.nan
    low, high = map(float, stratified_interval([values], statistic))
    return max(low, float(values.min())), min(high, float(values.max()))


def performance_profile(
    strata: Sequence[np.ndarray], thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of values above each threshold (T,), each stratum counting alike, with its band.

    The band is a percentile bootstrap of each threshold by itself, as in Agarwal et al. (2021,
    section 4.2), so that it stays within 0 and 1; of fewer than about ten values it is too narrow.

    Args:
        strata: Values (K_m,) of each stratum.
        thresholds: (T,).

    Returns:
        Share, lower and upper end, (T,) each; the ends are NaN where a stratum has a single value.
    """
    above = [(values > thresholds[:, None]).astype(np.float64) for values in strata]
    share = mean(*above)
    if min(map(len, strata)) < 2:
        return share, np.full_like(share, math.nan), np.full_like(share, math.nan)
    interval = _bootstrap(above, mean).confidence_interval
    return share, interval.low, interval.high


@cache
def simulated() -> dict[tuple[str, int, int, str], float]:
    """How often intervals covered the truth in a simulation, as kept in ``coverage.json``.

    ``python -m benchmarks coverage --json FILE`` makes the numbers anew.

    Returns:
        Coverage by statistic (``mean``, ``IQM``), seeds, datasets and the scores' distribution.
    """
    rows = json.loads(Path(__file__).with_name("coverage.json").read_text())["coverage"]
    return {
        (row["statistic"], row["seeds"], row["datasets"], row["scores"]): row["coverage"]
        for row in rows
    }


def coverage(statistic: str, seeds: int, datasets: int) -> tuple[int, int, dict[str, float]]:
    """Return the simulated setting nearest below: seeds, datasets, coverage by distribution.

    Args:
        statistic: ``mean`` or ``IQM``.
        seeds: Fewest runs of a dataset, at least 2.
        datasets: Number of datasets, at least 1.
    """
    grid = simulated()
    runs = max(count for _, count, _, _ in grid if count <= seeds)
    tasks = max(count for _, _, count, _ in grid if count <= datasets)
    found = {
        shape: share
        for (name, s, d, shape), share in grid.items()
        if (name, s, d) == (statistic, runs, tasks)
    }
    return runs, tasks, found
