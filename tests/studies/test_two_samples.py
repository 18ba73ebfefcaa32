"""Correlations, distances and classifiers with known answers."""

import math

import numpy as np
import pytest

from lit_offrl.studies.inputs import plain
from lit_offrl.studies.measures import correlations, energy_distance, policy_accuracy


def test_a_monotone_relation_has_spearman_1():
    x = np.linspace(-2, 2, 9)
    rising = correlations(x, np.exp(3 * x))
    assert rising["spearman"] == pytest.approx(1) and rising["pearson"] < 0.9
    assert correlations(x, -2 * x + 1) == pytest.approx({"spearman": -1, "pearson": -1})
    assert correlations([1, 2, 3, 4], [1, 3, 2, 4])["spearman"] == pytest.approx(0.8)


@pytest.mark.parametrize("other", [np.ones(4), np.array([])])
def test_what_does_not_vary_has_no_correlation(other):
    found = correlations(np.arange(len(other)), other)
    assert math.isnan(found["spearman"]) and math.isnan(found["pearson"])
    assert plain(found) == {"spearman": None, "pearson": None}


def test_the_energy_distance_of_known_samples():
    # 2 E|X − Y| − E|X − X'| − E|Y − Y'| of {0, 2} and {4, 4}: 2 · 3 − 2 − 0
    one, other = np.array([[0.0], [2.0]]), np.array([[4.0], [4.0]])
    assert energy_distance(one, other) == pytest.approx(4)
    random = np.random.default_rng(0)
    same = [energy_distance(*random.normal(size=(2, 200, 2))) for _ in range(50)]
    assert abs(np.mean(same)) < 0.004 and min(same) < 0 < max(same)
    assert energy_distance(random.normal(size=(200, 2)), random.normal(3, 1, (200, 2))) > 3


def test_a_classifier_knows_what_can_be_known():
    random = np.random.default_rng(1)
    policy = np.repeat([0, 1, 2], 200)

    def states(scatter):
        return np.eye(3)[policy] + scatter * random.normal(size=(600, 3))

    found = policy_accuracy(
        states(0.1),
        policy,
        {"same": (states(0.1), policy), "shuffled": (states(0.1), random.permutation(policy))},
    )
    assert found["same"] > 0.99 and found["shuffled"] == pytest.approx(1 / 3, abs=0.06)
    blind = policy_accuracy(0 * states(1), policy, {"data": (0 * states(1), policy)})
    assert blind["data"] == pytest.approx(1 / 3)
