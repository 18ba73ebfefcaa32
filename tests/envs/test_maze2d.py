import math
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import lit_offrl.envs  # noqa: F401 - registers the ids
from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.envs.maze2d import Maze2dEnv
from lit_offrl.evaluation.envs import make_env

MASS = 4 / 3 * math.pi * 0.1**3 * 1000
FAR = {"goal": (3, 1)}


def started(maze="open", **options):
    env = Maze2dEnv(maze)
    env.reset(seed=0, options=options)
    return env


@pytest.mark.parametrize(
    ("name", "steps"),
    [("open", 150), ("umaze", 300), ("medium", 600), ("large", 800), ("umaze-dense", 300)],
)
def test_registered_with_d4rls_step_limits(name, steps):
    spec = gymnasium.spec(f"lit_offrl/maze2d-{name}-v1")
    assert spec.max_episode_steps == steps
    env = make_env(spec.id)
    assert env.observation_space.shape == (4,) and env.observation_space.dtype == np.float64
    assert env.action_space.shape == (2,)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of unbounded observations, as all of MuJoCo's
def test_gymnasium_finds_no_fault():
    check_env(Maze2dEnv("medium", render_mode="rgb_array"))


def test_the_point_obeys_newton():
    """Force 100, damping 1, semi-implicit Euler with implicit damping, far from every wall."""
    env = started(location=(1.8, 2.8))
    position, velocity = np.array([1.8, 2.8]), np.zeros(2)
    action = np.array([0.5, -0.25])
    for _ in range(8):
        observation, *_ = env.step(action)
        velocity = (MASS * velocity + 0.01 * 100 * action) / (MASS + 0.01 * 1)
        position = position + 0.01 * velocity
        np.testing.assert_allclose(observation, [*position, *velocity], rtol=1e-9)


def test_forces_beyond_one_count_as_one():
    one, more = started(location=(2, 2)), started(location=(2, 2))
    for _ in range(3):
        np.testing.assert_array_equal(one.step([1.0, -1.0])[0], more.step([7.0, -1.5])[0])


def test_velocities_are_clipped_before_the_step():
    env = started(location=(1.8, 2.8))
    env.set_state([1.8, 2.8], [9.0, -9.0])
    observation, *_ = env.step([0.0, 0.0])
    speed = 5 * MASS / (MASS + 0.01)
    np.testing.assert_allclose(observation, [1.8 + 0.01 * speed, 2.8 - 0.01 * speed, speed, -speed])


@pytest.mark.parametrize(("axis", "sign"), [(0, -1), (0, 1), (1, -1), (1, 1)])
def test_walls_stop_the_point_at_its_radius(axis, sign):
    """Cell (1, 1) of the U reaches from 0.3 to 1.3 in data coordinates; towards y it goes on."""
    env = started("umaze", location=(0.8, 0.8), **FAR)
    action = np.zeros(2)
    action[axis] = sign
    for _ in range(200):
        observation, *_ = env.step(action)
    walls = {(0, -1): 0.3 + 0.1, (0, 1): 1.3 - 0.1, (1, -1): 0.3 + 0.1, (1, 1): 3.3 - 0.1}
    assert observation[axis] == pytest.approx(walls[axis, sign], abs=0.02)
    assert np.abs(observation[2:]).max() < 0.1


def test_the_next_state_depends_on_state_and_action_alone():
    """Also in contact, and whatever happened before."""
    random = np.random.default_rng(0)
    env, other = started("large"), started("large")
    observation, _ = env.reset(seed=3)
    for _ in range(300):
        action = random.uniform(-1, 1, 2).astype(np.float32)
        other.set_state(observation[:2], observation[2:])
        observation, *_ = env.step(action)
        np.testing.assert_array_equal(other.step(action)[0], observation)


def test_the_reward_is_paid_after_the_step_and_nothing_ends():
    env = started("umaze", location=(1.0, 1.52))
    paid, observation = [], np.array([1.0, 1.52, 0, 0])
    for _ in range(400):
        action = 10 * ([1, 1] - observation[:2]) - observation[2:]
        observation, reward, terminated, truncated, info = env.step(action)
        paid.append(reward)
        within = np.linalg.norm(observation[:2] - [1, 1]) <= 0.5
        assert reward == info["success"] == within and not terminated and not truncated
    assert paid[0] == 0 and paid[-1] == 1  # it rests in the goal's cell, and is paid on
    np.testing.assert_array_equal(info["goal"], [1, 1])


def test_a_dense_reward_is_of_the_distance():
    env = Maze2dEnv("umaze", dense=True)
    env.reset(seed=0)
    observation, reward, *_ = env.step([0.0, 0.0])
    assert reward == pytest.approx(np.exp(-np.linalg.norm(observation[:2] - [1, 1])))


def test_episodes_start_anywhere_and_are_truncated():
    env = make_env("lit_offrl/maze2d-umaze-v1")
    starts = np.array([env.reset(seed=seed)[0] for seed in range(300)])
    cells = np.rint(starts[:, :2])
    assert len(np.unique(cells, axis=0)) == 7
    assert 0.09 < np.abs(starts[:, :2] - cells).max() <= 0.1
    assert starts[:, 2:].std() == pytest.approx(0.1, rel=0.15)
    np.testing.assert_array_equal(env.reset(seed=5)[0], starts[5])
    ends = [env.step(np.zeros(2))[2:4] for _ in range(300)]
    assert ends == [(False, False)] * 299 + [(False, True)]


def test_options_hold_for_one_episode():
    env = Maze2dEnv("umaze")
    observation, info = env.reset(seed=0, options={"goal": (3, 1), "location": (3.2, 1.1)})
    np.testing.assert_array_equal(observation, [3.2, 1.1, 0, 0])
    assert info["goal"].tolist() == [3, 1] and info["success"]
    assert env.reset()[1]["goal"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gaol": (1, 1)}, "no reset option 'gaol'.*Did you mean 'goal'"),
        ({"goal": (2, 1)}, r"'goal' \(2.0, 1.0\): maze 'umaze': cell \(2,1\) is a wall"),
        ({"location": (1, 9)}, r"'location'.*cell \(1,9\) is a wall or outside"),
        ({"location": 3}, r"'location' is 3: give \(x, y\)"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(ConfigError, match=said):
        Maze2dEnv("umaze").reset(options=options)


def test_bad_mazes_and_actions_are_named():
    with pytest.raises(ConfigError, match=r"maze 'larg': use one of.*Did you mean 'large'"):
        Maze2dEnv("larg")
    for action in ([np.nan, 0.0], [0.0]):
        with pytest.raises(ConfigError, match="give two finite numbers"):
            started().step(action)


def test_pictures_show_walls_goal_and_point():
    env = make_env("lit_offrl/maze2d-umaze-v1", render_mode="rgb_array", render_size=(100, 100))
    env.reset(seed=0, options={"location": (2.8, 0.8), "goal": (0.8, 2.8)})
    picture = env.render()
    assert picture.shape == (100, 100, 3) and picture.dtype == np.uint8
    wall, floor = picture[50, 30], picture[70, 50]  # 20 pixels a cell: cells (2, 1) and (3, 2)
    assert (picture[:20] == wall).all() and (wall != floor).any()
    goal, point = picture[30, 70], picture[70, 30]
    assert goal[0] > goal[2] and point[2] > point[0]
    for _ in range(80):
        env.step(np.array([0.0, 1.0]))
    assert (env.render()[70, 30] == floor).all()  # it went away
    wide = make_env("lit_offrl/maze2d-umaze-v1", render_mode="rgb_array", render_size=(200, 100))
    wide.reset(seed=0)
    assert (wide.render()[:, 50:150][:20] == wall).all() and (wide.render()[:, :50] == 255).all()
    assert Maze2dEnv("umaze").render() is None


def test_importing_needs_no_mujoco_and_making_says_what_to_install(monkeypatch):
    code = "import sys, lit_offrl.envs; sys.exit('mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(
        EvaluationError, match=r"maze2d needs the package mujoco: run `pip install -e .\[mujoco\]`"
    ):
        make_env("lit_offrl/maze2d-umaze-v1")
