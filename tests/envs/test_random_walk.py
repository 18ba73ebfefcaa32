import gymnasium
import numpy as np
import pytest

import lit_offrl.envs  # noqa: F401  registers the ids
from lit_offrl.common.errors import ConfigError
from lit_offrl.envs.random_walk import RandomWalkEnv


def run(env, draw):
    env.reset(seed=0)
    total, over = 0.0, False
    while not over:
        position, reward, terminated, truncated, _ = env.step([draw()])
        total, over = total + reward, terminated or truncated
    return total, float(position[0]), terminated


@pytest.fixture
def env():
    return gymnasium.make("lit_offrl/random-walk-v0", disable_env_checker=True)


def test_whole_steps_reach_an_end_in_ten(env):
    for move in (1.0, -1.0, 3.0):  # a move is clipped to 1
        assert run(env, lambda move=move: move) == (10 - 9, np.sign(move) * 10, True)


def test_the_papers_score_is_near_that_of_walking_straight_with_the_datas_steps(env):
    # Appendix D: -2.2. Steps of U(0.8, 1), the data's, need 11 or 12: 10 - 10 or 10 - 11.
    rng = np.random.default_rng(0)
    returns = [run(env, lambda: rng.uniform(0.8, 1.0))[0] for _ in range(300)]
    assert set(returns) == {0.0, -1.0}


def test_the_behaviour_policy_finds_an_end_or_times_out(env):
    # Variance of a step 0.813: an end at 10 takes about 100 / 0.813 = 123 steps and the overshoot.
    rng = np.random.default_rng(1)
    returns = [run(env, lambda: rng.choice([-1, 1]) * rng.uniform(0.8, 1))[0] for _ in range(200)]
    assert -150 < np.mean(returns) < -95


def test_a_policy_that_stays_is_stopped_after_500_steps(env):
    assert run(env, lambda: 0.0) == (-500, 0.0, False)


def test_pictures_show_where_one_is():
    env = RandomWalkEnv(render_mode="rgb_array")
    env.reset(seed=0)
    here = (env.render() == (230, 159, 0)).all(-1)
    assert here.any(0).nonzero()[0].mean() == pytest.approx(239.5, abs=1)
    env.step(np.array([1.0]))
    moved = (env.render() == (230, 159, 0)).all(-1).any(0).nonzero()[0].mean()
    assert moved == pytest.approx(239.5 + 480 / 22, abs=1)
    with pytest.raises(ConfigError, match="use rgb_array"):
        RandomWalkEnv(render_mode="human")
