"""Measures of two quantities, of two samples, and of estimated values against true ones."""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial.distance import cdist, pdist
from scipy.stats import pearsonr, spearmanr


def correlations(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Return Spearman's and Pearson's correlation of two lists (N,); NaN where one is constant."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return {"spearman": math.nan, "pearson": math.nan}
    measures = {"spearman": spearmanr, "pearson": pearsonr}
    return {name: float(measure(one, other).statistic) for name, measure in measures.items()}


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
    regret = truth.max() - truth[estimates == estimates.max()].mean()
    return {
        "spearman": correlations(truth, estimates)["spearman"],
        "regret_at_1": float(regret),
        "regret_at_1_share": float(regret / np.ptp(truth)) if np.ptp(truth) > 0 else math.nan,
        "mean_absolute_error": float(np.abs(truth - estimates).mean()),
    }


def energy_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the energy distance 2 E|X − Y| − E|X − X'| − E|Y − Y'| of samples (N, d), (M, d).

    Unbiased: 0 in the mean for two samples of one distribution, so at times below it. In the
    samples' own unit. Source: Székely and Rizzo, "Energy statistics" (2013).
    """
    return float(2 * cdist(one, other).mean() - pdist(one).mean() - pdist(other).mean())


def policy_accuracy(
    data: np.ndarray, policy: np.ndarray, others: dict[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, float]:
    """Train a random forest to tell the policy of a state, and score it on other states.

    Args:
        data: States (N, o) to train on.
        policy: Policy (N,) of each state.
        others: States (M, o) and their policies (M,), by name.

    Returns:
        By name, the mean over policies of the share of its states that are recognised.
    """
    from sklearn.ensemble import RandomForestClassifier  # seconds to import
    from sklearn.metrics import balanced_accuracy_score

    forest = RandomForestClassifier(n_estimators=100, min_samples_leaf=5, random_state=0)
    forest.fit(data, policy)
    return {
        name: float(balanced_accuracy_score(truth, forest.predict(states)))
        for name, (states, truth) in others.items()
    }
