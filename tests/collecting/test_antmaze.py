"""AntMaze collections: known answers, replays in the environment, interruptions, policy files."""

import hashlib
import signal

import h5py
import numpy as np
import pytest
import torch

from lit_offrl.collecting.antmaze import PLAY_GOALS, AntMazeCollection
from lit_offrl.collecting.goal_policies import MLPPolicy, load_goal_policy
from lit_offrl.commands.collect import main
from lit_offrl.commands.datasets import main as datasets
from lit_offrl.common.errors import ConfigError
from lit_offrl.datamodules import D4RLDataModule
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.envs.antmaze import AntMazeEnv
from lit_offrl.envs.mazes import MAZE2D
from lit_offrl.modules import BCModule

pytest.importorskip("mujoco")


def weights(**more):
    random = np.random.default_rng(0)
    return {
        "w0": random.normal(0, 0.3, (29, 16)),
        "b0": np.zeros(16),
        "w1": random.normal(0, 0.3, (16, 8)),
        "b1": np.zeros(8),
        **more,
    }


@pytest.fixture
def policy(tmp_path):
    np.savez(tmp_path / "walker.npz", **weights(log_std=np.full(8, -1.0)))
    return tmp_path / "walker.npz"


def collect(policy, path, task, steps, *more):
    argv = ["--env", f"lit_offrl/antmaze-{task}-v2", "--planner", "waypoint", "--policy"]
    return main([*argv, str(policy), "--steps", str(steps), "--output", str(path), *more])


def read(path):
    with h5py.File(path) as file:
        columns = {name: file[name][()] for name in file if name != "infos"}
        columns |= {f"infos/{name}": column[()] for name, column in file["infos"].items()}
        return columns, dict(file.attrs)


def test_runs_replay_in_the_environment_to_the_last_bit(policy, tmp_path):
    more = ["--noise", "0.2", "--max_episode_steps", "40", "--seed", "3"]
    assert collect(policy, tmp_path / "a", "medium-diverse", 110, *more) == 0
    columns, attributes = read(tmp_path / "a")
    assert np.flatnonzero(columns["timeouts"]).tolist() == [39, 79, 109]
    assert attributes["episodes"] == 2 and attributes["last_episode_cut"]
    env = AntMazeEnv("medium")
    env.reset(seed=0)
    for row in range(110):
        if row % 40 == 0:
            env.set_state(columns["infos/qpos"][row], columns["infos/qvel"][row])
        else:
            before = columns["next_observations"][row - 1]
            np.testing.assert_array_equal(columns["observations"][row], before)
        observation, *_ = env.step(columns["actions"][row])
        following = columns["next_observations"][row]
        np.testing.assert_array_equal(following, observation.astype(np.float32))
    assert np.abs(columns["actions"]).max() <= 1


def test_a_whole_run_has_1001_rows_and_a_timeout_last(policy, tmp_path):
    assert collect(policy, tmp_path / "a", "umaze", 1001) == 0
    columns, attributes = read(tmp_path / "a")
    assert np.flatnonzero(columns["timeouts"]).tolist() == [1000]
    assert attributes["episodes"] == 1 and not attributes["last_episode_cut"]
    np.testing.assert_array_equal(columns["infos/qpos"], columns["observations"][:, :15])
    np.testing.assert_array_equal(columns["infos/qvel"], columns["observations"][:, 15:])
    assert attributes["env_id"] == "lit_offrl/antmaze-umaze-v2" and attributes["rows"] == 1001
    np.testing.assert_array_equal(attributes["evaluation_goal"], [0.75, 8.75])
    assert attributes["policy_file"] == "walker.npz" and len(attributes["policy_sha256"]) == 64


class Watching:
    """Stands still, and keeps what it was shown."""

    def __init__(self):
        self.seen = []

    def reset(self, mask=None):
        pass

    def act(self, observations):
        self.seen.append(observations)
        return np.zeros((len(observations), 8), np.float32)


def test_the_policy_sees_the_ant_and_the_way_to_the_next_cell(policy, tmp_path, monkeypatch):
    watching = Watching()
    monkeypatch.setattr("lit_offrl.collecting.antmaze.load_goal_policy", lambda *_: watching)
    assert collect(policy, tmp_path / "a", "large-diverse", 32 * 5, "--max_episode_steps", "5") == 0
    columns, _ = read(tmp_path / "a")
    seen = np.stack(watching.seen, axis=1).reshape(-1, 29)  # run after run, as the file
    np.testing.assert_array_equal(seen[:, :27], columns["observations"][:, 2:])
    directions, goals = seen[:, 27:], columns["infos/goal"]
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 10, rtol=1e-6)
    maze, ways = MAZE2D["large"], 0
    for row, position in enumerate(columns["observations"][:, :2]):
        here, there = (
            tuple(np.rint(at[::-1] / 4 + 1).astype(int)) for at in (position, goals[row])
        )
        if here == there:
            way = goals[row] - position
            np.testing.assert_allclose(directions[row], 10 * way / np.linalg.norm(way), rtol=1e-4)
            continue
        ways += 1
        corner = 4.0 * (maze.path(here, there)[0][::-1] - 1) - position
        angles = np.arctan2(*(corner[:, None] + [[0, 0, 1, 1], [0, 1, 0, 1]]))
        turned = np.arctan2(*directions[row])
        off = np.angle(np.exp(1j * (angles - turned)))  # the four corners of the shifts' square
        assert off.min() <= 1e-6 and off.max() >= -1e-6 and np.abs(off).max() < 1
    assert ways > 100


def test_rewards_and_terminals_are_of_the_next_position(policy, tmp_path, monkeypatch):
    """One start stands within 0.5 m of the goal that is put there, and drifts."""
    init = AntMazeCollection.__post_init__

    def near(self):
        init(self)
        self.evaluation_goal = np.array([0.45, 0.0])

    monkeypatch.setattr(AntMazeCollection, "__post_init__", near)
    assert collect(policy, tmp_path / "a", "umaze", 600, "--max_episode_steps", "150") == 0
    columns, attributes = read(tmp_path / "a")
    gaps = np.linalg.norm(columns["next_observations"][:, :2] - [0.45, 0], axis=1)
    np.testing.assert_array_equal(columns["terminals"], gaps <= 0.5)
    np.testing.assert_array_equal(columns["rewards"], (gaps <= 0.5).astype(np.float32))
    assert 10 < columns["terminals"].sum() < 590
    assert attributes["reward_mean"] == pytest.approx((gaps <= 0.5).mean())
    assert datasets(["check", str(tmp_path / "a")]) == 0
    data = D4RLDataModule(dataset=str(tmp_path / "a"))
    data.prepare_data()
    data.setup("fit")
    assert data.spec.env_id == "lit_offrl/antmaze-umaze-v2" and data.spec.observation_dim == 29


def test_an_ant_that_goes_where_it_is_told_reaches_every_goal(policy, tmp_path, monkeypatch):
    """Sliding half a metre a step; stopped by walls only in that none may be walked into."""

    class Told:
        def reset(self, mask=None):
            pass

        def act(self, observations):
            ways = observations[:, 27:] / 20
            return np.concatenate([ways, np.zeros((len(ways), 6))], axis=1)

    def slide(self, data, action):
        data.qpos[:2] += action[:2]

    monkeypatch.setattr("lit_offrl.collecting.antmaze.load_goal_policy", lambda *_: Told())
    monkeypatch.setattr(AntMazeEnv, "advance", slide)
    more = ["--max_episode_steps", "250"]
    assert collect(policy, tmp_path / "a", "large-diverse", 8000, *more) == 0
    columns, attributes = read(tmp_path / "a")
    assert attributes["goals_reached"] == attributes["episodes"] == 32
    cells = np.rint(columns["next_observations"][:, 1::-1] / 4 + 1).astype(int)
    assert MAZE2D["large"].free[tuple(cells.T)].all()
    paid = columns["rewards"].sum()
    passed = np.linalg.norm(columns["next_observations"][:, :2] - [32.75, 24.75], axis=1) <= 0.5
    assert paid == passed.sum() > 0 and columns["terminals"].sum() == paid


@pytest.mark.parametrize(
    ("task", "starts"), [("umaze", 1), ("large-play", 15), ("umaze-diverse", 5)]
)
def test_where_runs_start_and_where_they_head(policy, tmp_path, task, starts):
    assert collect(policy, tmp_path / "a", task, 64, "--max_episode_steps", "1") == 0
    columns, _ = read(tmp_path / "a")
    maze = task.partition("-")[0]
    at = columns["observations"][:, 1::-1] / 4 + 1
    assert np.abs(at - np.rint(at)).max() < 0.03  # metres: 0.1
    assert MAZE2D[maze].free[tuple(np.rint(at).astype(int).T)].all()
    assert len(np.unique(np.rint(at), axis=0)) >= starts
    goals = columns["infos/goal"][:, ::-1] / 4 + 1
    cells = {tuple(cell) for cell in np.rint(goals).astype(int).tolist()}
    shifts = 4 * (goals - np.rint(goals))
    assert shifts.min() >= 0 and 1 < shifts.max() <= 1.5
    if task == "umaze":
        assert cells == {(3, 1)} and np.abs(at - 1).max() < 0.03
    else:
        free = {tuple(cell) for cell in MAZE2D[maze].cells.tolist()}
        assert cells == (set(PLAY_GOALS["large"]) if task == "large-play" else free)


def test_the_goals_of_play_are_free_cells():
    for maze, goals in PLAY_GOALS.items():
        assert all(MAZE2D[maze].has(goal) for goal in goals)


def test_a_seed_repeats_it_all(policy, tmp_path):
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        more = ["--max_episode_steps", "2", "--noise", "0.2", "--seed", seed]
        assert collect(policy, tmp_path / name, "medium-play", 70, *more) == 0
    (a, _), (b, _), (c, _) = (read(tmp_path / name) for name in "abc")
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    assert (a["actions"] != c["actions"]).mean() > 0.8 and (
        a["infos/goal"] != c["infos/goal"]
    ).all()


def test_the_noise_is_on_the_actions(tmp_path):
    arrays = weights(w1=np.zeros((16, 8)))
    np.savez(tmp_path / "still.npz", **arrays)
    more = ["--noise", "0.2", "--no_next_observations"]
    assert collect(tmp_path / "still.npz", tmp_path / "a", "umaze", 500, *more) == 0
    columns, attributes = read(tmp_path / "a")
    assert columns["actions"].std() == pytest.approx(0.2, rel=0.05) and attributes["noise"] == 0.2
    assert abs(columns["actions"].mean()) < 0.02 and "next_observations" not in columns


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_whole_rows(policy, tmp_path, monkeypatch, capsys, number):
    calls, act = 0, MLPPolicy.act

    def interrupted(self, observations):
        nonlocal calls
        calls += 1
        if calls == 15:
            signal.raise_signal(number)
        return act(self, observations)

    monkeypatch.setattr(MLPPolicy, "act", interrupted)
    more = ["--max_episode_steps", "10"]
    assert collect(policy, tmp_path / "a", "umaze", 35 * 10, *more) == 128 + number
    assert f"stopped by {number.name}; kept 332 rows" in capsys.readouterr().err
    columns, attributes = read(tmp_path / "a")  # 32 runs of 10, and 4 rows of each of 3 more
    assert np.flatnonzero(columns["timeouts"]).tolist() == [*range(9, 320, 10), 323, 327, 331]
    assert not attributes["complete"] and attributes["episodes"] == 32
    inside = ~columns["timeouts"][:-1]
    following = columns["next_observations"][:-1][inside]
    np.testing.assert_array_equal(columns["observations"][1:][inside], following)


def test_a_policy_file_may_go_while_it_is_used(policy, tmp_path, monkeypatch):
    digest, act = hashlib.sha256(policy.read_bytes()).hexdigest(), MLPPolicy.act

    def removed(self, observations):
        policy.unlink(missing_ok=True)
        return act(self, observations)

    monkeypatch.setattr(MLPPolicy, "act", removed)
    assert collect(policy, tmp_path / "a", "umaze", 5) == 0
    assert read(tmp_path / "a")[1]["policy_sha256"] == digest


def test_a_policy_that_gives_no_number_leaves_its_rows(policy, tmp_path, monkeypatch, capsys):
    answers = iter([np.zeros((1, 8))] * 2 + [np.full((1, 8), np.nan)])
    monkeypatch.setattr(MLPPolicy, "act", lambda *_: next(answers))
    assert collect(policy, tmp_path / "a", "umaze", 9) == 1
    said = capsys.readouterr().err
    assert "action at step 2 of episode 0 is not finite" in said and "kept 2 rows" in said


def test_an_mlp_computes_what_its_file_says(tmp_path):
    arrays = weights(
        activation="elu", observation_mean=np.full(29, 0.5), observation_std=np.full(29, 2.0)
    )
    np.savez(tmp_path / "a.npz", **arrays)
    rows = np.random.default_rng(1).normal(0, 2, (5, 29))
    hidden = (rows - 0.5) / 2 @ arrays["w0"]
    hidden = np.where(hidden > 0, hidden, np.exp(hidden) - 1)
    found = load_goal_policy(tmp_path / "a.npz", 0).act(rows)
    np.testing.assert_allclose(found, np.tanh(hidden @ arrays["w1"]), atol=1e-5)


@pytest.mark.parametrize("head", [False, True])
def test_actions_are_drawn_with_the_files_log_std(head):
    arrays = weights(w1=np.zeros((16, 8)), log_std=np.full(8, np.log(0.1)))
    if head:
        del arrays["log_std"]
        arrays |= {"w1": np.zeros((16, 16)), "b1": np.repeat([0.0, np.log(0.1)], 8)}
    drawn = np.arctanh(MLPPolicy(arrays, "a", 0).act(np.zeros((2000, 29))))
    assert drawn.std() == pytest.approx(0.1, rel=0.03) and abs(drawn.mean()) < 0.005


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"w1": None}, "'w1' is missing"),
        ({"w0": None, "b0": None}, "'w0' is missing"),
        (
            {"w0": np.zeros((16, 29))},
            r"'w0' has shape \(16, 29\), where \(29, outputs\).*transpose",
        ),
        ({"w1": np.zeros((15, 8))}, r"'w1' has shape \(15, 8\), where \(16, outputs\)"),
        ({"b0": np.zeros(15)}, r"'b0' has shape \(15,\), not \(16,\)"),
        ({"w1": np.zeros((16, 7)), "b1": np.zeros(7)}, "'w1' has 7 outputs"),
        ({"b1": np.full(8, np.nan)}, "'b1' has values that are no finite numbers"),
        ({"b1": np.array(["a"] * 8)}, "'b1' has values that are no finite numbers"),
        ({"log_std": np.zeros(7)}, r"'log_std' has shape \(7,\)"),
        ({"observation_std": np.zeros(29)}, "'observation_std' has values that are not above 0"),
        ({"activation": "swish"}, "'activation' is 'swish': use one of relu"),
        ({"weights": np.zeros(3)}, "'weights' is not known"),
        ({"b1": np.array([None] * 8)}, "b1 cannot be read"),
    ],
)
def test_a_wrong_policy_is_one_line(tmp_path, change, said):
    arrays = {key: values for key, values in (weights() | change).items() if values is not None}
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(ConfigError, match=said) as error:
        collect(tmp_path / "p.npz", tmp_path / "a", "umaze", 10)
    assert "p.npz" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()


def test_files_that_are_no_policies(policy, tmp_path):
    (tmp_path / "text.npz").write_text("weights")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    for name in ("text.npz", "array.npz"):
        with pytest.raises(ConfigError, match=f"{name}: its list of arrays cannot be read"):
            collect(tmp_path / name, tmp_path / "a", "umaze", 10)
    with pytest.raises(ConfigError, match="no such file"):
        collect(tmp_path / "none.npz", tmp_path / "a", "umaze", 10)
    (tmp_path / "text.ckpt").write_text("weights")
    with pytest.raises(ConfigError, match="not a readable checkpoint"):
        collect(tmp_path / "text.ckpt", tmp_path / "a", "umaze", 10)
    with pytest.raises(ConfigError, match="--goals is of --planner waypoint in maze2d"):
        collect(policy, tmp_path / "a", "umaze", 10, "--goals", "(1,1)")


def checkpoint(path, size=29):
    torch.manual_seed(0)
    module = BCModule(size, 8, [-1.0] * 8, [1.0] * 8, hidden=(16,))
    module.spec = DatasetSpec(name="ants", observation_dim=size, action_dim=8)
    kept = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(kept)
    torch.save(kept, path)
    return path


def test_a_checkpoint_walks_too(tmp_path):
    path = checkpoint(tmp_path / "last.ckpt")
    assert collect(path, tmp_path / "a", "umaze", 40) == 0
    columns, attributes = read(tmp_path / "a")
    position, goal = columns["observations"][0, :2], columns["infos/goal"][0]
    assert np.abs(position).max() < 0.2 and np.rint(goal / 4).tolist() == [0, 2]
    policy, found = load_goal_policy(path, 0), []
    for y in np.linspace(0, 1, 400):  # the first waypoint is in the cell (1, 2), x = 4, y = 0
        for x in (0.0, 0.5, 1.0):
            way = np.array([4 + x, y]) - position
            seen = np.append(columns["observations"][0, 2:], 10 * way / np.linalg.norm(way))
            found.append(policy.act(seen[None])[0])
    gaps = np.abs(columns["actions"][0] - np.array(found)).max(axis=1)
    assert gaps.min() < 2e-3 and attributes["policy_file"] == "last.ckpt"


def test_a_checkpoint_of_another_size_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="acts from 11 numbers to 8: give one trained on the ant"):
        collect(checkpoint(tmp_path / "last.ckpt", 11), tmp_path / "a", "umaze", 40)


def test_policies_and_environments_that_do_not_go_together(policy, tmp_path):
    output = ["--output", str(tmp_path / "a"), "--env"]
    maze2d, ant = "lit_offrl/maze2d-umaze-v1", "lit_offrl/antmaze-umaze-v2"
    with pytest.raises(ConfigError, match="is no AntMaze: choose one"):
        main([*output, maze2d, "--planner", "waypoint", "--policy", str(policy)])
    with pytest.raises(ConfigError, match="for AntMaze --policy"):
        main([*output, ant, "--planner", "waypoint"])
    with pytest.raises(ConfigError, match="--policy is of --kind policy and of --planner waypoint"):
        main([*output, ant, "--kind", "random", "--policy", str(policy)])
