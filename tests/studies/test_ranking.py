import math

import numpy as np
import pytest

from lit_offrl.studies.measures import rank_summary

TRUTH = np.array([-3.0, 1.0, 4.0, 9.0])


def test_perfect_estimates():
    assert rank_summary(TRUTH, TRUTH) == {
        "spearman": pytest.approx(1.0),
        "regret_at_1": 0.0,
        "regret_at_1_share": 0.0,
        "mean_absolute_error": 0.0,
    }
    found = rank_summary(TRUTH, 10 * TRUTH + 5)  # order and choice are right, values are not
    assert found["spearman"] == pytest.approx(1.0) and found["regret_at_1"] == 0
    assert found["mean_absolute_error"] == pytest.approx(np.abs(9 * TRUTH + 5).mean())


def test_reversed_estimates_lose_the_whole_range():
    found = rank_summary(TRUTH, -TRUTH)
    assert found["spearman"] == pytest.approx(-1.0)
    assert found["regret_at_1"] == 12.0 and found["regret_at_1_share"] == 1.0


def test_a_hand_computed_case():
    # ranks 1 2 3 4 against 1 3 4 2: 1 − 6 · (0 + 1 + 1 + 4) / (4 · 15) = 0.4
    found = rank_summary(TRUTH, np.array([0.0, 2.0, 3.0, 1.0]))
    assert found["spearman"] == pytest.approx(0.4)
    assert found["regret_at_1"] == 5.0 and found["regret_at_1_share"] == pytest.approx(5 / 12)
    assert found["mean_absolute_error"] == pytest.approx((3 + 1 + 1 + 8) / 4)


def test_what_is_undefined_is_nan_without_a_warning(recwarn):
    constant = rank_summary(TRUTH, np.full(4, 2.0))
    assert math.isnan(constant["spearman"])
    assert constant["regret_at_1"] == 9.0 - TRUTH.mean()  # any of them is as good a guess
    level = rank_summary(np.ones(3), np.arange(3.0))
    assert math.isnan(level["spearman"]) and math.isnan(level["regret_at_1_share"])
    assert level["regret_at_1"] == 0
    assert math.isnan(rank_summary(TRUTH[:1], TRUTH[:1])["spearman"])
    assert all(map(math.isnan, rank_summary(TRUTH[:0], TRUTH[:0]).values()))
    assert not recwarn.list
