"""Whether two samples are of one distribution: a distance, and what a classifier can tell."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist, pdist


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
