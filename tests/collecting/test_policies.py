"""Collecting with a policy or random actions and noise that lasts, and the files of rounds."""

from __future__ import annotations

import hashlib

import gymnasium
import h5py
import numpy as np
import pytest

from lit_offrl.__main__ import main
from lit_offrl.collecting import policies
from lit_offrl.collecting.policies import PolicyCollection
from lit_offrl.collecting.rounds import collect_round, grow, round_file
from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.common.seeds import mix
from lit_offrl.datasets.hdf5 import read_hdf5

CAR = "lit_offrl/mountain-car-v0"


def options(**given):
    return {"env": CAR, "steps": 230, "seed": 3, "num_envs": 4, "max_episode_steps": 50} | given


def collected(**given):
    collection = PolicyCollection(output=None, **options(**given))
    collection.run()
    return collection.recorded()


@pytest.fixture
def leaning(monkeypatch):
    """A policy a = 2 · velocity + 0.1 · position that remembers where it was reset."""

    class Leaning:
        def __init__(self):
            Leaning.resets = []

        def reset(self, mask=None):
            self.resets.append(mask.copy())

        def act(self, observations):
            return 2 * observations[:, 1:] + 0.1 * observations[:, :1]

    monkeypatch.setattr(policies, "_load", lambda *_: Leaning())
    return Leaning


def test_rows_are_whole_episodes_that_replay(leaning):
    columns, cut = collected(policy="some.ckpt", noise=0.5)
    ends = np.flatnonzero(columns["timeouts"] | columns["terminals"])
    assert ends.tolist() == [49, 99, 149, 199, 229] and cut
    assert not columns["terminals"].any()
    starts = [0, *ends[:-1] + 1]
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        env = gymnasium.make(CAR)
        state, _ = env.reset(seed=mix(3, number) % 2**31)
        for row in range(start, end + 1):
            np.testing.assert_array_equal(columns["observations"][row], np.float32(state))
            state, reward, *_ = env.step(columns["actions"][row])
            np.testing.assert_array_equal(columns["next_observations"][row], np.float32(state))
            assert columns["rewards"][row] == np.float32(reward)
    assert sum(mask.sum() for mask in leaning.resets) == 5


def test_a_policy_with_a_goal_is_told_the_environments(monkeypatch):
    class Homing:
        """Goes straight to the goal, by position and velocity."""

        def reset(self, mask=None):
            self.begun = mask

        def aim(self, goals):
            self.goals = goals

        def act(self, observations):
            return 2 * (self.goals - observations[:, :2]) - observations[:, 2:]

    monkeypatch.setattr(policies, "_load", lambda *_: Homing())
    # In an open maze nothing stands in the way, so it comes to the goal wherever it starts.
    columns, _ = collected(
        policy="some.ckpt", env="lit_offrl/maze2d-open-v1", steps=300, max_episode_steps=100
    )
    assert columns["timeouts"].sum() == 3
    assert columns["rewards"][columns["timeouts"]].all()


def test_data_do_not_depend_on_how_many_environments_are_stepped_together():
    one, other = (collected(num_envs=number, hold=5)[0] for number in (1, 7))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_terminals_end_episodes_and_the_last_row_is_not_cut_where_it_ends_one():
    columns, cut = collected(steps=6000, hold=40, max_episode_steps=None)
    assert columns["terminals"].any() and len(columns["rewards"]) == 6000
    last = columns["next_observations"][columns["terminals"], 0]
    assert (last >= 0.45).all() and (columns["rewards"][columns["terminals"]] > 90).all()
    assert not (columns["terminals"] & columns["timeouts"]).any()
    length = int(np.flatnonzero(columns["terminals"] | columns["timeouts"])[0]) + 1
    whole, cut = collected(steps=length, hold=40, max_episode_steps=None, num_envs=1)
    assert not cut and len(whole["rewards"]) == length


@pytest.mark.parametrize("hold", [1, 8])
def test_random_actions_are_uniform_and_last_as_long_as_is_asked(hold):
    columns, _ = collected(steps=8000, hold=hold, max_episode_steps=500)
    actions = columns["actions"][:, 0]
    assert actions.min() >= -1 and actions.max() <= 1
    if hold == 1:
        quarters = np.histogram(actions, bins=4, range=(-1, 1))[0] / len(actions)
        assert np.abs(quarters - 0.25).max() < 0.03
    changes = np.count_nonzero(np.diff(actions)) + 1
    assert len(actions) / changes == pytest.approx(hold, rel=0.12)


def test_noise_is_of_the_size_that_is_asked_and_clipped(leaning):
    quiet, _ = collected(policy="some.ckpt")
    acted = 2 * quiet["observations"][:, 1:] + 0.1 * quiet["observations"][:, :1]
    np.testing.assert_allclose(quiet["actions"], acted, atol=1e-6)
    loud, _ = collected(policy="some.ckpt", noise=0.2, steps=4000)
    acted = 2 * loud["observations"][:, 1:] + 0.1 * loud["observations"][:, :1]
    assert (loud["actions"] - acted).std() == pytest.approx(0.2, rel=0.06)
    clipped, _ = collected(policy="some.ckpt", noise=5.0)
    assert np.abs(clipped["actions"]).max() == 1.0


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"env": "CartPole-v1"}, EvaluationError, "CartPole-v1.*action space Discrete"),
        ({"env": "MountainCar-x"}, EvaluationError, "no environment 'MountainCar-x'"),
        ({"hold": 0.5}, ConfigError, "hold is 0.5: give at least 1"),
        ({"policy": "no.ckpt"}, ConfigError, "no.ckpt: no such checkpoint"),
    ],
)
def test_what_cannot_be_is_said(given, kind, words):
    with pytest.raises(kind, match=words) as caught:
        PolicyCollection(output=None, **options(**given))
    assert "\n" not in str(caught.value)


def test_a_policy_that_gives_nan_is_said(leaning, monkeypatch):
    monkeypatch.setattr(leaning, "act", lambda self, rows: np.full((len(rows), 1), np.nan))
    with pytest.raises(EvaluationError, match=r"some\.ckpt: its policy's action at step 0 of ep"):
        collected(policy="some.ckpt")


def test_a_checkpoint_through_the_command_line(lit, folder, capsys):
    """A BCModule, which has no scalar φ and needs none here."""
    assert lit("--checkpoint.dirpath", "run") == 0
    words = ["collect", "--env", "Pendulum-v1", "--kind", "policy", "--policy", "run/last.ckpt"]
    words += ["--steps", "250", "--noise", "0.1", "--output", "p.hdf5"]
    assert main([*words, "--num_envs", "2", "--hold", "3"]) == 0
    dataset = read_hdf5("p.hdf5")
    assert len(dataset) == 250 and dataset.episode_lengths.tolist() == [200, 50]
    assert dataset.spec.env_id == "Pendulum-v1"
    assert dataset.provenance["kind"] == "policy" and dataset.provenance["hold"] == "3.0"
    capsys.readouterr()
    words[2] = CAR
    assert main([*words, "--overwrite"]) == 2
    assert "acts from 3 numbers to 1, but 'lit_offrl/mountain-car-v0' has 2 and 1" in (
        capsys.readouterr().err
    )
    for wrong, said in (
        (["--kind", "policy"], "--kind policy needs --policy FILE"),
        (["--kind", "random", "--hold", "3"], "--hold is of --kind policy"),
        (
            ["--kind", "policy", "--policy", "x", "--thin", "2"],
            "--thin is of --kind random",
        ),
    ):
        assert main(["collect", "--env", CAR, "--output", "q.hdf5", *wrong]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and said in lines[0]


def test_rounds_grow_into_one_dataset_whose_policy_is_the_round(tmp_path, leaning):
    chosen = options(steps=120)
    facts = [
        collect_round(tmp_path, number, "command", policy=checkpoint, **chosen)
        for number, checkpoint in ((0, None), (1, "a.ckpt"), (2, "b.ckpt"))
    ]
    assert [one["rows"] for one in facts] == [120] * 3
    assert [one["kind"] for one in facts] == ["random", "policy", "policy"]
    path = grow(tmp_path, 3)
    assert path.stem == tmp_path.name
    dataset = read_hdf5(path, require=("actions", "rewards", "policy", "next_observations"))
    assert dataset.columns["policy"].tolist() == [0.0] * 120 + [1.0] * 120 + [2.0] * 120
    for start, stop in dataset.episodes:
        assert len(set(dataset.columns["policy"][start:stop].tolist())) == 1
        np.testing.assert_array_equal(
            dataset.columns["next_observations"][start : stop - 1],
            dataset.columns["observations"][start + 1 : stop],
        )
    parts = [read_hdf5(round_file(tmp_path, number)) for number in range(3)]
    actions = np.concatenate([part.columns["actions"] for part in parts])
    np.testing.assert_array_equal(dataset.columns["actions"], actions)
    with h5py.File(path) as file:
        means = [float(one["return_mean"]) for one in facts]
        assert file.attrs["rounds"] == 3 and file.attrs["policy_return_mean"].tolist() == means

    before = hashlib.sha256(path.read_bytes()).hexdigest()  # a function of the rounds' files
    path.unlink()
    assert hashlib.sha256(grow(tmp_path, 3).read_bytes()).hexdigest() == before
    stamp = round_file(tmp_path, 1).stat().st_mtime_ns  # what is there is not collected again
    collect_round(tmp_path, 1, "command", policy="a.ckpt", **chosen)
    assert round_file(tmp_path, 1).stat().st_mtime_ns == stamp


def test_a_killed_collection_leaves_nothing_half_written(tmp_path, monkeypatch):
    def killed(self, action):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(policies._Episode, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            collect_round(tmp_path, 0, "command", **options(steps=60))
    assert not list(tmp_path.iterdir())


def test_an_environment_that_gives_nan_is_said(tmp_path, monkeypatch):
    def nan(self, action):
        raise EvaluationError("Environment 'A-v0' gave the reward nan: give one finite number.")

    monkeypatch.setattr(policies._Episode, "step", nan)
    with pytest.raises(EvaluationError, match="round 0: Environment 'A-v0' gave the reward nan"):
        collect_round(tmp_path, 0, "command", **options(steps=60))
