"""Action bounds that no file states: never ±1 in silence, and what the user gives goes first."""

import sys

import gymnasium
import numpy as np
import pytest
import torch
import yaml

from lit_offrl.__main__ import main
from lit_offrl.commands.datasets import main as datasets
from lit_offrl.common.errors import ConfigError
from lit_offrl.datamodules import D4RLDataModule, PyBulletDataModule
from lit_offrl.datasets.hdf5 import write_hdf5
from lit_offrl.modules import load_module
from lit_offrl.modules.base import CHECKPOINT_KEY

ROWS = 2000


@pytest.fixture(scope="module")
def torque(tmp_path_factory):
    """A motor's log: torques in (−2, 2) N m by a rule of the first of three observations."""
    observations = np.random.default_rng(0).uniform(-1, 1, (ROWS, 3)).astype(np.float32)
    actions = (2 * np.tanh(3 * observations[:, :1])).astype(np.float32)
    columns = {
        "observations": observations,
        "actions": actions,
        "rewards": -(actions[:, 0] ** 2),
        "timeouts": np.arange(ROWS) % 200 == 199,
    }
    return write_hdf5(tmp_path_factory.mktemp("torque") / "torque.hdf5", columns)


@pytest.fixture
def file(tmp_path):
    """Build a data module of a file with given actions, attributes and options."""

    def build(actions, attributes=None, width=3, **options):
        rows = len(actions)
        random = np.random.default_rng(0)
        columns = {
            "observations": random.normal(size=(rows, width)),
            "actions": actions,
            "rewards": random.normal(size=rows),
            "timeouts": np.arange(rows) % 50 == 49,
        }
        path = write_hdf5(tmp_path / "x.hdf5", columns, attributes)
        return PyBulletDataModule(str(path), **options)

    return build


SPREAD = np.linspace(-1.5, 1.25, 200, dtype=np.float32)[:, None]
BOTH = np.concatenate([SPREAD, np.full_like(SPREAD, 0.5)], axis=1)


def bounds(data):
    return data.spec.action_low, data.spec.action_high


def test_unknown_bounds_are_the_datas_range_and_said(file, capsys):
    data = file(BOTH)
    assert bounds(data) == ((-1.5, pytest.approx(0.499)), (1.25, pytest.approx(0.501)))
    data.setup("fit")
    assert capsys.readouterr().out == (
        "lit-offrl: x: action bounds are unknown: policies act within the range of the data's "
        "actions, -1.5 to 1.25, 0.499 to 0.501 (dimension 1 is always 0.5): if the robot's bounds "
        "are others, give data.init_args.action_low and action_high\n"
    )
    assert data.dataset.spec == data.spec
    with torch.no_grad():  # narrow as it is, a policy can be built on it
        from lit_offrl.modules import BCModule

        acted = BCModule(3, 2, *bounds(data), hidden=[8]).policy().act(np.ones((4, 3), np.float32))
    assert (np.abs(acted[:, 1] - 0.5) < 0.0011).all()


@pytest.mark.parametrize(
    ("attributes", "options", "expected", "said"),
    [
        ({"env_id": "Pendulum-v1"}, {}, (-2, 2), ""),
        ({}, {"env_id": "Pendulum-v1"}, (-2, 2), ""),
        ({"action_low": -5.0}, {}, (-5, 1.25), "upper action bounds are unknown: "),
        ({}, {"action_high": 3}, (-1.5, 3), "lower action bounds are unknown: "),
        ({"action_low": -2.0, "action_high": 2.0}, {"action_low": [-3.0]}, (-3, 2), ""),
        ({"env_id": "Pendulum-v1"}, {"action_low": -9.0, "action_high": 9.0}, (-9, 9), ""),
        ({"env_id": "CartPole-v1"}, {}, (-1.5, 1.25), "(CartPole-v1 has the action space Disc"),
        ({"env_id": "None-v0"}, {}, (-1.5, 1.25), "(None-v0 is not installed or not imported)"),
        ({}, {"action_low": -1, "action_high": 1}, (-1, 1), "leaves its bounds in 56 rows, first"),
    ],
)
def test_what_is_given_goes_before_the_file_the_environment_and_the_data(
    file, capsys, attributes, options, expected, said
):
    data = file(SPREAD, attributes, **options)
    assert bounds(data) == ((expected[0],), (expected[1],))
    data.setup("fit")
    printed = capsys.readouterr().out
    assert said in printed and bool(said) == bool(printed)


@pytest.mark.parametrize("most", [np.inf, np.finfo(np.float32).max])
def test_an_environment_that_is_half_unbounded_gives_what_it_has(file, capsys, most):
    class Half(gymnasium.Env):
        action_space = gymnasium.spaces.Box(np.float32([-7, -most]), np.float32([7, most]))

    gymnasium.register("HalfBounded-v0", lambda: Half())
    try:
        data = file(BOTH * [1, 2], {"env_id": "HalfBounded-v0"})
    finally:
        del gymnasium.registry["HalfBounded-v0"]
    assert bounds(data) == ((-7, pytest.approx(0.999)), (7, pytest.approx(1.001)))
    data.setup("fit")
    assert "action bounds of dimension 1 are unknown (HalfBounded-v0 has none)" in (
        capsys.readouterr().out
    )


def test_a_module_that_only_a_file_names_is_not_imported(file, tmp_path, monkeypatch):
    (tmp_path / "canary_bounds.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert bounds(file(SPREAD, {"env_id": "canary_bounds:Reach-v0"})) == ((-1.5,), (1.25,))
    assert "canary_bounds" not in sys.modules


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"action_low": [-2.0]}, r"action_low is \[-2.0\], but .*x.hdf5 has 2 action dimensions"),
        ({"action_high": float("nan")}, "action_high is nan: give finite numbers"),
        ({"action_high": [1.0, float("inf")]}, "action_high is .* give finite numbers"),
        ({"action_low": 2, "action_high": -2}, "action_low is 2 and action_high -2 in dimension 0"),
        ({"action_high": -1}, "in dimension 1, one of which is the data's"),
    ],
)
def test_bounds_that_are_none_are_refused(file, options, expected):
    with pytest.raises(ConfigError, match=expected):
        file(BOTH, **options)


def test_unbounded_data_of_the_cache_and_check(torque, tmp_path, capsys):
    said = "the range of the data's actions, -1.99"
    for _ in range(2):
        data = D4RLDataModule(str(torque), cache_dir=str(tmp_path / "cache"))
        data.setup("fit")
        assert said in capsys.readouterr().out
    assert datasets(["check", str(torque)]) == 0
    printed = capsys.readouterr().out
    assert "warning: action bounds are unknown" in printed and said in printed
    assert "action bounds" in printed and "1 warning" in printed


@pytest.fixture
def fit(torque, command, capsys):
    """Fit BC on the motor's log; returns the exit code and what was printed."""

    def run(*options, folder="run", steps=5):
        words = command("--data.init_args.dataset", str(torque), *options)
        words += ["--checkpoint.dirpath", folder] if folder else []
        code = main([*words, "--trainer.max_steps", str(steps)])
        return code, "".join(capsys.readouterr())

    return run


def reach(path):
    """The largest actions that a policy gives for the log's kind of observations."""
    observations = np.random.default_rng(1).uniform(-1, 1, (500, 3)).astype(np.float32)
    return np.abs(load_module(path).policy().act(observations)).max()


def test_a_policy_reaches_what_the_data_reach(fit):
    rate = ("--model.init_args.learning_rate", "0.02", "--data.init_args.validation_fraction", "0")
    code, said = fit(*rate, steps=300)
    assert code == 0 and "policies act within the range of the data's actions, -1.99" in said
    assert reach("run/last.ckpt") >= 1.9  # and 1 before


def test_bounds_of_the_command_line_win_and_stay(fit):
    given = ("--model.init_args.action_low", "[-4]", "--model.init_args.action_high", "[4]")
    code, said = fit(*given)
    assert code == 0 and "unknown" not in said
    module = load_module("run/last.ckpt")
    assert module.spec.action_high == (4.0,) and module.actor.scale.tolist() == [4]
    code, said = fit("--ckpt_path", "run/last.ckpt", folder=None, steps=7)
    assert code == 0 and "acts within" not in said
    assert load_module("run/last.ckpt").actor.scale.tolist() == [4]
    other = ("--data.init_args.action_low", "-3", "--data.init_args.action_high", "3")
    code, said = fit("--ckpt_path", "run/last.ckpt", *other, folder=None, steps=9)
    assert code == 2 and "its policy acts within -4 to 4, which action_low and" in said
    code, said = fit(*given, "--data.init_args.action_low", "-3", folder="other")
    assert code == 2 and "give data.init_args.action_low alone" in said
    code, said = fit("--data.init_args.action_low", "[-3,-3]", folder="other")
    assert code == 2 and "action_low is [-3.0, -3.0], but" in said


def test_a_run_that_began_without_bounds_goes_on_within_one(fit):
    assert fit("--data.init_args.action_low", "-1", "--data.init_args.action_high", "1")[0] == 0
    old = torch.load("run/last.ckpt", weights_only=True)
    ours = old[CHECKPOINT_KEY]
    for name in ("action_low", "action_high"):
        ours["spec"][name] = old["hyper_parameters"][name] = None
    ours["spec"].pop("notices")
    config = yaml.safe_load(ours["config"])
    for name in ("action_low", "action_high", "format"):
        del config["data"]["init_args"][name]
    ours["config"] = yaml.safe_dump(config)
    torch.save(old, "run/last.ckpt")
    assert reach("run/last.ckpt") <= 1
    code, said = fit("--ckpt_path", "run/last.ckpt", folder=None, steps=7)
    assert code == 0
    assert "policy acts within -1 to 1, as the data's were unknown to its run, and goes on" in said
    module = load_module("run/last.ckpt")
    assert module.spec.action_low is None and module.actor.scale.tolist() == [1]
