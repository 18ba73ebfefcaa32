import contextlib
import os
import pty
import signal
import sys
import termios

import gymnasium
import h5py
import numpy as np
import pytest

from lit_offrl.commands.collect import main
from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.datasets.hdf5 import read_hdf5
from tests.helpers import forked


class Corridor(gymnasium.Env):
    """Observes the step; pays the action; ends at step 4 in every other episode."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-2.0, 1.0, (2,), np.float32)
    breaks_at = None

    def __init__(self, render_mode=None):
        self.episode = -1
        self.total = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.steps = 0
        return np.array([0.0]), {}

    def step(self, action):
        self.steps += 1
        self.total += 1
        if self.total == self.breaks_at:
            raise RuntimeError("the simulator fell over\nwith a second line")
        over = self.episode % 2 == 0 and self.steps == 4
        return np.array([float(self.steps)]), float(action[0]), over, False, {}


class Breaking(Corridor):
    breaks_at = 10


class Stopped(Corridor):
    def step(self, action):
        if self.total == 10:
            signal.raise_signal(signal.SIGTERM)
        return super().step(action)


class Unbounded(Corridor):
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)


@pytest.fixture(autouse=True, scope="module")
def environments():
    kinds = (Corridor, Breaking, Stopped, Unbounded)
    for kind in kinds:
        gymnasium.register(f"{kind.__name__}-v0", kind, max_episode_steps=6)
    yield
    for kind in kinds:
        del gymnasium.registry[f"{kind.__name__}-v0"]


def read(path):
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}, dict(file.attrs)


def collect(path, env="Corridor-v0", kind="random", steps=13, *more):
    return main(["--env", env, "--kind", kind, "--steps", str(steps), "--output", str(path), *more])


def test_the_same_command_gives_the_same_file(tmp_path, monkeypatch):
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert collect("data.hdf5") == 0
        written.append((tmp_path / name / "data.hdf5").read_bytes())
    assert written[0] == written[1]


def test_random_rows_are_exactly_what_the_environment_did(tmp_path):
    path = tmp_path / "new" / "data.hdf5"
    assert collect(path, "Corridor-v0", "random", 13, "--seed", "3") == 0
    columns, attributes = read(path)
    # episodes of 4 (terminal), 6 (step limit) and 3 rows (cut when there were enough)
    steps = [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0, 1, 2]
    np.testing.assert_array_equal(columns["observations"][:, 0], steps)
    np.testing.assert_array_equal(columns["next_observations"][:, 0], np.array(steps) + 1)
    assert np.flatnonzero(columns["terminals"]).tolist() == [3]
    assert np.flatnonzero(columns["timeouts"]).tolist() == [9, 12]
    np.testing.assert_array_equal(columns["rewards"], columns["actions"][:, 0])
    assert columns["actions"].min() >= -2 and columns["actions"].max() <= 1
    assert attributes["complete"] and attributes["last_episode_cut"]
    assert attributes["rows"] == 13 and attributes["episodes"] == 2
    returns = [columns["rewards"][:4].sum(), columns["rewards"][4:10].sum()]
    assert attributes["return_mean"] == pytest.approx(np.mean(returns), rel=1e-5)
    assert attributes["return_max"] == pytest.approx(max(returns), rel=1e-5)
    assert attributes["command"].startswith("lit-offrl collect --env Corridor-v0")
    assert "gymnasium" in attributes["versions"] and attributes["max_episode_steps"] == 6

    data = read_hdf5(path)
    assert data.episodes.tolist() == [[0, 4], [4, 10], [10, 13]]
    assert data.spec.env_id == "Corridor-v0" and data.spec.max_episode_steps == 6
    assert data.spec.action_low == (-2.0, -2.0) and data.spec.action_high == (1.0, 1.0)


def test_a_seed_repeats_and_another_does_not(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert collect(tmp_path / name, "Pendulum-v1", "random", 50, "--seed", str(seed)) == 0
    a, b, c = (read(tmp_path / name)[0] for name in "abc")
    for column in a:
        np.testing.assert_array_equal(a[column], b[column])
    assert (a["observations"][0] != c["observations"][0]).any()
    assert (a["actions"] != c["actions"]).any()


def test_next_observations_can_be_left_out(tmp_path):
    assert collect(tmp_path / "a", "Corridor-v0", "random", 10, "--no-next-observations") == 0
    assert set(read(tmp_path / "a")[0]) == {
        "observations",
        "actions",
        "rewards",
        "terminals",
        "timeouts",
    }


def test_every_kth_episode(tmp_path):
    assert collect(tmp_path / "a", "Corridor-v0", "random", 25, "--thin", "2") == 0
    columns, attributes = read(tmp_path / "a")
    # rows of episodes 0, 2 and 4 (4 each); episodes 1, 3 (6 each) and the start of 5 are left out
    assert columns["observations"][:, 0].tolist() == [0, 1, 2, 3] * 3
    assert np.flatnonzero(columns["terminals"]).tolist() == [3, 7, 11]
    assert attributes["thin"] == 2 and attributes["rows"] == 12 and attributes["episodes"] == 3
    assert attributes["environment_steps"] == 25 and not attributes["last_episode_cut"]


def test_a_file_that_is_there_is_kept(tmp_path):
    path = tmp_path / "a"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="exists: choose another --output or say --overwrite"):
        collect(path)
    assert path.read_text() == "precious"
    assert collect(path, "Corridor-v0", "random", 5, "--overwrite") == 0
    assert read(path)[1]["rows"] == 5


def test_a_failing_environment_leaves_its_rows(tmp_path, capsys):
    assert collect(tmp_path / "a", "Breaking-v0", "random", 100) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        "failed at step 6 of an episode: RuntimeError: the simulator fell over with a second line ("
        in said
    )
    assert "test_collect.py, line" in said and "); kept 9 rows" in said
    columns, attributes = read(tmp_path / "a")
    assert len(columns["rewards"]) == 9
    assert not attributes["complete"] and attributes["last_episode_cut"]
    assert columns["timeouts"][-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_rows(tmp_path, number):
    path = tmp_path / "a.hdf5"
    argv = ["--env", "Pendulum-v1", "--kind", "random", "--steps", "9999999", "--output", str(path)]
    screen, stderr = pty.openpty()  # on a terminal the bar moves twice a second
    termios.tcsetwinsize(screen, (24, 200))
    process = forked(main, argv, stderr=stderr)
    os.close(stderr)
    said = b""
    while b"return" not in said:  # the bar shows the first finished episodes
        said += os.read(screen, 4096)
    os.kill(process.pid, number)
    with contextlib.suppress(OSError):  # nobody has the terminal any more
        while part := os.read(screen, 4096):
            said += part
    os.close(screen)
    process.join(400)
    assert process.exitcode == 128 + number
    assert f"stopped by {number.name}; kept".encode() in said and b"Traceback" not in said
    columns, attributes = read(path)
    assert len(columns["rewards"]) == attributes["rows"] >= 200
    assert not attributes["complete"]
    assert os.listdir(tmp_path) == ["a.hdf5"]


def test_mistakes_are_found_before_anything_runs(tmp_path, capsys):
    path = tmp_path / "a"
    with pytest.raises(EvaluationError, match="Did you mean 'HopperBulletEnv-v0'"):
        collect(path, "HopperBuletEnv-v0")
    with pytest.raises(EvaluationError, match="action space Discrete"):
        collect(path, "CartPole-v1")
    with pytest.raises(ConfigError, match="unbounded actions"):
        collect(path, "Unbounded-v0")
    with pytest.raises(ConfigError, match="give --target_return"):
        collect(path, "Corridor-v0", "mixed")
    with pytest.raises(ConfigError, match="'medium'"):
        collect(path, "Corridor-v0", "medum")
    assert not path.exists()


def test_without_stable_baselines3_the_message_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(ConfigError, match=r"pip install -e .\[collect\]"):
        collect(tmp_path / "a", "Corridor-v0", "mixed", 10, "--target_return", "5")
    assert collect(tmp_path / "a") == 0  # random needs no agent


def test_mixed_is_the_replay_of_a_training_run(tmp_path):
    assert collect(tmp_path / "a", "HopperBulletEnv-v0", "mixed", 150, "--seed", "1") == 0
    columns, attributes = read(tmp_path / "a")
    assert len(columns["rewards"]) == 150 and not attributes["target_reached"]
    assert '"learning_rate": 0.001' in attributes["hyperparameters"]
    # within an episode rows follow on one another; every end is a fall, none a step limit
    ends = columns["terminals"] | columns["timeouts"]
    np.testing.assert_array_equal(
        columns["next_observations"][:-1][~ends[:-1]], columns["observations"][1:][~ends[:-1]]
    )
    assert columns["terminals"].sum() >= 5 and not columns["timeouts"][:-1].any()
    assert np.abs(columns["actions"]).max() <= 1


def test_training_stops_at_the_target_return(tmp_path):
    assert collect(tmp_path / "a", "HopperBulletEnv-v0", "mixed", 150, "--target_return", "19") == 0
    columns, attributes = read(tmp_path / "a")
    assert attributes["target_reached"] and attributes["return_max"] >= 19
    assert attributes["rows"] < 150 and columns["terminals"][-1]
    ends = np.flatnonzero(columns["terminals"])
    returns = np.add.reduceat(columns["rewards"], np.r_[0, ends[:-1] + 1])
    assert (returns[:-1] < 19).all() and returns[-1] >= 19


@pytest.mark.parametrize("kind", ["medium", "expert"])
def test_a_trained_actor_acts_alike_in_like_states(tmp_path, kind, capsys):
    options = ["--train_steps", "120", "--target_return", "1e9", "--noise"]
    for name, noise in (("a", "0"), ("b", "0.5")):
        assert collect(tmp_path / name, "Corridor-v0", kind, 30, *options, noise) == 0
    (plain, attributes), (noisy, _) = read(tmp_path / "a"), read(tmp_path / "b")
    for step in range(4):  # the observation is the step, and the actor deterministic
        rows = plain["observations"][:, 0] == step
        assert np.ptp(plain["actions"][rows], axis=0).max() == 0
        assert np.ptp(noisy["actions"][rows], axis=0).max() > 0
    assert noisy["actions"].min() >= -2 and noisy["actions"].max() <= 1
    assert attributes["kind"] == kind and attributes["train_steps"] == 120
    said = "was not reached" in capsys.readouterr().out
    assert said == (kind == "medium")


def test_a_signal_during_training_says_that_there_is_nothing_to_keep(tmp_path, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    assert collect(tmp_path / "a", "Stopped-v0", "expert", 30) == 128 + signal.SIGTERM
    said = capsys.readouterr().err
    assert "stopped by SIGTERM; kept no rows, so nothing was written" in said
    assert not (tmp_path / "a").exists()
    assert signal.getsignal(signal.SIGTERM) is handler
