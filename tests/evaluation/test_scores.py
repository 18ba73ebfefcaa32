import numpy as np
import pytest

from lit_offrl.common.errors import EvaluationError
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.evaluation.scores import has_references, normalized_score


def spec(low=20.0, high=220.0):
    return DatasetSpec("data", 2, 1, ref_min_score=low, ref_max_score=high)


def test_references_score_0_and_100():
    assert normalized_score(np.array([20.0, 220.0, 120.0, 320.0]), spec()).tolist() == [
        0.0,
        100.0,
        50.0,
        150.0,
    ]


def test_without_references_there_is_no_score():
    assert not has_references(spec(low=None))
    with pytest.raises(EvaluationError, match="'data' has no reference returns"):
        normalized_score(1.0, spec(low=None))
    with pytest.raises(EvaluationError, match="first must be smaller"):
        normalized_score(1.0, spec(low=1.0, high=1.0))
