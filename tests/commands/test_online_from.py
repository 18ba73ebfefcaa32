"""``lit-offrl online --from``: a checkpoint's networks go on, killed or not; what they learn."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from lit_offrl.__main__ import main
from lit_offrl.callbacks.checkpoints import WholeFileIO
from lit_offrl.callbacks.own_steps import OwnSteps
from lit_offrl.datasets.hdf5 import read_hdf5, write_hdf5
from lit_offrl.evaluation.evaluate import evaluate_module
from lit_offrl.evaluation.record import EvaluationRecord
from lit_offrl.modules import IQLModule, OfflineModule, load_module

BEST = 0.5  # of the bandit's actions


class Bandit(gymnasium.Env):
    """20 steps of observation 1; an action earns more the nearer it is to ``BEST``."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    moved = False
    """Whether it is moved by what no seed sets."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        seen = np.random.default_rng().random() if self.moved else 1.0
        reward = 1.0 - abs(float(action[0]) - BEST)
        return np.full(1, seen, np.float32), reward, self.steps == 20, False, {}


gymnasium.register("test/Bandit-v0", Bandit, max_episode_steps=50)

CAR = "lit_offrl/mountain-car-v0"
QUIET = "--trainer.accelerator cpu --trainer.logger false --trainer.enable_model_summary false"
QUIET += " --trainer.enable_progress_bar false"
TINY = "--model.init_args.hidden [8]"
STOCHASTIC = f"{TINY} --model.init_args.width 8 --model.init_args.blocks 1"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows of Mountain Car, and of the bandit by actions up to 0.1 alone."""
    folder = tmp_path_factory.mktemp("online")
    argv = f"collect --env {CAR} --kind random --steps 400 --max_episode_steps 40 --output"
    assert main([*argv.split(), str(folder / "car.hdf5")]) == 0
    actions = np.random.default_rng(0).uniform(-0.9, 0.1, (400, 1)).astype(np.float32)
    ends = np.arange(400) % 20 == 19
    columns = {
        "observations": np.ones((400, 1), np.float32),
        "actions": actions,
        "rewards": 1.0 - np.abs(actions[:, 0] - BEST),
        "terminals": ends,
    }
    facts = {"env_id": "test/Bandit-v0", "action_low": [-1.0], "action_high": [1.0]}
    write_hdf5(folder / "bandit.hdf5", columns, facts)
    return folder


@pytest.fixture(autouse=True)
def empty_figures(monkeypatch):
    """Drawing takes longer than such runs; figures have tests of their own."""
    from matplotlib.figure import Figure

    from lit_offrl import figures
    from lit_offrl.callbacks import record

    save = figures.save_figure
    for module in (figures, record):
        empty = Figure(figsize=(1, 1))
        monkeypatch.setattr(module, "save_figure", lambda figure, path: save(empty, path))


@pytest.fixture
def fitted(data, folder):
    """Fit a module, to ``fit/last.ckpt``; returns the exit code."""

    def go(module="IQLModule", options=TINY, dataset="car.hdf5", steps=10):
        words = f"fit --model {module} {options} --data D4RLDataModule --data.init_args.dataset"
        words = [*words.split(), str(data / dataset), "--data.init_args.batch_size", "16"]
        words += f"--trainer.max_steps {steps} --checkpoint.dirpath fit {QUIET}".split()
        return main([*words, "--evaluation.episodes", "0"])

    return go


@pytest.fixture
def online(folder):
    """Go on from ``fit/last.ckpt``; returns the exit code."""

    def go(output="own", more="", steps=30):
        words = f"online --from fit/last.ckpt --output {output} --steps {steps} --episodes 2"
        words += f" --max_episode_steps 12 --seed 3 --checkpoint.every_n_train_steps 7 {QUIET}"
        return main([*words.split(), *more.split()])

    return go


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def scores(output):
    return json.loads(Path(output, "online.json").read_text())["scores"]


MORE = (
    "--evaluate_every 10 --initial_steps 6 --initial_actions random --hold 3 --offline_ratio 0.25"
)
MORE += " --updates_per_step 2 --trainer.val_check_interval 13"


class Killed(BaseException):
    """What nothing answers, as SIGKILL."""


@pytest.mark.parametrize(
    ("module", "options", "kills"),
    [
        ("IQLModule", f"{TINY} --model.init_args.dropout 0.1", ("torn",)),
        pytest.param(
            "IDQLModule",
            f"{STOCHASTIC} --model.init_args.chunk 3",
            ("asked", "dying", "torn"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_that_was_killed_ends_as_the_unbroken_one(
    fitted, online, module, options, kills, same_state, monkeypatch, capsys
):
    assert fitted(module, options) == 0
    assert online("whole", MORE) == 0
    assert [one["environment_steps"] for one in scores("whole")] == [0, 10, 20, 30]
    assert [one["training_steps"] for one in scores("whole")] == [10, 18, 38, 58]
    dataset = read_hdf5("whole/replay.hdf5")
    assert len(dataset) == 30 and dataset.episode_lengths.tolist() == [12, 12, 6]
    assert not dataset.columns["terminals"].any()
    assert main(["datasets", "check", "whole/replay.hdf5"]) == 0
    assert main(["datasets", "info", "whole/replay.hdf5"]) == 0

    step, own_step, write = OfflineModule.training_step, OwnSteps._step, WholeFileIO.save_checkpoint

    def asked(self, *args):  # before an optimiser step within a call
        if self.trainer.global_step == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    def dying(self, *args):
        if self.replay.length == 17:
            raise Killed
        return own_step(self, *args)

    def torn(self, checkpoint, *args, **kwargs):  # the rows are written, the checkpoint is not
        if checkpoint["global_step"] >= 42:
            raise Killed
        return write(self, checkpoint, *args, **kwargs)

    faults = {
        "asked": (OfflineModule, "training_step", asked),
        "dying": (OwnSteps, "_step", dying),
        "torn": (WholeFileIO, "save_checkpoint", torn),
    }
    for kill in kills:
        with monkeypatch.context() as patch:
            patch.setattr(*faults[kill])
            if kill == "asked":
                assert online("cut/whole", MORE) == 143
                assert "the same command goes on" in capsys.readouterr().err
            else:
                with pytest.raises(Killed):
                    online("cut/whole", MORE)
    with monkeypatch.context() as patch:  # after the fit, before the last score
        patch.setattr("lit_offrl.commands.online_from.OnlineFrom._end", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            online("cut/whole", MORE)
    assert online("cut/whole", MORE) == 0
    same_state(Path("whole/last.ckpt"), Path("cut/whole/last.ckpt"))
    for name in ("replay.hdf5", "curve.csv", "online.json", "replay.rows"):
        assert sha256(f"whole/{name}") == sha256(f"cut/whole/{name}"), name
    lines = [sorted(Path(f, "curves.csv").read_text().split()) for f in ("whole", "cut/whole")]
    assert lines[0] == lines[1]

    stamp = Path("whole/last.ckpt").stat().st_mtime_ns
    assert online("whole", MORE) == 0
    assert Path("whole/last.ckpt").stat().st_mtime_ns == stamp
    capsys.readouterr()
    assert online("whole", f"{MORE} --noise 0.3") == 2
    assert "whole was begun with --noise 0.1, not 0.3" in capsys.readouterr().err


def test_it_begins_with_the_checkpoint_and_goes_on_by_its_steps(
    fitted, online, monkeypatch, capsys
):
    assert fitted(options=f"{TINY} --model.init_args.normalize true") == 0
    before = torch.load("fit/last.ckpt", weights_only=True)
    seen = {}
    start = OwnSteps.on_train_start

    def look(self, trainer, module):
        seen["weights"] = {name: part.clone() for name, part in module.state_dict().items()}
        seen["moments"] = trainer.optimizers[0].state_dict()["state"][0]["exp_avg"].clone()
        start(self, trainer, module)

    monkeypatch.setattr(OwnSteps, "on_train_start", look)
    assert online(steps=8, more="--initial_steps 4") == 0
    assert seen["weights"].keys() == before["state_dict"].keys()
    assert all(torch.equal(part, seen["weights"][n]) for n, part in before["state_dict"].items())
    assert torch.equal(seen["moments"], before["optimizer_states"][0]["state"][0]["exp_avg"])

    options = {"episodes": 2, "seed": 0, "max_episode_steps": 12}
    scored = EvaluationRecord.load("own/evaluation-step-10.json")
    alone = evaluate_module(load_module("fit/last.ckpt"), **options)
    assert scored.returns == alone.returns and scored.training_steps == 10
    after = torch.load("own/last.ckpt", weights_only=True)
    assert after["global_step"] == 14
    assert EvaluationRecord.load("own/evaluation.json").training_steps == 14
    for name, part in before["state_dict"].items():
        moved = not torch.equal(part, after["state_dict"][name])
        assert moved != name.startswith(("normalizer", "actor.centre", "actor.scale")), name

    # a larger number of steps goes on, and ends where a run of that many would have
    assert online(steps=12, more="--initial_steps 4") == 0
    assert online("at-once", steps=12, more="--initial_steps 4") == 0
    one, other = (torch.load(f"{f}/last.ckpt", weights_only=True) for f in ("own", "at-once"))
    assert all(torch.equal(part, other["state_dict"][n]) for n, part in one["state_dict"].items())
    assert [each["environment_steps"] for each in scores("own")] == [0, 8, 12]
    assert online(steps=10, more="--initial_steps 4") == 2
    assert "own has 12 own steps already, and steps is 10" in capsys.readouterr().err


def test_recap_goes_on_in_rounds_of_whole_episodes(fitted, online, monkeypatch, same_state, capsys):
    """Two rounds of two episodes: what they earn is told to the policy, and a kill undoes none."""
    recap = f"{STOCHASTIC} --model.init_args.values returns --model.init_args.condition positive"
    recap += " --model.init_args.positive_share 0.4 --model.init_args.failure_reward -50"
    recap += " --model.init_args.chunk 3"
    assert fitted("ACDModule", recap) == 0
    rounds = "--steps_at_once 24 --updates_per_step 0.25 --evaluate_every 24"
    assert online("whole", rounds, steps=48) == 0
    assert [one["environment_steps"] for one in scores("whole")] == [0, 24, 48]
    assert torch.load("whole/last.ckpt", weights_only=True)["global_step"] == 22
    before, after = (load_module(f"{run}/last.ckpt") for run in ("fit", "whole"))
    assert torch.equal(after.critics.ends, before.critics.ends)  # of the same bins
    moved = zip(before.critics.v.parameters(), after.critics.v.parameters(), strict=True)
    assert not any(torch.equal(one, other) for one, other in moved)

    step = OfflineModule.training_step

    def dying(self, batch, number):
        # own episodes ran out of time after 12 steps, of about 0 each
        own = batch.returns[8:]
        assert len(own) == 8 and own.min() > -52 and own.max() < -50 * 0.99**12
        if self.trainer.global_step == 18:
            raise Killed
        return step(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(OfflineModule, "training_step", dying)
        with pytest.raises(Killed):
            online("cut/whole", rounds, steps=48)
    assert online("cut/whole", rounds, steps=48) == 0
    same_state(Path("whole/last.ckpt"), Path("cut/whole/last.ckpt"))
    capsys.readouterr()
    assert online("other", "--initial_steps 4", steps=20) == 2
    line = capsys.readouterr().err
    assert "5 own steps are too few for the view" in line and "raise initial_steps" in line


def test_own_steps_find_the_action_that_the_data_miss(fitted, online):
    options = "--model.init_args.hidden [32] --model.init_args.learning_rate 0.01"
    options += " --model.init_args.gamma 0.5"
    assert fitted(options=options, dataset="bandit.hdf5", steps=60) == 0
    more = "--noise 0.8 --offline_ratio 0 --evaluate_every 100 --data.init_args.batch_size 64"
    assert online(more=f"{more} --checkpoint.every_n_train_steps 1000", steps=200) == 0
    best = [one["return_mean"] / one["length_mean"] for one in scores("own")]
    assert best[0] < 0.61  # 0.1 is the nearest action that the data have
    assert best[-1] > 0.9
    replay = read_hdf5("own/replay.hdf5")
    ends = [np.flatnonzero(replay.columns[name]).tolist() for name in ("terminals", "timeouts")]
    assert ends == [[], [*range(11, 200, 12), 199]]
    actions, rewards = replay.columns["actions"][:, 0], replay.columns["rewards"]
    np.testing.assert_allclose(rewards, 1 - np.abs(actions - BEST), atol=1e-6)


def test_an_environment_that_does_not_repeat_itself_is_said(fitted, online, monkeypatch, capsys):
    assert fitted(dataset="bandit.hdf5") == 0
    monkeypatch.setattr(Bandit, "moved", True)
    own_step = OwnSteps._step

    def dying(self, *args):
        if self.replay.length == 9:
            raise Killed
        return own_step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(OwnSteps, "_step", dying)
        with pytest.raises(Killed):
            online(steps=20)
    assert online(steps=20) == 0
    assert "test/Bandit-v0 does not repeat an episode's steps" in capsys.readouterr().out
    timeouts = read_hdf5("own/replay.hdf5").columns["timeouts"]
    assert np.flatnonzero(timeouts).tolist() == [4, 16, 19]  # 12 steps later, and at the end


def test_a_rate_that_had_decayed_is_constant_unless_it_is_asked_for(fitted, online, capsys):
    assert fitted(options=f"{TINY} --model.init_args.decay cosine") == 0
    rates = []
    rate_of = IQLModule.learning_rate_of

    def noting(self, network, step):
        rates.append(rate_of(self, network, step))
        return rates[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IQLModule, "learning_rate_of", noting)
        assert online(steps=3) == 0
        assert set(rates) == {3e-4} and "decay is constant" in capsys.readouterr().out
        assert online("other", "--model.init_args.decay cosine", steps=3) == 0
        assert min(rates) < 1e-4 and "decay is constant" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--rounds 3", "--rounds goes without --from"),
        ("--initial_steps 30", "initial_steps is 30 of 30 steps"),
        ("--updates_per_step 0.3", "updates_per_step 0.3 makes 0.3 updates after 1 own steps"),
        ("--steps_at_once 7", "steps is 30 and steps_at_once 7: give a multiple"),
        ("--steps_at_once 5 --evaluate_every 6", "evaluate_every is 6 and steps_at_once 5"),
        ("--offline_ratio 1.5", "offline_ratio is 1.5: give a number in [0, 1]"),
        ("--trainer.max_steps 9", "--trainer.max_steps is not for online: it follows from"),
        ("--ckpt_path x.ckpt", "--ckpt_path is not for online: give --from"),
        ("--max_episode_steps 0", "argument --max_episode_steps: invalid positive integer"),
    ],
)
def test_what_cannot_be_is_one_line(online, capsys, more, said):
    assert online(more=more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1 and said in lines[0]
    assert not Path("own/last.ckpt").exists()


@pytest.mark.parametrize(
    ("module", "options", "said"),
    [
        ("BCModule", TINY, "BCModule cannot go on online: it learns nothing from rewards"),
        (
            "DecisionTransformerModule",
            "--model.init_args.width 8 --model.init_args.blocks 1 --model.init_args.context 2",
            "DecisionTransformerModule cannot go on online: it trains on Contexts",
        ),
    ],
)
def test_a_module_that_cannot_is_refused_in_a_line(fitted, online, capsys, module, options, said):
    assert fitted(module, options, steps=1) == 0
    assert online() == 2
    assert said in capsys.readouterr().err


def test_a_checkpoint_without_its_rows_or_another_folder_is_said(fitted, online, capsys):
    assert main("online --from no.ckpt --output own".split()) == 2
    assert "no.ckpt: no such checkpoint" in capsys.readouterr().err
    assert main("online --steps 5 --env X --output own".split()) == 2
    assert "--steps goes only with --from" in capsys.readouterr().err
    assert fitted() == 0
    assert online("fit") == 2
    assert "fit/online.json: is not of a run of own steps" in capsys.readouterr().err
    assert online(steps=8) == 0
    Path("own/replay.rows").write_bytes(b"")
    assert online(steps=10) == 2
    assert "own/replay.rows: has fewer rows than 8" in capsys.readouterr().err
