"""ACD on labels of frozen critics, and AWR on returns, through the command line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_offrl.datasets.hdf5 import read_hdf5, write_hdf5
from lit_offrl.datasets.labels import load_labels
from lit_offrl.modules import load_module
from tests.helpers import unchecked

SMALL = ("--model.init_args.hidden", "[8]", "--model.init_args.width", "16")
SMALL += ("--model.init_args.blocks", "1", "--model.init_args.num_samples", "2")


@pytest.fixture
def data(folder, d4rl_file):
    """A copy of the small dataset, so that its labels lie in the test's folder."""
    return shutil.copy(d4rl_file, folder / "own.hdf5")


@pytest.fixture
def critic(lit, data):
    """A checkpoint with critics."""
    options = ("--data.init_args.dataset", str(data), "--model.init_args.hidden", "[8]")
    assert lit(*options, "--checkpoint.dirpath", "critic", module="IQLModule") == 0
    return Path("critic/last.ckpt")


def precomputed(lit, data, critic, name):
    labels = ("--model.init_args.labels", "precomputed", "--model.init_args.critic", str(critic))
    options = ("--data.init_args.dataset", str(data), "--checkpoint.dirpath", name)
    return lit(*SMALL, *labels, *options, module="ACDModule")


def test_frozen_critics_label_all_rows_once(lit, data, critic):
    assert precomputed(lit, data, critic, "acd") == 0
    (file,) = Path().glob("own.hdf5.*.npz")
    dataset = read_hdf5(data)
    frozen = load_module(critic)
    expected = frozen.advantages(
        torch.from_numpy(np.array(dataset.column("observations"))),
        torch.from_numpy(np.array(dataset.column("actions"))),
    )
    np.testing.assert_allclose(load_labels(file, dataset), expected, rtol=1e-5, atol=1e-6)

    trained = load_module("acd/last.ckpt")
    for name, value in frozen.critics.state_dict().items():
        assert torch.equal(trained.critics.state_dict()[name], value), name
    stamp = file.stat().st_mtime_ns
    assert precomputed(lit, data, critic, "again") == 0
    assert file.stat().st_mtime_ns == stamp
    one, other = (torch.load(f"{n}/last.ckpt", weights_only=True) for n in ("acd", "again"))
    for name, value in one["state_dict"].items():
        assert torch.equal(other["state_dict"][name], value), name


def test_a_run_goes_on_without_the_checkpoint_that_its_critics_came_from(lit, data, critic):
    assert precomputed(lit, data, critic, "acd") == 0
    critic.unlink()
    for file in Path().glob("own.hdf5.*.npz"):
        file.unlink()
    options = ("--data.init_args.dataset", str(data), "--checkpoint.dirpath", "acd", *SMALL)
    options += ("--trainer.max_steps", "8", "--ckpt_path", "acd/last.ckpt")
    assert lit(*options, module="ACDModule") == 0
    assert len(list(Path().glob("own.hdf5.*.npz"))) == 1


def test_labels_by_a_view_of_ones_own_come_with_their_critics_or_not_at_all(
    lit, data, critic, capsys
):
    assert precomputed(lit, data, critic, "acd") == 0
    (file,) = Path().glob("own.hdf5.*.npz")
    view = ("--data.init_args.view", "AdvantageLabelled", "--data.init_args.view.labels", str(file))
    labels = ("--model.init_args.labels", "precomputed", "--model.init_args.critic")
    options = ("--data.init_args.dataset", str(data), *view, *SMALL, *labels)
    assert lit(*options, str(critic), "--checkpoint.dirpath", "viewed", module="ACDModule") == 0
    one, other = (load_module(f"{n}/last.ckpt").state_dict() for n in ("acd", "viewed"))
    for name, value in one.items():
        assert torch.equal(other[name], value), name

    another = ("--data.init_args.dataset", str(data), "--model.init_args.hidden", "[8]")
    another += ("--seed_everything", "5", "--checkpoint.dirpath", "another")
    assert lit(*another, module="IQLModule") == 0
    capsys.readouterr()
    assert lit(*options, "another/last.ckpt", module="ACDModule") == 2
    line = capsys.readouterr().err
    assert "labels of another critic" in line and line.count("\n") == 1


def test_a_checkpoint_without_critics_is_refused(lit, data, capsys):
    options = ("--data.init_args.dataset", str(data), "--checkpoint.dirpath", "bc")
    assert lit(*options) == 0
    capsys.readouterr()
    assert precomputed(lit, data, "bc/last.ckpt", "acd") == 2
    line = capsys.readouterr().err
    assert "has no critics of IQL" in line and line.count("\n") == 1


def test_without_bootstrapping_awr_validates_and_its_advantages_are_by_returns(lit, data):
    options = ("--data.init_args.dataset", str(data), "--model.init_args.hidden", "[8]")
    options += ("--model.init_args.bootstrap", "false", "--trainer.val_check_interval", "3")
    assert lit(*options, "--checkpoint.dirpath", "awr", module="AWRModule") == 0
    module = load_module("awr/last.ckpt")
    bound = module.view().bind(read_hdf5(data))
    batch = bound.batch(bound.rows[:5])
    expected = batch.returns - module.critics.v(batch.observations)[:, 0].detach()
    torch.testing.assert_close(module.batch_advantages(batch), expected)


def test_critics_that_were_never_trained_label_nothing(lit, data, capsys):
    options = ("--data.init_args.dataset", str(data), "--model.init_args.hidden", "[8]")
    options += ("--model.init_args.bootstrap", "false", "--checkpoint.dirpath", "awr")
    assert lit(*options, module="AWRModule") == 0
    capsys.readouterr()
    assert precomputed(lit, data, "awr/last.ckpt", "acd") == 2
    line = capsys.readouterr().err
    assert "bootstrap false" in line and line.count("\n") == 1


def best_actions(states):
    return 0.5 * states[:, :1] - 1.5


@pytest.fixture
def worth_knowing(folder):
    """Steps whose actions are even in ±2 and pay for being near the best one."""
    random = np.random.default_rng(0)
    states = random.uniform(0.0, 6.0, (4000, 3)).astype(np.float32)
    actions = random.uniform(-2.0, 2.0, (4000, 1)).astype(np.float32)
    columns = {"observations": states, "actions": actions, "terminals": np.arange(4000) % 20 == 19}
    columns["rewards"] = -np.abs(actions - best_actions(states))[:, 0]
    bounds = {"action_low": np.array([-2.0], "f4"), "action_high": np.array([2.0], "f4")}
    write_hdf5(folder / "known.hdf5", columns, {"env_id": "Pendulum-v1", **bounds})
    return str(folder / "known.hdf5")


@pytest.mark.parametrize(("method", "normalize"), [("IDQLModule", "false"), ("ACDModule", "true")])
@unchecked()
def test_the_more_candidates_the_nearer_to_the_best_action(lit, worth_knowing, method, normalize):
    """From the file to what acts: scales of states, units of actions, which critics, which axis."""
    options = "--trainer.max_steps 300 --data.init_args.batch_size 128 --checkpoint.dirpath run"
    nets = "gamma 0 hidden [64,64] width 32 blocks 1 learning_rate 3e-3 tau 0.05"
    nets += f" actor_ema_rate 0.02 normalize {normalize}"
    words = iter(nets.split())
    given = [word for name in words for word in (f"--model.init_args.{name}", next(words))]
    given += ["--data.init_args.dataset", worth_knowing, *options.split()]
    assert lit(*given, module=method) == 0
    module = load_module("run/last.ckpt")
    states = np.random.default_rng(1).uniform(0.0, 6.0, (400, 3)).astype(np.float32)

    def error(number):
        torch.manual_seed(0)
        mode = {"act_mode": "acd_f", "omega": 0.0} if method == "ACDModule" else {}
        acted = module.policy(num_samples=number, **mode).act(states)
        return np.abs(acted - best_actions(states)).mean()

    assert 8 * error(64) < error(1)
    assert error(16) < error(4) < error(1)
