import sys

import numpy as np
import pytest

import lit_offrl.envs  # noqa: F401  registers the ids
from lit_offrl.common.errors import ConfigError
from lit_offrl.envs.mountain_car import MountainCarEnv
from lit_offrl.evaluation.envs import make_env


def test_it_is_gymnasiums_in_all_but_pictures(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    ours = make_env("lit_offrl/mountain-car-v0", render_mode="rgb_array")
    theirs = make_env("MountainCarContinuous-v0")
    assert ours.spec.max_episode_steps == theirs.spec.max_episode_steps == 999
    assert np.array_equal(ours.reset(seed=4)[0], theirs.reset(seed=4)[0])
    rng, done = np.random.default_rng(0), False
    for _ in range(300):  # pushing with the motion reaches the flag in about 100 steps
        speed = ours.unwrapped.state[1]
        action = np.array([np.sign(speed) * rng.uniform(0.8, 1)], np.float32)
        mine, other = ours.step(action), theirs.step(action)
        assert np.array_equal(mine[0], other[0]) and mine[1:4] == other[1:4]
        if done := mine[2]:
            break
    assert done and mine[1] > 99


def test_the_car_is_where_it_is():
    env = MountainCarEnv(render_mode="rgb_array")
    env.reset(seed=0)
    for position in (-1.0, -0.5, 0.3):
        env.state = np.array([position, 0.0])
        car = (env.render() == (230, 159, 0)).all(-1)
        assert car.any(0).nonzero()[0].mean() == pytest.approx((position + 1.2) / 1.8 * 480, abs=2)
    with pytest.raises(ConfigError, match="use rgb_array"):
        MountainCarEnv(render_mode="human")
