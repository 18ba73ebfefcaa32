"""Roll-outs during a fit."""

import h5py
import numpy as np
import pytest
import torch

from lit_offrl.callbacks.yardsticks import clone_behaviour
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.evaluation.record import EvaluationRecord


def test_evaluates_on_the_way_and_at_the_end_without_touching_training(lit, capsys, same_state):
    often = ("--evaluation.episodes", "2", "--evaluation.every_n_steps", "2")
    assert lit(*often, "--checkpoint.dirpath", "seen") == 0
    shown = capsys.readouterr().out
    assert shown.count("BCModule in Pendulum-v1, 2 episodes, seed 0") == 1
    assert lit("--checkpoint.dirpath", "unseen") == 0

    seen, unseen = (torch.load(f"{d}/last.ckpt", weights_only=True) for d in ("seen", "unseen"))
    for name, value in unseen["state_dict"].items():
        assert torch.equal(seen["state_dict"][name], value)
    history = seen["callbacks"]["Curves"]["history"]["eval/return_mean"]
    assert [step for step, _ in history] == [2, 4]  # that of step 6 comes after the checkpoint

    record = EvaluationRecord.load("seen/evaluation.json")
    assert record.episodes == (0, 1) and record.checkpoint_rule == "last"
    assert record.checkpoint.endswith("seen/last.ckpt") and len(record.checkpoint_sha256) == 64
    earlier = EvaluationRecord.load("seen/evaluation-step-4.json")
    assert earlier.checkpoint is None and earlier.seeds == record.seeds


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"module": "DVFModule"}, "no evaluation: This DVFModule was pre-trained on states alone"),
        ({}, "no evaluation: the dataset does not name its environment"),
    ],
)
def test_says_why_nothing_is_rolled_out(lit, d4rl_file, capsys, options, said, monkeypatch):
    words = ["--evaluation.episodes", "1"]
    if options:
        small = "width 16 blocks 1 latents 4 history 1 diffusion_steps 4 sampling_steps 1".split()
        for name, value in zip(small[::2], small[1::2], strict=True):
            words += [f"--model.init_args.{name}", value]
        words += ["--model.init_args.train", "occupancy"]
    else:
        with h5py.File(d4rl_file) as old, h5py.File("anonymous.hdf5", "w") as new:
            for column in old:
                old.copy(column, new)
        words += ["--data.init_args.dataset", "anonymous.hdf5"]
    assert lit(*words, **options) == 0
    assert said in capsys.readouterr().out


def test_a_policy_without_a_goal_is_not_rolled_out(lit, capsys):
    small = ("horizon", "2"), ("latent_dim", "2"), ("width", "8"), ("gru_layers", "1")
    words = [word for name, value in small for word in (f"--model.init_args.{name}", value)]
    assert lit(*words, "--checkpoint.dirpath", "stage1", module="LDCQStage1Module") == 0
    words = ["--model.init_args.stage1", "stage1/last.ckpt", "--model.init_args.width", "8"]
    words += ["--model.init_args.goals", "hindsight", "--evaluation.episodes", "1"]
    assert lit(*words, module="LDCQStage2Module") == 0  # what is trained is trained
    said = "no evaluation: the policy needs a goal, and Pendulum-v1 gives none"
    assert said in capsys.readouterr().out


def test_an_environment_that_cannot_be_made_is_found_before_training(lit, capsys):
    assert lit("--evaluation.episodes", "1", "--data.init_args.env_id", "Pendulun-v1") == 2
    errors = capsys.readouterr().err
    assert "'Pendulun-v1'" in errors and "--evaluation.episodes 0" in errors


def test_the_policy_is_shown_beside_the_data_and_behaviour_cloning(lit, d4rl_file, capsys):
    """The file's episodes: 20, whose mean return is that of the rewards by episode."""
    with h5py.File(d4rl_file) as file:
        mean = file["rewards"][:].reshape(20, 30).sum(1).mean()
    words = ("--evaluation.episodes", "2", "--evaluation.bc_steps", "3")
    assert lit(*words, "--checkpoint.dirpath", "run") == 0
    shown = [" ".join(line.split("│")) for line in capsys.readouterr().out.splitlines()]
    cells = {name: line.split()[-2:] for line in shown for name in _ROWS if name in line}
    returns = [f"{EvaluationRecord.load(f'run/{name}').summary()['return_mean']:.1f}"
               for name in ("evaluation.json", "behaviour-cloning.json")]  # fmt: skip
    assert cells == dict(
        zip(_ROWS, [["2", returns[0]], ["2", returns[1]], ["20", f"{mean:.1f}"]], strict=True)
    )
    assert lit("--evaluation.episodes", "2", "--checkpoint.dirpath", "alone") == 0
    alone, run = (torch.load(f"{d}/last.ckpt", weights_only=True) for d in ("alone", "run"))
    for name, value in alone["state_dict"].items():
        assert torch.equal(run["state_dict"][name], value)
    assert "BCModule, 3 steps" not in capsys.readouterr().out


_ROWS = ("BCModule, 6 steps", "BCModule, 3 steps", "the data (pendulum)")


def test_without_an_environment_the_data_are_shown_all_the_same(lit, d4rl_file, capsys):
    with h5py.File(d4rl_file) as old, h5py.File("anonymous.hdf5", "w") as new:
        for column in old:
            old.copy(column, new)
    assert lit("--evaluation.episodes", "1", "--data.init_args.dataset", "anonymous.hdf5") == 0
    assert "the data (anonymous)" in capsys.readouterr().out


def test_cloning_learns_what_the_data_do_and_draws_nothing_from_global_generators():
    """Actions are 0.8 · sin of the one observation: after 300 steps it acts so."""
    angle = np.linspace(-3, 3, 512, dtype=np.float32)[:, None]
    ends = np.arange(512) % 64 == 63
    columns = {
        "observations": angle,
        "actions": 0.8 * np.sin(angle),
        "terminals": ends,
        "timeouts": ~ends & ends,
    }
    dataset = OfflineDataset.from_columns(columns)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    clone = clone_behaviour(dataset, 300, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.abs(clone.policy().act(angle) - columns["actions"]).max() < 0.1
    again = clone_behaviour(dataset, 300, seed=1)
    np.testing.assert_array_equal(again.policy().act(angle), clone.policy().act(angle))
