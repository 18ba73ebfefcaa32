"""Mountain Car's study on a model whose values are known."""

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.hdf5 import read_hdf5
from lit_offrl.studies.mountain_car import Truth, checkpoints_in, discounted_returns, measure

GAMMA = 0.9


class Known:
    """A module whose values are ``value(φ)`` and whose sampled states hold their policy's number,
    at which the reward is ``reward(φ)``.
    """

    device, gamma, max_offset = torch.device("cpu"), GAMMA, None

    def __init__(self, value, reward, absorbed=False):
        self._value, self._reward, self.absorbed = value, reward, absorbed

    def value(self, observations, *, policy, num_samples, seed):
        return self._value(policy)

    def sample_future(self, observations, offsets, *, policy, seed):
        assert offsets.min() >= 1 and offsets.shape == (len(observations), 5)
        states = policy[:, None, None].expand(*offsets.shape, 2)
        return states, torch.full(offsets.shape, self.absorbed)

    def predicted_reward(self, states):
        return self._reward(states[..., 0])


@pytest.fixture
def truth(car_file):
    return Truth(read_hdf5(car_file), GAMMA, states=6, seed=0)


def study(truth, **known):
    sizes = {"starts": 2, "samples": 5, "seed": 0, "along": True}
    return measure(Known(**known), truth, **sizes)


def test_returns_are_those_of_the_episodes(truth, car_file):
    expected = [100 * GAMMA ** (8 - 2 * policy) for policy in range(4)]
    np.testing.assert_allclose(truth.discounted, expected, rtol=1e-6)
    np.testing.assert_allclose(truth.undiscounted, [100] * 4)
    assert [len(first) for first in truth.first] == [3] * 4
    data = read_hdf5(car_file)
    returns = discounted_returns(data, GAMMA)
    np.testing.assert_allclose(returns[:9], 100 * GAMMA ** np.arange(8, -1, -1.0), rtol=1e-6)
    np.testing.assert_allclose(returns[data.episodes[:, 1] - 1], 100)
    assert truth.states.shape == (4, 6, 2) and set(truth.returns[3]) <= {100.0, 90.0, 100 * 0.81}


def test_what_rises_with_the_return_has_spearman_1(truth):
    found = study(truth, value=lambda phi: phi**3, reward=lambda phi: phi.exp())
    for pair in ("return_value", "value_reward", "return_reward"):
        assert found["correlations"][pair]["spearman"] == pytest.approx(1)
    assert found["value"].tolist() == [0, 1, 8, 27]
    np.testing.assert_allclose(found["reward"], np.exp(np.arange(4)), rtol=1e-6)
    assert np.isnan(found["correlations"]["undiscounted_return_value"]["spearman"])
    assert found["correlations"]["states_return_value"]["spearman"] > 0.3


def test_what_falls_has_minus_1_and_absorbed_states_pay_nothing(truth):
    found = study(truth, value=lambda phi: -phi, reward=lambda phi: phi, absorbed=True)
    assert found["correlations"]["return_value"]["spearman"] == pytest.approx(-1)
    assert found["reward"].tolist() == [0] * 4
    assert np.isnan(found["correlations"]["return_reward"]["spearman"])


def test_a_folder_is_its_steps(tmp_path):
    for name in ("step-100.ckpt", "step-50.ckpt", "last.ckpt"):
        (tmp_path / name).touch()
    assert sorted(checkpoints_in(tmp_path)) == [50, 100]
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match=r"no step-.* --checkpoint.keep all"):
        checkpoints_in(tmp_path / "none")
