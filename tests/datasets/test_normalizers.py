from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.normalizers import MeanStdNormalizer, MinMaxNormalizer, make_normalizer

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


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", [MinMaxNormalizer, MeanStdNormalizer])
def test_scaling_is_undone_and_survives_any_shift_and_unit(kind, seed):
    random = np.random.default_rng(seed)
    data = random.normal(size=(random.integers(2, 200), 4))
    shift, unit = random.uniform(-1e3, 1e3, 4), random.uniform(1, 1e2, 4)
    plain, moved = (torch.tensor(rows).float() for rows in (data, shift + unit * data))
    normalizer = kind(4).fit(moved)
    scaled = normalizer.normalize(moved)
    torch.testing.assert_close(normalizer.denormalize(scaled), moved, rtol=1e-4, atol=1e-3)
    expected = kind(4).fit(plain).normalize(plain)
    torch.testing.assert_close(scaled, expected, rtol=1e-2, atol=1e-2)  # 1e-3 beside the deviation


def test_mean_and_standard_deviation(monkeypatch):
    data = np.random.default_rng(0).normal(50.0, [0.0, 1.0, 1e-4], size=(1000, 3))
    data = data.astype(np.float32)
    normalizer = MeanStdNormalizer(3).fit(data)
    expected = (data - data.mean(0)) / (data.std(0) + 1e-3)
    scaled = normalizer.normalize(torch.from_numpy(data))
    np.testing.assert_allclose(scaled, expected, rtol=1e-3, atol=1e-2)
    assert scaled[:, 0].abs().max() == 0  # constant in the data
    assert abs(normalizer.normalize(torch.tensor([51.0, 50.0, 50.0]))[0].item() - 1e3) < 1
    monkeypatch.setattr("lit_offrl.datasets.normalizers._ROWS", 7)
    parts = MeanStdNormalizer(3).fit(torch.from_numpy(data))  # summed a few rows at a time
    torch.testing.assert_close(parts.state_dict(), normalizer.state_dict())
    loaded = MeanStdNormalizer(3)
    loaded.load_state_dict(normalizer.state_dict())
    assert loaded.fitted and torch.equal(loaded.normalize(scaled), normalizer.normalize(scaled))
    with pytest.raises(ConfigError, match=r"give \(N, 2\)"):
        MeanStdNormalizer(2).fit(data)


def test_the_option_names_them():
    assert isinstance(make_normalizer("mean_std", 2), MeanStdNormalizer)
    for kind in (False, True, "min_max"):
        assert isinstance(make_normalizer(kind, 2), MinMaxNormalizer)
