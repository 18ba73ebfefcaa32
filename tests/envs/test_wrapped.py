"""Locomotion, Adroit and kitchen: D4RL's sizes, limits, ends and rewards."""

import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

import lit_offrl.envs  # noqa: F401  registers the ids
from lit_offrl.common.errors import EvaluationError
from lit_offrl.datasets.environments import ENVIRONMENTS, env_id_from_name
from lit_offrl.envs import adroit, antmaze, kitchen, locomotion
from lit_offrl.envs.differences import DIFFERENCES
from lit_offrl.evaluation.envs import make_env

pytest.importorskip("mujoco")
robotics = pytest.importorskip("gymnasium_robotics")

FAMILIES = {
    "antmaze": [f"lit_offrl/antmaze-{task}-v2" for task in antmaze.TASKS],
    "locomotion": [f"lit_offrl/{task}-v2" for task in locomotion.TASKS],
    "adroit": [f"lit_offrl/{task}-v0" for task in adroit.TASKS],
    "kitchen": [f"lit_offrl/kitchen-{task}-v0" for task in kitchen.TASKS],
}
IDS = [env_id for ids in FAMILIES.values() for env_id in ids]


@pytest.mark.parametrize("env_id", [ids[0] for ids in FAMILIES.values()] + FAMILIES["adroit"][1:])
def test_environments_are_as_the_catalogue_says(env_id):
    facts = ENVIRONMENTS[env_id]
    env = make_env(env_id)
    assert env.observation_space.shape == (facts.observation_dim,)
    assert env.action_space.shape == (facts.action_dim,)
    assert np.abs(env.action_space.low).max() == np.abs(env.action_space.high).max() == 1
    first, _ = env.reset(seed=5)
    again, _ = make_env(env_id).reset(seed=5)
    assert np.array_equal(first, again) and first.shape == (facts.observation_dim,)
    stepped, reward, terminated, truncated, _ = env.step(np.zeros(facts.action_dim, np.float32))
    assert np.isfinite(stepped).all() and np.isfinite(reward) and not (terminated or truncated)
    env.close()


def test_every_id_has_its_limit_its_references_and_its_differences():
    for env_id in IDS:
        assert gymnasium.spec(env_id).max_episode_steps == ENVIRONMENTS[env_id].max_episode_steps
        assert DIFFERENCES[env_id] and all(text.endswith(".") for text in DIFFERENCES[env_id])
    assert set(IDS) <= set(DIFFERENCES) <= set(gymnasium.registry)
    assert "HopperBulletEnv-v0" not in DIFFERENCES


@pytest.mark.parametrize(
    ("dataset", "env_id"),
    [
        ("hopper-medium-replay-v2", "lit_offrl/hopper-v2"),
        ("ant-random-v2", "lit_offrl/ant-v2"),
        ("door-human-v0", "lit_offrl/door-v0"),
        ("pen-cloned-v1", "lit_offrl/pen-v0"),
        ("kitchen-mixed-v0", "lit_offrl/kitchen-mixed-v0"),
        ("antmaze-umaze-diverse-v2", "lit_offrl/antmaze-umaze-diverse-v2"),
        ("antmaze-large-play-v2", "lit_offrl/antmaze-large-play-v2"),
        ("maze2d-large-v1", "lit_offrl/maze2d-large-v1"),
        ("hopper-bullet-mixed-v0", "HopperBulletEnv-v0"),
        ("carla-lane-v0", None),
    ],
)
def test_d4rl_ids_lead_to_the_environment_that_evaluates_them(dataset, env_id):
    assert env_id_from_name(dataset) == env_id


@pytest.mark.parametrize("task", ["door", "hammer", "relocate", "pen"])
def test_adroit_rewards_are_d4rls(task, monkeypatch):
    """gymnasium-robotics 1.4.2 pays 0.1 for each metre from palm to object; D4RL charges that."""
    env = make_env(f"lit_offrl/{task}-v0")
    kind, paid = type(env.unwrapped), []
    inner_step = kind.step

    def spy(self, action):
        result = inner_step(self, action)
        paid.append(result[1])
        return result

    monkeypatch.setattr(kind, "step", spy)
    env.reset(seed=1)
    env.action_space.seed(0)
    data = env.unwrapped.data
    for _ in range(30):
        _, reward, terminated, _, _ = env.step(env.action_space.sample())
        held = data.site("S_handle").xpos if task == "door" else data.body("Object").xpos
        gap = np.linalg.norm(data.site("S_grasp").xpos - held)
        excess = 0 if task == "pen" else 0.2 * gap
        assert reward == pytest.approx(paid[-1] - excess, abs=1e-6)
        if terminated:
            break
    assert gap > 0.01  # the difference is there to be seen


def test_a_dropped_pen_ends_the_episode():
    env = make_env("lit_offrl/pen-v0")
    env.reset(seed=0)
    data = env.unwrapped.data
    data.joint("OBJTx").qpos[0] = 0.3  # downwards, as the pen is turned
    _, reward, terminated, truncated, _ = env.step(np.zeros(24, np.float32))
    assert data.body("Object").xpos[2] < 0.075
    assert terminated and not truncated and reward < -3.5


def test_an_open_door_pays():
    env = make_env("lit_offrl/door-v0")
    env.reset(seed=0)
    env.unwrapped.data.joint("door_hinge").qpos[0] = 1.4
    _, reward, _, _, info = env.step(np.zeros(28, np.float32))
    assert 19 < reward < 20 and info["success"] is True


def test_the_kitchen_pays_once_for_each_element_and_stops_at_four():
    env = make_env("lit_offrl/kitchen-complete-v0")
    first, _ = env.reset(seed=0)
    inner = env.unwrapped
    assert np.allclose(first[:30], inner.data.qpos, atol=0.02)  # robot, then objects
    goal = first[30:]
    assert goal[22] == -0.75 and goal[19] == 0.37 and (goal[:17] == 0).all()
    assert np.array_equal(goal[23:30], [-0.23, 0.75, 1.62, 0.99, 0, 0, -0.06])
    rewards = []
    still = np.zeros(9)
    for rows in ([22], [22], range(23, 30), [17, 18], [19]):
        for row in rows:
            inner.data.qpos[row] = goal[row]
        _, reward, terminated, _, _ = env.step(still)
        rewards.append(reward)
        assert terminated == (rows == [19])
    assert rewards == [1, 0, 1, 1, 1]


def test_random_actions_earn_about_d4rls_reference_minimum():
    for task, steps in (("door", 200), ("halfcheetah", 1000)):
        env_id = next(env_id for env_id in IDS if task in env_id)
        env = make_env(env_id)
        env.reset(seed=0)
        env.action_space.seed(0)
        total = sum(float(env.step(env.action_space.sample())[1]) for _ in range(steps))
        low = ENVIRONMENTS[env_id].ref_min_score
        assert total == pytest.approx(low, rel=0.1 if task == "door" else 0.9)


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("gymnasium_robotics")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    for env_id in ("lit_offrl/door-v0", "lit_offrl/kitchen-mixed-v0"):
        with pytest.raises(EvaluationError, match=r"gymnasium-robotics: run .*\.\[mujoco\]"):
            make_env(env_id)


def test_an_opengl_that_does_not_load_is_one_line():
    code = "from lit_offrl.evaluation.envs import make_env; make_env('{}')"
    for env_id, message in (
        ("lit_offrl/door-v0", "door cannot be made: gymnasium_robotics"),
        ("Hopper-v5", "Environment 'Hopper-v5' cannot be made"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(env_id)],
            env={**os.environ, "MUJOCO_GL": "nonsense"},
            capture_output=True,
            text=True,
        )
        last = done.stderr.splitlines()[-1]
        assert done.returncode and "EvaluationError" in last and message in last
        assert "unset MUJOCO_GL" in last
