"""The loop that steps environments, with episodes that only count."""

import gymnasium
import numpy as np
import pytest

from lit_offrl.common.errors import EvaluationError
from lit_offrl.common.signals import Interrupted
from lit_offrl.evaluation.loop import Episode, run_episodes


class Counter(gymnasium.Env):
    """An episode of so many steps."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, length):
        self.length, self.closed = length, False

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.full(1, self.steps, np.float32), 1.0, self.steps == self.length, False, {}

    def close(self):
        self.closed = True


class Still:
    def __init__(self):
        self.begun, self.rows = [], []

    def reset(self, mask=None):
        self.begun.append(mask.tolist())

    def act(self, observations):
        self.rows.append(observations[:, 0].tolist())
        return np.zeros((len(observations), 1), np.float32)


def run(lengths, num_envs, policy, **options):
    """Return the environments, the finished episodes' numbers, and what ``begin`` was given."""
    envs = [Counter(length) for length in lengths]
    numbers, asked, done = iter(range(len(envs))), [], []

    def begin(under_way):
        asked.append(under_way)
        number = next(numbers, None)
        return None if number is None else Episode(number, envs[number], 0)

    def finished(episode):
        assert episode.env.closed and episode.length == lengths[episode.number]
        done.append(episode.number)

    try:
        run_episodes(policy, begin, num_envs, finished=finished, **options)
    finally:
        assert all(env.closed for env in envs if hasattr(env, "steps"))
    return done, asked


def test_free_slots_are_filled_before_each_step_and_idle_rows_keep_their_last_observation():
    policy = Still()
    done, asked = run([3, 1, 1], 2, policy)
    assert done == [1, 2, 0]
    assert asked == [0, 1, 1, 1, 0, 0]  # two slots, one slot twice, both in the end
    assert policy.rows == [[0, 0], [1, 0], [2, 0]]
    assert policy.begun == [[True, True], [False, True]]


def test_whatever_ends_the_loop_all_environments_are_closed():
    class Wrong(Still):
        def act(self, observations):
            return super().act(observations) * np.nan

    with pytest.raises(EvaluationError, match="It's action at step 0 of episode 0 is not finite"):
        run([3, 3], 2, Wrong(), who="It")
    with pytest.raises(Interrupted):
        run([3, 3], 2, Still(), stopping=lambda: 15)


def test_how_the_episodes_are_stepped_may_be_chosen():
    pairs = []

    def step(episodes, actions):
        pairs.append([episode.number for episode in episodes])
        for episode, action in zip(reversed(episodes), reversed(actions), strict=True):
            episode.step(action)

    assert run([2, 1], 3, Still(), step=step)[0] == [1, 0]
    assert pairs == [[0, 1], [0]]


def test_a_policy_that_asks_for_rewards_gets_those_of_each_step():
    class Earning(Still):
        def __init__(self):
            super().__init__()
            self.earned = []

        def earn(self, rewards):
            self.earned.append(rewards.tolist())

    policy = Earning()
    run([3, 1], 2, policy)
    assert policy.earned == [[1, 1], [1, 0], [1, 0]]  # none where no episode is under way
