import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import lit_offrl.envs  # noqa: F401  registers the ids
from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.envs.antmaze import GOALS, TASKS, AntMazeEnv, centres
from lit_offrl.envs.mazes import MAZE2D

mujoco = pytest.importorskip("mujoco")


@pytest.fixture(scope="module")
def env():
    return AntMazeEnv("medium", render_mode="rgb_array")


def test_ids_step_limits_and_sizes():
    for task, limit in TASKS.items():
        spec = gymnasium.spec(f"lit_offrl/antmaze-{task}-v2")
        assert spec.max_episode_steps == limit == (700 if "umaze" in task else 1000)
    made = gymnasium.make("lit_offrl/antmaze-umaze-v2")
    assert made.observation_space.shape == (29,) and made.action_space.shape == (8,)


def test_the_start_is_free_and_every_goal_can_be_reached_from_it():
    for name, goal in GOALS.items():
        maze = MAZE2D[name]
        assert len(maze.path((1, 1), goal)) >= 6
        assert centres(np.array((1, 1))).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("maze", "corner"), [("umaze", (0, 8)), ("medium", (20, 20)), ("large", (32, 24))]
)
def test_goals_are_drawn_in_the_far_cell_at_each_reset(maze, corner):
    env = AntMazeEnv(maze)
    goals = np.array([env.reset(seed=seed)[1]["goal"] for seed in range(200)]) - corner
    assert (goals >= 0).all() and (goals <= 1.5).all()
    assert abs(goals.mean(0) - 0.75).max() < 0.1 and goals.max() > 1.2  # U(0, 1) + U(0, 0.5)


def test_the_start_is_disturbed_as_in_d4rl(env):
    starts = np.array([env.reset(seed=seed)[0] for seed in range(200)])
    usual = np.r_[0, 0, 0.75, 1, np.zeros(25)]
    assert (abs(starts[:, :15] - usual[:15]) <= 0.1).all()
    assert np.allclose(starts.mean(0), usual, atol=0.03)
    assert np.allclose(starts[:, 15:].std(0), 0.1, atol=0.025)
    assert np.array_equal(env.reset(seed=3)[0], starts[3])


def test_the_body_is_the_usual_ants_with_other_motors_and_time_steps(env):
    assets = Path(gymnasium.__file__).parent / "envs/mujoco/assets/ant.xml"
    usual = mujoco.MjModel.from_xml_path(str(assets))
    assert np.allclose(env.model.body_mass, usual.body_mass)
    assert np.allclose(env.model.body_inertia, usual.body_inertia)
    names = [env.model.joint(j).name for j in env.model.actuator_trnid[:, 0]]
    assert names == [usual.joint(j).name for j in usual.actuator_trnid[:, 0]]
    assert (env.model.actuator_ctrlrange == [-30, 30]).all() and env.model.opt.timestep == 0.02
    # High above the floor the two move alike, given the same motors and time step.
    usual.opt.timestep, usual.actuator_gear[:, 0] = 0.02, 30.0
    data = mujoco.MjData(usual)
    rng = np.random.default_rng(0)
    qpos, qvel = usual.qpos0 + rng.uniform(-0.1, 0.1, 15), rng.normal(0, 1, 14)
    qpos[2] = 5
    action = rng.uniform(-1, 1, 8)
    data.qpos[:], data.qvel[:], data.ctrl[:] = qpos, qvel, action
    mujoco.mj_step(usual, data, nstep=5)
    env.reset(seed=0)
    env.set_state(qpos, qvel)
    assert np.allclose(env.step(action)[0], np.r_[data.qpos, data.qvel], atol=1e-9)


def test_steps_of_a_recorded_ant_are_predicted(env):
    """Four at random, four against walls, and of 20,000 the four that were predicted worst.

    Two of those are on the verge of a contact: the last bit of a recorded state decides on it.
    """
    steps = np.load(Path(__file__).with_name("ant_steps.npz"))
    random, rounded = np.random.default_rng(0), 0
    env.reset(seed=0)
    for state, action, following in zip(*(steps[name] for name in steps.files), strict=True):
        for trial in range(200):
            tried = state * (1 + (trial > 0) * 3e-8 * random.standard_normal(29))
            env.set_state(tried[:15], tried[15:])
            if np.abs(env.step(action)[0] - following).max() < 2e-5:
                break
        else:
            pytest.fail("no state that rounds to the recorded one leads to the recorded next")
        rounded += trial > 0
    assert len(steps["actions"]) == 12 and rounded == 2


def test_it_pays_and_ends_at_the_goal_only_there(env):
    env.reset(seed=0, options={"position": (20, 20), "goal": (20.5, 20.5)})
    qpos = env.data.qpos.copy()
    still = np.zeros(14)
    for offset, success in ((0.4, True), (0.6, False)):
        env.set_state(np.r_[20.5 + offset, 20.5, qpos[2:]], still)
        _, reward, terminated, truncated, info = env.step(np.zeros(8))
        assert (reward, terminated, truncated) == (float(success), success, False)
        assert info["success"] is success
    collecting = AntMazeEnv("medium", goal=(0, 0), ends_at_goal=False)
    collecting.reset(seed=0)
    assert collecting.step(np.zeros(8))[1:3] == (1.0, False)


def test_walls_stop_the_ant(env):
    env.reset(seed=0)
    env.set_state(np.r_[4.0, 0, 0.75, 1, np.zeros(11)], np.r_[8.0, np.zeros(13)])
    furthest = max(env.step(np.zeros(8))[0][0] for _ in range(20))
    assert 5 < furthest < 6  # the wall cell centred at x = 8 begins at 6


def test_pictures_need_no_gl(env):
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (480, 480, 3) and picture.dtype == np.uint8
    # Lower left: the start, 60 pixels a cell; the walls; the goal at the upper right.
    assert tuple(picture[480 - 90, 90]) == (230, 159, 0)
    assert tuple(picture[5, 5]) == (96, 108, 122) == tuple(picture[240, 475])
    assert (picture[60:120, 360:480] == (58, 166, 85)).all(-1).sum() > 50


def test_what_cannot_be_is_refused(env):
    for make, message in (
        (lambda: AntMazeEnv("medum"), "Did you mean 'medium'"),
        (lambda: AntMazeEnv(render_mode="human"), "use rgb_array"),
        (lambda: AntMazeEnv(goal=(1, 2, 3)), "goal is .* give x and y"),
        (lambda: env.reset(options={"gaol": (0, 0)}), "no option"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()


def test_no_simulator_is_imported_before_an_environment_is_made(monkeypatch):
    code = "import sys, lit_offrl.envs; print('mujoco' in sys.modules or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(EvaluationError, match=r"needs the package mujoco: run .*\.\[mujoco\]"):
        AntMazeEnv()
