import subprocess
import sys

import gymnasium
import imageio.v2 as imageio
import numpy as np
import pytest

from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.common.policy import GoalPolicy, Policy
from lit_offrl.evaluation.envs import WholeActions
from lit_offrl.evaluation.loop import episode_seed
from lit_offrl.evaluation.rollouts import merge, rollout


class Constant:
    """Acts by a constant; counts the steps since each slot's reset."""

    def __init__(self, value=0.5, size=1):
        self.value, self.size = value, size
        self.masks, self.batches, self.age = [], [], None

    def reset(self, mask=None):
        self.masks.append(mask.copy())
        self.age = np.zeros(len(mask)) if self.age is None else np.where(mask, 0, self.age)

    def act(self, observations):
        self.batches.append(observations.copy())
        self.age += 1
        return np.full((len(observations), self.size), self.value, np.float32)


def starts(count, seed):
    """The counter's start in each episode, from the documented seed alone."""
    generators = [np.random.default_rng(episode_seed(seed, i)) for i in range(count)]
    return np.array([int(generator.integers(5)) for generator in generators])


@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_returns_and_lengths_are_those_worked_out_by_hand(num_envs):
    found = rollout(Constant(), "Counter-v0", episodes=7, seed=3, num_envs=num_envs, gamma=0.9)
    lengths = 3 + starts(7, 3)
    assert len(set(lengths)) > 1  # else nothing is scheduled out of step
    np.testing.assert_array_equal(found.episodes, np.arange(7))
    np.testing.assert_array_equal(found.lengths, lengths)
    np.testing.assert_array_equal(found.returns, 0.5 * lengths)
    np.testing.assert_allclose(found.discounted_returns, 0.5 * (1 - 0.9**lengths) / 0.1)
    assert found.terminated.all() and not found.clipped.any()


def test_a_policy_is_reset_exactly_where_an_episode_begins():
    policy = Constant()
    assert isinstance(policy, Policy)
    ages = []
    act = policy.act
    policy.act = lambda rows: (ages.append((policy.age.copy(), rows[:, 0].copy())), act(rows))[1]
    rollout(policy, "Counter-v0", episodes=9, seed=0, num_envs=2)
    for age, steps in ages[:-8]:  # before the last episodes nobody is idle
        np.testing.assert_array_equal(age, steps)
    assert sum(mask.sum() for mask in policy.masks) == 9


def test_the_policy_always_acts_on_num_envs_rows():
    policy = Constant()
    rollout(policy, "Counter-v0", episodes=2, seed=0, num_envs=5)
    assert {len(batch) for batch in policy.batches} == {5}


def test_a_step_limit_is_no_terminal():
    found = rollout(Constant(), "Endless-v0", episodes=2, seed=0)
    assert found.lengths.tolist() == [7, 7] and not found.terminated.any()
    found = rollout(Constant(), "Endless-v0", episodes=2, seed=0, max_episode_steps=4)
    assert found.lengths.tolist() == [4, 4]


def test_actions_are_clipped_and_counted():
    found = rollout(Constant(3.0), "Endless-v0", episodes=1, seed=0)
    assert found.returns.tolist() == [7.0] and found.clipped.tolist() == [7]


def test_an_action_that_is_not_finite_names_step_and_episode():
    policy = Constant()
    act = policy.act
    policy.act = lambda rows: act(rows) * np.where(rows[:, :1] == 2, np.nan, 1)
    with pytest.raises(EvaluationError, match="step 2 of episode 0 is not finite"):
        rollout(policy, "Endless-v0", episodes=2, seed=0)


def test_actions_of_the_wrong_shape_are_refused():
    with pytest.raises(EvaluationError, match=r"shape \(2, 3\)"):
        rollout(Constant(size=3), "Endless-v0", episodes=2, seed=0, num_envs=2)


@pytest.mark.parametrize("option", ["episodes", "num_envs"])
def test_numbers_below_one_are_refused(option):
    with pytest.raises(ConfigError, match=f"{option} is 0"):
        rollout(Constant(), "Endless-v0", **{"episodes": 1, "seed": 0, option: 0})


def test_shards_put_together_are_the_whole():
    whole = rollout(Constant(), "Counter-v0", episodes=5, seed=1)
    shards = [
        rollout(Constant(), "Counter-v0", episodes=5, seed=1, shard=(rank, 7)) for rank in range(7)
    ]
    assert [len(shard.episodes) for shard in shards] == [1, 1, 1, 1, 1, 0, 0]
    together = merge([*shards, shards[2]])  # one shard twice: each episode counts once
    for name in ("episodes", "seeds", "returns", "lengths", "terminated", "clipped"):
        np.testing.assert_array_equal(getattr(together, name), getattr(whole, name))


def test_a_misspelt_environment_names_the_nearest():
    with pytest.raises(EvaluationError, match="Did you mean 'HopperBulletEnv-v0'"):
        rollout(Constant(), "HoperBulletEnv-v0", episodes=1, seed=0)


def test_discrete_actions_are_whole_numbers():
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=episode_seed(0, 0))
    steps = 1
    while not env.step(1)[2]:
        steps += 1
    found = rollout(Constant(1.0), "CartPole-v1", episodes=1, seed=0)
    assert found.lengths[0] == steps and found.clipped[0] == 0
    beyond = rollout(Constant(2.0), "CartPole-v1", episodes=1, seed=0)
    assert beyond.lengths[0] == beyond.clipped[0] == steps
    with pytest.raises(EvaluationError, match=r"whole numbers, Discrete\(2\), .* gave 0\.25: "):
        rollout(Constant(0.25), "CartPole-v1", episodes=1, seed=0)


def test_discrete_actions_may_begin_anywhere():
    env = gymnasium.Env()
    env.action_space = gymnasium.spaces.Discrete(3, start=-1)
    whole = WholeActions(env)
    assert [int(bound[0]) for bound in (whole.action_space.low, whole.action_space.high)] == [-1, 1]
    assert [whole.action(np.float32([value])) for value in (-1, 0, 1)] == [-1, 0, 1]


class Feedback:
    """Acts by the observation, so that any difference in state shows in the return."""

    def __init__(self, size):
        self.size = size

    def reset(self, mask=None):
        pass

    def act(self, observations):
        return np.tanh(3 * observations[:, : self.size]).astype(np.float32)


@pytest.mark.parametrize(("env_id", "size"), [("HopperBulletEnv-v0", 3), ("AntBulletEnv-v0", 8)])
def test_pybullet_repeats_whatever_ran_before(env_id, size):
    options = {"episodes": 3, "seed": 5, "max_episode_steps": 30}
    first = rollout(Feedback(size), env_id, num_envs=3, **options)
    again = rollout(Feedback(size), env_id, num_envs=1, **options)
    assert len(set(first.returns.tolist())) == 3
    np.testing.assert_array_equal(first.returns, again.returns)


def test_pybullet_keeps_quiet_and_others_may_speak():
    script = (
        "import os, numpy as np\n"
        "from lit_offrl.evaluation.envs import make_env, without_chatter\n"
        "print('before')\n"
        "env = make_env('HopperBulletEnv-v0'); env.reset(seed=0)\n"
        "env.step(np.zeros(3)); env.close()\n"
        "with without_chatter():\n"
        "    os.write(2, b'a warning\\n')\n"
        "print('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("before\nafter\n", "a warning\n")


def test_pybullet_is_not_loaded_for_other_environments():
    script = (
        "import sys\nfrom lit_offrl.evaluation.envs import make_env\n"
        "make_env('Pendulum-v1').reset(seed=0)\n"
        "assert not any('bullet' in name for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_first_episode_can_be_filmed(tmp_path):
    path = tmp_path / "videos" / "first.mp4"
    options = {"episodes": 2, "seed": 0, "max_episode_steps": 8, "num_envs": 2}
    filmed = rollout(
        Feedback(3), "HopperBulletEnv-v0", record_video=path, video_size=(160, 96), **options
    )
    with imageio.get_reader(path) as video:
        pictures = np.array(list(video.iter_data()))
    assert pictures.shape == (5, 96, 160, 3)  # the start, and every other of 8 steps
    assert pictures.std() > 10  # something is to be seen
    plain = rollout(Feedback(3), "HopperBulletEnv-v0", **options)
    np.testing.assert_array_equal(filmed.returns, plain.returns)


def test_every_environment_is_closed_when_the_policy_fails(monkeypatch):
    closed = []
    monkeypatch.setattr(gymnasium.Wrapper, "close", lambda self: closed.append(type(self).__name__))
    with pytest.raises(EvaluationError):
        rollout(Constant(np.nan), "Endless-v0", episodes=3, seed=0, num_envs=3)
    assert closed.count("QuietStart") == 3


class Bare(gymnasium.Env):
    """One step that pays 2; its constructor takes nothing."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 2.0, True, False, {}


def test_an_environment_need_not_know_of_render_modes():
    gymnasium.register("Bare-v0", Bare, max_episode_steps=9)
    try:
        assert rollout(Constant(), "Bare-v0", episodes=2, seed=0).returns.tolist() == [2.0, 2.0]
    finally:
        del gymnasium.registry["Bare-v0"]


class Aimed(Constant):
    """Goes where it is told; keeps what it was told."""

    def __init__(self):
        super().__init__()
        self.goals = []

    def aim(self, goals):
        self.goals.append(None if goals is None else goals.copy())


def test_a_policy_with_a_goal_is_told_that_of_each_episode():
    assert isinstance(Aimed(), GoalPolicy) and not isinstance(Constant(), GoalPolicy)
    policy = Aimed()
    rollout(policy, "Aimed-v0", episodes=5, seed=3, num_envs=2)
    assert len(policy.goals) == len(policy.masks)  # after each reset
    current = np.full((2, 1), np.nan)
    begun = iter(starts(5, 3))
    for mask, goals in zip(policy.masks, policy.goals, strict=True):
        current[mask] = [[10.0 + next(begun)] for _ in range(mask.sum())]
        np.testing.assert_array_equal(goals, current)


def test_a_policy_with_a_goal_is_told_where_nobody_knows_one():
    policy = Aimed()
    rollout(policy, "Counter-v0", episodes=1, seed=0, num_envs=1)
    assert policy.goals == [None]


class Passing(gymnasium.Env):
    """Six steps, of which the third and the fifth are at the goal and pay 2."""

    observation_space = gymnasium.spaces.Box(-1, 9, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(1, np.float32), {"success": True}

    def step(self, action):
        self.steps += 1
        there = self.steps in (3, 5)
        return np.zeros(1, np.float32), 2.0 * there, False, self.steps == 6, {"success": there}


def test_when_the_goal_was_reached_and_what_staying_there_would_have_paid():
    gymnasium.register("Passing-v0", Passing, max_episode_steps=99)
    try:
        found = rollout(Constant(), "Passing-v0", episodes=2, seed=0, num_envs=1)
        early = rollout(Constant(), "Passing-v0", episodes=1, seed=0, max_episode_steps=2)
    finally:
        del gymnasium.registry["Passing-v0"]
    assert found.returns.tolist() == [4.0, 4.0] and found.reached.tolist() == [3, 3]
    assert found.stayed_returns.tolist() == [8.0, 8.0]  # steps 3 to 6
    assert early.reached.tolist() == [0] and early.stayed_returns.tolist() == [0.0]
    silent = rollout(Constant(), "Counter-v0", episodes=2, seed=0)
    assert silent.reached.tolist() == [-1, -1]
    np.testing.assert_array_equal(silent.stayed_returns, silent.returns)
