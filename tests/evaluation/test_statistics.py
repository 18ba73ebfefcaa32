import math

import numpy as np
import pytest
from scipy import stats

from lit_offrl.evaluation.statistics import (
    interquartile_mean,
    interval_within_range,
    mean,
    performance_profile,
    standard_error,
    stratified_interval,
)


@pytest.mark.parametrize("count", [1, 3, 4, 10, 101])
def test_interquartile_mean_is_the_trimmed_mean(count):
    values = np.random.default_rng(count).exponential(size=count)
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25))


def test_statistics_of_strata_by_hand():
    one, other = np.array([1.0, 9.0]), np.array([3.0, 4.0, 5.0, 100.0])
    assert mean(one, other) == pytest.approx((5 + 28) / 2)  # datasets alike, not runs
    assert interquartile_mean(one, other) == pytest.approx((3 + 4 + 5 + 9) / 4)
    rows = np.stack([one, one + 1])
    np.testing.assert_allclose(interquartile_mean(rows, axis=-1), [5, 6])


def test_standard_error():
    assert standard_error(np.array([1.0, 2.0, 3.0, 6.0])) == pytest.approx(
        stats.sem([1.0, 2.0, 3.0, 6.0])
    )
    assert math.isnan(standard_error(np.array([1.0])))


def test_the_interval_of_one_samples_mean_is_students():
    values = np.array([1.0, 2.0, 6.0])
    expected = stats.t.interval(0.9, 2, values.mean(), stats.sem(values))
    found = stratified_interval([values], mean, level=0.9, resamples=40_000)
    assert found == pytest.approx(expected, rel=0.02)
    again = (stratified_interval([values], interquartile_mean) for _ in range(2))
    assert next(again) == next(again)


def test_the_interval_of_two_samples_means_is_welchs():
    one, other = np.array([1.0, 2.0, 6.0]), np.array([10.0, 12.0, 17.0, 30.0])
    low, high = stratified_interval([one, other], mean, resamples=40_000)
    # Welch's interval of a difference has the same width as that of a sum
    welch = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
    assert high - low == pytest.approx((welch.high - welch.low) / 2, rel=0.02)
    assert (low + high) / 2 == pytest.approx((3 + 17.25) / 2)


def test_many_problems_at_once_are_each_their_own():
    values = np.random.default_rng(0).normal(size=(3, 5))
    low, high = stratified_interval([values, values + 1], interquartile_mean)
    for row in range(3):
        alone = stratified_interval([values[row], values[row] + 1], interquartile_mean)
        assert (low[row], high[row]) == pytest.approx(alone)


def test_what_has_no_interval():
    assert all(map(math.isnan, stratified_interval([np.array([1.0])], mean)))
    strata = [np.array([1.0, 2.0]), np.array([1.0])]
    assert all(math.isnan(end) for end in stratified_interval(strata, mean))
    assert stratified_interval([np.ones(4)], mean) == (1, 1)


def test_the_share_above_each_threshold():
    strata = [np.array([1.0, 3.0]), np.array([2.0, 2.0, 5.0, 5.0])]
    share, low, high = performance_profile(strata, np.array([0.0, 2.0, 9.0]))
    assert share.tolist() == [1, 0.5, 0]  # not above: the threshold itself
    assert low.tolist()[::2] == [1, 0] == high.tolist()[::2]
    assert 0 <= low[1] < 0.5 < high[1] <= 1
    assert np.isnan(performance_profile([np.array([1.0])], np.zeros(2))[1]).all()


def test_an_interval_of_episodes_stays_within_them():
    lengths = np.array([1.0, 3.0, 5.0, 9.0, 400.0, 500.0])
    wide = stratified_interval([lengths], interquartile_mean)
    assert wide[0] < 1  # Student's, around six lengths: below what a length can be
    low, high = interval_within_range(lengths)
    assert low == 1 and high == wide[1] <= 500
    assert all(map(math.isnan, interval_within_range(lengths[:5])))
    assert interval_within_range(np.full(6, 50.0)) == (50, 50)
