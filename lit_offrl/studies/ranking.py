"""How well estimated values rank policies, which off-policy evaluation is judged by."""

from __future__ import annotations

import math

import numpy as np

from lit_offrl.studies.correlations import correlations


def rank_summary(truth: np.ndarray, estimates: np.ndarray) -> dict[str, float]:
    """Compare estimates of policies' values with their true values; both (K,).

    Source of the measures: Fu et al., 2021, Benchmarks for deep off-policy evaluation, section 3.

    Returns:
        ``spearman``: the rank correlation; NaN where either does not vary or K < 2.
        ``regret_at_1``: what is lost by taking the policy that is estimated best: the best true
        value less that policy's; the mean over policies estimated equally best. NaN for K = 0.
        ``regret_at_1_share``: the same by the range of the true values; NaN where they are equal.
        ``mean_absolute_error``: in units of the value. NaN for K = 0.
    """
    truth, estimates = np.asarray(truth, np.float64), np.asarray(estimates, np.float64)
    if len(truth) == 0:
        names = ("spearman", "regret_at_1", "regret_at_1_share", "mean_absolute_error")
        return dict.fromkeys(names, math.nan)
    chosen = truth[estimates == estimates.max()]
    regret = truth.max() - chosen.mean()
    return {
        "spearman": correlations(truth, estimates)["spearman"],
        "regret_at_1": float(regret),
        "regret_at_1_share": float(regret / np.ptp(truth)) if np.ptp(truth) > 0 else math.nan,
        "mean_absolute_error": float(np.abs(truth - estimates).mean()),
    }
