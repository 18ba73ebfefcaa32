"""OGBench's environments: repeatable episodes, tasks in turn, success as the score."""

import importlib.util
import sys
from collections import defaultdict

import numpy as np
import pytest

from lit_offrl.common.errors import EvaluationError
from lit_offrl.envs import ogbench
from lit_offrl.evaluation.envs import make_env
from lit_offrl.evaluation.rollouts import rollout

NEEDED = pytest.mark.skipif(
    importlib.util.find_spec("ogbench") is None,
    reason="the package ogbench is not installed",
)


def episode(env, seed, task=None, steps=12):
    """Return what an episode of random actions shows: observations, goal and rewards."""
    options = {} if task is None else {"options": {"task_id": task}}
    observation, info = env.reset(seed=seed, **options)
    assert task in (None, info["task"])
    random = np.random.default_rng(seed)
    seen, rewards = [observation, info["goal"]], []
    for _ in range(steps):
        action = random.uniform(-1, 1, env.action_space.shape)
        observation, reward, *_, info = env.step(action)
        assert "success" in info
        seen.append(observation)
        rewards.append(reward)
    return np.array(seen), rewards


@NEEDED
def test_an_episode_depends_on_its_seed_alone(tmp_path, monkeypatch):
    """Teleports, starts and the steps before the goal is shown are drawn at random."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    np.random.seed(1)  # noqa: NPY002
    name = "lit_offrl/pointmaze-teleport-v0"
    first = make_env(name)
    seen, rewards = episode(first, 3, task=2)
    np.random.seed(2)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    other = make_env(name)
    assert other.unwrapped is not first.unwrapped and not list(tmp_path.glob("*.xml"))
    again, same = episode(other, 3, task=2)
    assert np.random.random() == expected  # noqa: NPY002  nobody else's numbers were taken
    np.testing.assert_array_equal(again, seen)
    assert same == rewards
    assert not np.array_equal(episode(other, 4, task=2)[0], seen)
    simulator = other.unwrapped
    other.close()
    used = make_env(name)
    assert used.unwrapped is simulator
    np.testing.assert_array_equal(episode(used, 3, task=2)[0], seen)
    for env in (first, used):
        env.close()
        env.close()  # it is idle once
    idle = ogbench._idle["pointmaze-teleport-v0"]
    assert len({id(each) for each in idle}) == len(idle)


@NEEDED
@pytest.mark.slow  # to compile the model takes seconds
def test_a_reset_of_a_manipulation_forgets_what_was_before():
    """It draws actions from a space that OGBench makes anew, unseeded, at each look."""
    env = make_env("lit_offrl/cube-single-v0")
    seen, _ = episode(env, 3, task=2)
    other, _ = episode(env, 4, task=5, steps=30)
    assert not np.array_equal(other[:2], seen[:2])
    np.testing.assert_array_equal(episode(env, 3, task=2)[0], seen)
    env.close()


@NEEDED
@pytest.mark.slow  # to compile the model takes seconds
def test_a_model_is_compiled_once_and_each_simulator_has_a_copy(monkeypatch):
    import mujoco

    calls, compile_new = [], mujoco.MjModel.from_xml_string
    monkeypatch.setattr(ogbench, "_compiled", {})
    monkeypatch.setattr(ogbench, "_idle", defaultdict(list))
    monkeypatch.setattr(
        mujoco.MjModel, "from_xml_string", lambda *given: calls.append(0) or compile_new(*given)
    )
    first, second = (make_env("lit_offrl/cube-single-singletask-task2-v0") for _ in range(2))
    assert len(calls) == 2  # the scene, and the arm of the inverse kinematics
    seen, rewards = episode(first, 3)
    again, same = episode(second, 3)
    np.testing.assert_array_equal(again, seen)
    assert same == rewards
    models = [env.unwrapped._model for env in (first, second)]
    models[0].opt.timestep *= 2
    assert models[1].opt.timestep == 0.002


@NEEDED
def test_a_single_task_is_rewarded_as_the_data_are():
    """The reward is of the state in which the action is taken: success ends an episode there."""
    env = make_env("lit_offrl/pointmaze-medium-singletask-task3-v0")
    assert env.get_wrapper_attr("task_ids") == ()
    _, info = env.reset(seed=0)
    assert info["task"] == 3
    still = np.zeros(2, np.float32)
    _, reward, terminated, _, info = env.step(still)
    assert (reward, terminated, info["success"]) == (-1.0, False, False)
    env.unwrapped.set_xy(np.array(env.unwrapped.cur_goal_xy))
    _, reward, terminated, _, info = env.step(still)
    assert (reward, terminated, info["success"]) == (0.0, True, True)
    env.close()


class Towards:
    """Goes to the goal in a straight line."""

    def reset(self, mask=None):
        pass

    def aim(self, goals):
        self.goals = goals

    def act(self, observations):
        way = self.goals - observations[:, :2]
        return (way / np.linalg.norm(way, axis=1, keepdims=True)).astype(np.float32)


@NEEDED
def test_episodes_take_the_tasks_in_turn_and_aim_at_their_goals():
    found = rollout(
        Towards(),
        "lit_offrl/pointmaze-medium-v0",
        episodes=7,
        seed=0,
        num_envs=3,
        max_episode_steps=30,
    )
    assert found.tasks.tolist() == [1, 2, 3, 4, 5, 1, 2]
    assert (found.reached == 0).all() and (found.lengths == 30).all()
    single = rollout(
        Towards(), "lit_offrl/pointmaze-medium-singletask-v0", episodes=2, seed=0, num_envs=2,
        max_episode_steps=3,
    )  # fmt: skip
    assert single.tasks.tolist() == [1, 1] and single.returns.tolist() == [-3.0, -3.0]


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    for package in ("ogbench", "mujoco"):  # which comes with it
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EvaluationError, match=r"needs the package ogbench: run .*\[ogbench\]"):
        make_env("lit_offrl/scene-v0")
