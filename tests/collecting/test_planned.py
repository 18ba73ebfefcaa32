"""Planner collections: known answers, replays in the environment, interruptions, mistakes."""

import re
import signal

import gymnasium
import h5py
import numpy as np
import pytest

from lit_offrl.commands.collect import main
from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.datasets.hdf5 import read_hdf5
from lit_offrl.envs.maze2d import Maze2dEnv
from lit_offrl.envs.mazes import MAZE2D, Maze
from lit_offrl.envs.point_mass import PointMass


def collect(path, env="lit_offrl/maze2d-umaze-v1", steps=3000, *more):
    argv = ["--env", env, "--planner", "waypoint", "--steps", str(steps), "--output", str(path)]
    return main([*argv, *more])


def read(path):
    with h5py.File(path) as file:
        columns = {name: file[name][()] for name in file if name != "infos"}
        columns |= {f"infos/{name}": column[()] for name, column in file["infos"].items()}
        return columns, dict(file.attrs)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "data.hdf5"
    more = ["--noise", "0.5", "--seed", "7"]
    assert collect(path, "lit_offrl/maze2d-large-v1", 20_000, *more) == 0
    return path


def test_it_is_one_run_that_replays_in_the_environment_to_the_last_bit(large):
    columns, _ = read(large)
    env = Maze2dEnv("large")
    env.reset(seed=0)
    first = columns["observations"][0].astype(np.float64)
    env.set_state(first[:2], first[2:])
    for row in range(len(columns["actions"])):
        observation, *_ = env.step(columns["actions"][row])
        assert (columns["next_observations"][row] == observation.astype(np.float32)).all(), row
    following = columns["next_observations"][:-1]
    np.testing.assert_array_equal(columns["observations"][1:], following)


def test_single_rows_replay_through_walls_and_all(large):
    """From the stored float32, so but nearly; all rows that touched a wall are among them."""
    columns, _ = read(large)
    mass = 4 / 3 * np.pi * 0.1**3 * 1000
    free = (mass * np.clip(columns["infos/qvel"], -5, 5) + columns["actions"]) / (mass + 0.01)
    touched = np.abs(columns["next_observations"][:, 2:] - free).max(axis=1) > 0.01
    assert 5 < touched.sum() < 500
    env = Maze2dEnv("large")
    env.reset(seed=0)
    for row in np.flatnonzero(touched | (np.arange(len(touched)) % 20 == 0)):
        env.set_state(columns["infos/qpos"][row], columns["infos/qvel"][row])
        observation, *_ = env.step(columns["actions"][row])
        np.testing.assert_allclose(columns["next_observations"][row], observation, atol=2e-4)


def test_rewards_goals_and_timeouts_are_d4rls(large):
    columns, attributes = read(large)
    states, goals = columns["observations"], columns["infos/goal"]
    near = np.linalg.norm(states[:, :2] - np.array(MAZE2D["large"].goal), axis=1) <= 0.5
    np.testing.assert_array_equal(columns["rewards"], near.astype(np.float32))
    assert 0 < near.sum() < 2000 and not columns["terminals"].any()
    np.testing.assert_array_equal(columns["infos/qpos"], states[:, :2])
    np.testing.assert_array_equal(columns["infos/qvel"], states[:, 2:])

    ends = np.flatnonzero(columns["timeouts"])
    assert attributes["last_episode_cut"] and attributes["episodes"] == len(ends) - 1 > 50
    assert attributes["goals_reached"] == len(ends) - 1  # nobody ran out of time
    cells = np.rint(goals)
    assert 0.05 < np.abs(goals - cells).max() <= 0.1
    assert len(np.unique(cells, axis=0)) > 25
    distance = np.linalg.norm(states[:, :2] - cells, axis=1)
    within = distance < 0.1
    np.testing.assert_array_equal(np.flatnonzero(within), ends[:-1])  # there, and nowhere before
    changes = np.flatnonzero((goals[1:] != goals[:-1]).any(axis=1))
    np.testing.assert_array_equal(changes, ends[:-1])


def test_the_noise_is_on_the_controllers_actions(tmp_path):
    more = ["--goals", "(1,1)", "--noise", "0.05"]
    assert collect(tmp_path / "a", "lit_offrl/maze2d-umaze-v1", 6000, *more) == 0
    columns, attributes = read(tmp_path / "a")
    error = [1, 1] - columns["observations"][:, :2]
    controlled = 10 * error - columns["observations"][:, 2:]
    there = (np.linalg.norm(error, axis=1) < 0.1) & (np.abs(controlled) < 0.7).all(axis=1)
    noise = (columns["actions"] - controlled)[there]
    assert len(noise) > 2000 and noise.std() == pytest.approx(0.05, rel=0.05)
    assert noise.mean() == pytest.approx(0, abs=0.005) and attributes["noise"] == 0.05
    assert np.abs(columns["actions"]).max() == 1


def test_the_file_reads_as_a_dataset_with_its_provenance(large):
    data = read_hdf5(large)
    assert data.spec.env_id == "lit_offrl/maze2d-large-v1"
    assert data.spec.max_episode_steps == 800 and data.spec.action_high == (1.0, 1.0)
    assert data.columns["goals"].shape == (20_000, 2) and "policy" not in data.columns
    _, attributes = read(large)
    assert attributes["kind"] == "waypoint" and attributes["complete"]
    assert attributes["command"].startswith("lit-offrl collect --env lit_offrl/maze2d-large-v1")
    assert '"mujoco"' in attributes["versions"] and attributes["rows"] == 20_000


def test_a_seed_repeats_and_more_steps_go_on(tmp_path, large):
    more = ["--noise", "0.5", "--seed"]
    assert collect(tmp_path / "a", "lit_offrl/maze2d-large-v1", 3000, *more, "7") == 0
    assert collect(tmp_path / "b", "lit_offrl/maze2d-large-v1", 3000, *more, "8") == 0
    (whole, _), (a, _), (b, _) = read(large), read(tmp_path / "a"), read(tmp_path / "b")
    for name in a.keys() - {"timeouts"}:  # the last row of the shorter one ends an episode
        np.testing.assert_array_equal(a[name], whole[name][:3000])
    assert (a["observations"][0] != b["observations"][0]).any()


def test_who_runs_out_of_time_gets_another_goal(tmp_path):
    assert (
        collect(tmp_path / "a", "lit_offrl/maze2d-large-v1", 400, "--max_episode_steps", "5") == 0
    )
    columns, attributes = read(tmp_path / "a")
    lengths = np.diff(np.flatnonzero(columns["timeouts"]))
    assert lengths.max() == 5 and attributes["goals_reached"] < attributes["episodes"]
    assert attributes["max_episode_steps"] == 5


def test_fixed_goals_have_a_policy_each_and_whole_episodes(tmp_path):
    goals = ["--goals", "(1,1), (3,1),(2,3)", "--no_next_observations"]
    assert collect(tmp_path / "a", "lit_offrl/maze2d-umaze-v1", 3150, *goals) == 0
    columns, attributes = read(tmp_path / "a")
    assert np.flatnonzero(columns["timeouts"]).tolist() == [*range(299, 3000, 300), 3149]
    policy = np.repeat([0, 1, 2] * 4, 300)[:3150]
    np.testing.assert_array_equal(columns["policy"], policy)
    cells = np.array([[1, 1], [3, 1], [2, 3]])
    np.testing.assert_array_equal(columns["infos/goal"], cells[policy])
    ends = columns["observations"][299:3000:300, :2]
    np.testing.assert_allclose(ends, cells[policy[299:3000:300]], atol=0.1)
    starts = columns["observations"][:3000:300, :2]
    assert len(np.unique(np.rint(starts), axis=0)) >= 4
    assert attributes["goals"] == "(1,1),(3,1),(2,3)" and attributes["episodes"] == 10
    assert attributes["goals_reached"] == 10 and "next_observations" not in columns
    # the reward is of the maze's own goal, whoever acts
    near = np.linalg.norm(columns["observations"][:, :2] - [1, 1], axis=1) <= 0.5
    np.testing.assert_array_equal(columns["rewards"], near.astype(np.float32))
    assert read_hdf5(tmp_path / "a").columns["policy"].tolist() == policy.tolist()


def test_episodes_with_fixed_goals_may_share_their_start(tmp_path):
    more = ["--goals", "(1,1),(3,3)", "--start", "(3,1)"]
    assert collect(tmp_path / "a", "lit_offrl/maze2d-umaze-v1", 1800, *more) == 0
    columns, attributes = read(tmp_path / "a")
    starts = columns["observations"][::300]
    assert (np.abs(starts[:, :2] - [3, 1]) <= 0.1).all() and attributes["start"] == "(3,1)"
    assert len(np.unique(starts, axis=0)) == 6  # D4RL's scatter about the cell
    ends = columns["observations"][299::300, :2]
    np.testing.assert_allclose(ends, [[1, 1], [3, 3]] * 3, atol=0.1)


def test_dense_rewards_are_of_the_distance(tmp_path):
    assert collect(tmp_path / "a", "lit_offrl/maze2d-umaze-dense-v1", 500) == 0
    columns, _ = read(tmp_path / "a")
    away = np.linalg.norm(columns["observations"][:, :2] - [1, 1], axis=1)
    np.testing.assert_allclose(columns["rewards"], np.exp(-away), rtol=1e-5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_whole_rows(tmp_path, monkeypatch, capsys, number):
    steps, step = 0, PointMass.step

    def interrupted(self, action):
        nonlocal steps
        steps += 1
        if steps == 2500:
            signal.raise_signal(number)
        step(self, action)

    monkeypatch.setattr(PointMass, "step", interrupted)
    assert collect(tmp_path / "a", "lit_offrl/maze2d-umaze-v1", 100_000) == 128 + number
    said = capsys.readouterr().err
    assert f"stopped by {number.name}; kept 2,499 rows" in said and "goals reached" in said
    columns, attributes = read(tmp_path / "a")
    assert len(columns["rewards"]) == 2499 and not attributes["complete"]
    assert columns["timeouts"][-1] and attributes["last_episode_cut"]
    following = columns["next_observations"][:-1]
    np.testing.assert_array_equal(columns["observations"][1:], following)


@pytest.mark.parametrize(
    ("env", "more", "said"),
    [
        ("Pendulum-v1", [], "no maze2d environment: choose one"),
        ("umaze", ["--goals", "(2,1)"], r"cell \(2,1\) is a wall or outside: choose a free one"),
        ("umaze", ["--goals", "(1,1)", "--start", "(2,2)"], r"cell \(2,2\) is a wall or outside"),
        ("umaze", ["--start", "(3,1)"], "--start is for episodes with fixed goals: give --goals"),
        ("umaze", ["--thin", "2"], "--thin is of --kind random"),
        ("umaze", ["--train_steps", "2"], "--train_steps is of --kind random"),
        ("umaze", ["--noise", "nan"], "noise is nan: give a finite number"),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, env, more, said):
    env = env if "-" in env else f"lit_offrl/maze2d-{env}-v1"
    with pytest.raises(ConfigError, match=said):
        collect(tmp_path / "a", env, 100, *more)
    assert not list(tmp_path.iterdir())


def test_an_unknown_maze_is_named(tmp_path):
    with pytest.raises(EvaluationError, match="Did you mean 'lit_offrl/maze2d-umaze-v1'"):
        collect(tmp_path / "a", "lit_offrl/maze2d-umaz-v1")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--kind", "random", "--planner", "waypoint"], "not allowed with argument"),
        ([], "one of the arguments --kind --planner is required"),
        (["--planner", "waypoint", "--goals", "1,1"], "invalid list of cells, as '(1,1),(7,9)'"),
    ],
)
def test_options_that_exclude_each_other(tmp_path, argv, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        main(["--env", "lit_offrl/maze2d-umaze-v1", "--output", str(tmp_path / "a"), *argv])
    with pytest.raises(ConfigError, match="--goals is of --planner waypoint"):
        main(
            [*"--env Pendulum-v1 --kind random --goals (1,1) --output".split(), str(tmp_path / "a")]
        )


def test_mazes_in_parts_are_refused_at_once(tmp_path):
    parts = Maze("parts", ("#####", "#.#.#", "#####"), (1, 1), 10)
    gymnasium.register("Parts-v0", Maze2dEnv, max_episode_steps=10, kwargs={"maze": parts})
    try:
        with pytest.raises(ConfigError, match="maze 'parts': has cells without a way between them"):
            collect(tmp_path / "a", "Parts-v0", 100)
    finally:
        del gymnasium.registry["Parts-v0"]


def test_fixed_goals_need_a_step_limit(tmp_path):
    gymnasium.register("Boundless-v0", Maze2dEnv)
    try:
        with pytest.raises(EvaluationError, match=r"no step limit.* give --max_episode_steps"):
            collect(tmp_path / "a", "Boundless-v0", 100, "--goals", "(1,1)")
        assert collect(tmp_path / "a", "Boundless-v0", 100) == 0
    finally:
        del gymnasium.registry["Boundless-v0"]
