"""How often the intervals of `lit-offrl compare` cover the truth, by simulation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lit_offrl.evaluation.statistics import (
    Statistic,
    interquartile_mean,
    mean,
    stratified_interval,
)

STATISTICS: dict[str, Statistic] = {"mean": mean, "IQM": interquartile_mean}
SHAPES = {
    "normal": stats.norm(),
    "skewness 1": stats.gamma(4, loc=-2, scale=0.5),  # mean 0, standard deviation 1, like the rest
    "skewness 2": stats.expon(loc=-1),
}
SEEDS = (2, 3, 4, 5, 7, 10, 20)
DATASETS = (1, 2, 4, 8, 12)
HOLDS = (0.93, 0.97)  # what may be called 95 % over 1,000 repetitions
_POINTS = 100_000  # of a distribution, evenly spaced in probability, for its true IQM


@dataclass(frozen=True)
class CoverageResult:
    """Share of ``repeats`` simulated tables whose interval covered the truth.

    ``bias`` is the estimate's mean error and ``width`` the interval's mean half width, both in
    standard deviations of the estimate.
    """

    statistic: str
    seeds: int
    datasets: int
    scores: str
    repeats: int
    coverage: float
    bias: float
    width: float


def run_coverage(
    *,
    seed: int = 0,
    repeats: int = 1000,
    resamples: int = 500,
    statistics: Sequence[str] = tuple(STATISTICS),
    seeds: Sequence[int] = SEEDS,
    datasets: Sequence[int] = DATASETS,
    shapes: Sequence[str] = tuple(SHAPES),
) -> Iterator[CoverageResult]:
    """Simulate runs' scores and count how often the interval has the truth in it.

    Datasets have means from 0 to 100, evenly spaced, and standard deviations from 8 to 20 in mixed
    order. The truth of the mean is the mean of the datasets' true means, that of the IQM the IQM of
    infinitely many runs of each dataset.

    Args:
        seed: of scores and resamples.
        repeats: simulated tables, all at once.
        resamples: of an interval.
        statistics: which of ``STATISTICS``.
        seeds: runs of each dataset.
        datasets: how many.
        shapes: which of ``SHAPES``, the distribution of a dataset's scores.
    """
    for name in statistics:
        for shape in shapes:
            for count in datasets:
                for runs in seeds:
                    random = np.random.default_rng([seed, count, runs])
                    centres = np.linspace(0, 100, count) if count > 1 else np.zeros(1)
                    spreads = random.permutation(np.linspace(8, 20, count))
                    truth = _truth(name, shape, centres, spreads)
                    strata = [
                        centre + spread * SHAPES[shape].rvs((repeats, runs), random)
                        for centre, spread in zip(centres, spreads, strict=True)
                    ]
                    low, high = stratified_interval(
                        strata, STATISTICS[name], resamples=resamples, seed=seed
                    )
                    estimate = (low + high) / 2
                    deviation = estimate.std()
                    yield CoverageResult(
                        statistic=name,
                        seeds=runs,
                        datasets=count,
                        scores=shape,
                        repeats=repeats,
                        coverage=float(np.mean((low <= truth) & (truth <= high))),
                        bias=float((estimate.mean() - truth) / deviation),
                        width=float((high - low).mean() / 2 / deviation),
                    )


def _truth(name: str, shape: str, centres: np.ndarray, spreads: np.ndarray) -> float:
    if name == "mean":
        return float(centres.mean())
    points = SHAPES[shape].ppf((np.arange(_POINTS) + 0.5) / _POINTS)
    return float(interquartile_mean((centres[:, None] + spreads[:, None] * points).ravel()))
