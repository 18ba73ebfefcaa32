from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.normalizers import MinMaxNormalizer

DATA = np.array([[0, 5, -1e3], [2, 5, 1e3], [1, 5, 0]], dtype=np.float32)


def test_the_datas_range_becomes_minus_one_to_one():
    normalizer = MinMaxNormalizer(3).fit(DATA)
    scaled = normalizer.normalize(torch.from_numpy(DATA))
    assert scaled.tolist() == [[-1, 0, -1], [1, 0, 1], [0, 0, 0]]
    assert normalizer.normalize(torch.tensor([4.0, 5.0, 0.0])).tolist() == [3, 0, 0]
    batched = torch.randn(4, 2, 3)
    torch.testing.assert_close(normalizer.denormalize(normalizer.normalize(batched)), batched)


def test_a_constant_dimension_stays_finite_and_comes_back():
    normalizer = MinMaxNormalizer(1).fit(np.full((5, 1), 1e4, np.float32))
    assert normalizer.normalize(torch.tensor([[1e4]])).tolist() == [[0.0]]
    assert normalizer.normalize(torch.tensor([[1e4 + 2]])).tolist() == [[2.0]]
    assert normalizer.denormalize(torch.tensor([[0.0]])).tolist() == [[1e4]]


def test_statistics_live_in_the_state_dict():
    normalizer, loaded = MinMaxNormalizer(3), MinMaxNormalizer(3)
    assert not normalizer.fitted
    loaded.load_state_dict(normalizer.fit(torch.from_numpy(DATA)).state_dict())
    assert loaded.fitted and torch.equal(loaded.low, normalizer.low)


def test_other_sizes_are_refused():
    with pytest.raises(ConfigError, match=r"give \(N, 2\)"):
        MinMaxNormalizer(2).fit(DATA)
