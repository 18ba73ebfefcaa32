import math

import numpy as np
import pytest
from scipy import stats

from lit_offrl.evaluation.statistics import bootstrap_interval, interquartile_mean, standard_error


@pytest.mark.parametrize("count", [1, 3, 4, 10, 101])
def test_interquartile_mean_is_the_trimmed_mean(count):
    values = np.random.default_rng(count).exponential(size=count)
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25))


def test_standard_error():
    assert standard_error(np.array([1.0, 2.0, 3.0, 6.0])) == pytest.approx(
        stats.sem([1.0, 2.0, 3.0, 6.0])
    )
    assert math.isnan(standard_error(np.array([1.0])))


def test_the_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(200, 40))
    intervals = [bootstrap_interval(row, np.mean, level=0.9, resamples=200) for row in draws]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert 0.82 <= covered <= 0.95
    assert bootstrap_interval(draws[0]) == bootstrap_interval(draws[0])
