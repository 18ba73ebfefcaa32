"""What every module shares: noise, checkpoints, what is refused when one is loaded."""

from __future__ import annotations

import os
import pickle
from typing import Literal, get_origin

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

import lit_offrl.modules
from lit_offrl import __version__
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.signatures import hints_of, parameters_of
from lit_offrl.modules import (
    AWRModule,
    BCModule,
    DVFModule,
    IQLModule,
    OfflineModule,
    load_module,
)
from lit_offrl.modules.base import CHECKPOINT_KEY
from lit_offrl.modules.checkpoints import module_class


class Trap:
    """Runs a command when unpickled."""

    def __init__(self, mark) -> None:
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


class Foreign(LightningModule):
    """Someone else's module."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def cloned(save):
    """Checkpoint of a small BCModule."""
    return save(BCModule(2, 1, (-1.0,), (1.0,), hidden=(4,)), 2)


def refused(path) -> str:
    """The one line that refuses a file."""
    with pytest.raises(ConfigError) as caught:
        load_module(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def changed(path, **entries):
    """Rewrite a checkpoint with other entries of this library's own."""
    checkpoint = torch.load(path, weights_only=True)
    checkpoint[CHECKPOINT_KEY] |= entries
    torch.save(checkpoint, path)
    return path


# ---- what is no checkpoint ---------------------------------------------------------------------


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "no such checkpoint" in refused(tmp_path / "missing.ckpt")
    assert "no such checkpoint" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint\nat all\n", b"PK\x03\x04 cut off"])
def test_files_of_another_kind_are_refused(tmp_path, content):
    path = tmp_path / "other.ckpt"
    path.write_bytes(content)
    assert "not a readable checkpoint" in refused(path)


@pytest.mark.parametrize("write", [torch.save, lambda what, path: path.write_bytes(what)])
def test_code_in_a_file_is_never_run(tmp_path, write):
    mark, path = tmp_path / "trapped", tmp_path / "trap.ckpt"
    trap = {CHECKPOINT_KEY: {"class_path": "x"}, "state_dict": Trap(mark)}
    write(trap if write is torch.save else pickle.dumps(trap), path)
    assert "not a readable checkpoint" in refused(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(trap))
    assert mark.exists()  # the trap works


def test_a_checkpoint_of_another_library_is_refused(tmp_path):
    path = tmp_path / "foreign.ckpt"
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_model_summary=False,
        **quiet,
    )
    trainer.fit(Foreign(), torch.utils.data.DataLoader(torch.ones(2, 1)))
    trainer.save_checkpoint(path)
    assert "not a checkpoint written by lit-offrl" in refused(path)
    torch.save([1, 2], path)
    assert "not a checkpoint written by lit-offrl" in refused(path)


@pytest.mark.parametrize(
    ("class_path", "said"),
    [
        ("torch.nn.Linear", "is no OfflineModule"),
        ("lit_offrl.modules.load_module", "is no OfflineModule"),
        ("lit_offrl.modules.Missing", "cannot be imported"),
        ("no_such_package.Module", "cannot be imported"),
        ("BCModule", "cannot be imported"),
    ],
)
def test_a_class_that_is_no_module_is_refused(cloned, class_path, said):
    with pytest.raises(ConfigError, match=f"{class_path} {said}"):
        load_module(changed(cloned, class_path=class_path))
    with pytest.raises(ConfigError, match=said):
        module_class(class_path)


def test_weights_that_do_not_fit_the_class_are_refused(cloned):
    name = f"{DVFModule.__module__}.{DVFModule.__qualname__}"
    assert "does not fit DVFModule" in refused(changed(cloned, class_path=name))


# ---- what is one -------------------------------------------------------------------------------


def test_a_trained_module_comes_back_as_it_was(tiny, save):
    rows = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    for module in (tiny(), BCModule(2, 1, (-1.0,), (1.0,), hidden=(4,))):
        path = save(module, 3)
        loaded = load_module(path)
        assert type(loaded) is type(module) and not loaded.training
        assert loaded.spec == module.spec is not None
        np.testing.assert_array_equal(loaded.policy().act(rows), module.policy().act(rows))
        kept, state = loaded.state_dict(), module.state_dict()
        assert kept.keys() == state.keys()
        assert all(torch.equal(kept[key], state[key]) for key in state)
        assert loaded.hparams == module.hparams
        note = torch.load(path, weights_only=True)[CHECKPOINT_KEY]
        assert note["version"] == __version__


def test_a_normaliser_takes_the_datas_range_once(save, fit, columns):
    module = BCModule(2, 1, hidden=(4,))
    fit(module, 1)
    observations = columns()["observations"]
    np.testing.assert_array_equal(module.normalizer.low, observations.min(0))
    np.testing.assert_array_equal(module.normalizer.high, observations.max(0))
    fit(module, 1, scale=3.0)
    np.testing.assert_array_equal(module.normalizer.high, observations.max(0))


# ---- noise and optimiser -----------------------------------------------------------------------


def test_noise_is_a_function_of_seed_and_step():
    def draw(seed: int, *key: int) -> list[float]:
        module = BCModule(2, 1, seed=seed)
        torch.manual_seed(len(key))  # nothing else counts
        module.seed_noise(*key)
        return module.noise.normal((5,)).tolist()

    first = draw(0, 7)
    module = BCModule(2, 1, seed=0)
    for step in (3, 7):
        module.seed_noise(step)
    assert module.noise.normal((5,)).tolist() == first == draw(0, 7)
    others = [draw(0, 8), draw(1, 7), draw(0, 7, 1)]  # another step, seed, stream
    assert len({tuple(numbers) for numbers in [first, *others]}) == 4


def test_lightning_hears_of_metrics_when_loggers_do_and_once_an_epoch(monkeypatch, lit):
    heard = []

    def log_dict(self, values, **options):
        heard.append((self.trainer.global_step + 1, "train/loss/actor" in values))

    monkeypatch.setattr(BCModule, "log_dict", log_dict)
    options = ("--trainer.max_steps", "14", "--trainer.log_every_n_steps", "4")
    assert lit(*options, "--data.init_args.validation_fraction", "0") == 0
    # 590 rows have a next state: an epoch is 9 steps
    assert heard == [(step, True) for step in (1, 4, 8, 10, 12, 14)]


def test_each_network_has_a_parameter_group(tiny):
    module = tiny(learning_rate=0.02)
    groups = module.configure_optimizers().param_groups
    assert [group["name"] for group in groups] == ["occupancy", "reward", "q", "actor"]
    assert {group["lr"] for group in groups} == {0.02}
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(p) for p in module.parameters() if p.requires_grad}


def test_each_network_is_clipped_by_itself(tiny):
    module = tiny()
    optimizer = module.configure_optimizers()
    small, large = (optimizer.param_groups[i]["params"] for i in (0, 2))
    for scale, parameters in ((0.01, small), (1e4, large)):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, scale)
    few = [p.grad.clone() for p in small]
    module.configure_gradient_clipping(optimizer, 1e3, "norm")
    assert all(torch.equal(p.grad, before) for p, before in zip(small, few, strict=True))
    assert torch.cat([p.grad.flatten() for p in large]).norm().item() == pytest.approx(1e3)
    module.configure_gradient_clipping(optimizer, 1e-3, "value")
    assert all(p.grad.abs().max() == pytest.approx(1e-3) for p in small + large)
    module.configure_gradient_clipping(optimizer, None)
    assert all(p.grad.abs().max() > 0 for p in small)


def test_what_a_method_must_give_is_said():
    module = OfflineModule(2)
    for call in (lambda: module.losses(None), module.parameter_groups, module.policy):
        with pytest.raises(NotImplementedError, match="OfflineModule must define"):
            call()
    assert module.figures() == {} and module.idle_parameters() == []
    with pytest.raises(ConfigError, match="observation_dim is 0"):
        OfflineModule(0)
    with pytest.raises(ConfigError, match=r"action_dim is 0\.001: give a whole number; learni"):
        OfflineModule(2, 1e-3, 0)


def test_options_forwarded_to_bases_are_kept_and_checked():
    module = IQLModule(3, 2, beta=5.0, gamma=0.9, learning_rate=1e-3)
    known = parameters_of(IQLModule)
    assert {*module.hparams} == {*known} == {*module.hparams_initial}
    assert {"observation_dim", "gamma", "hidden", "normalize", "decay", "seed"} < {*known}
    assert module.hparams.gamma == 0.9 and module.hparams.expectile == 0.7
    assert IQLModule(**module.hparams).hparams == module.hparams
    with pytest.raises(TypeError, match="unexpected keyword argument 'betta'"):
        IQLModule(3, 2, betta=5.0)


def test_what_a_method_gives_its_base_itself_is_no_option():
    module = AWRModule(3, 2)
    assert "expectile" not in module.hparams and "expectile" not in parameters_of(AWRModule)
    assert module.critics.expectile == 0.5
    assert AWRModule(**module.hparams).hparams == module.hparams


def test_a_users_method_may_save_its_hyperparameters_itself():
    class Mine(IQLModule):
        """Adds an option, and leaves one out of the checkpoint."""

        def __init__(self, *args, mine: int = 1, net=None, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            self.save_hyperparameters(ignore=["net"])

    class Old(BCModule):
        """States what it takes, and forwards it by name."""

        def __init__(self, observation_dim: int, action_dim: int, *, seed: int = 0) -> None:
            super().__init__(observation_dim, action_dim, seed=seed)
            self.save_hyperparameters()

    module = Mine(3, 2, mine=4, net=object(), gamma=0.9)
    assert module.hparams.mine == 4 and module.hparams.gamma == 0.9
    assert module.hparams.observation_dim == 3 and "net" not in module.hparams
    assert dict(Old(3, 2, seed=5).hparams) == {"observation_dim": 3, "action_dim": 2, "seed": 5}


def choices():
    """Every option of every module that takes one of a few words."""
    names = lit_offrl.modules.__all__
    classes = [getattr(lit_offrl.modules, name) for name in names if name != "OfflineModule"]
    for made in classes:
        if isinstance(made, type) and issubclass(made, OfflineModule):
            known, hints = parameters_of(made), hints_of(made).items()
            literals = (name for name, hint in hints if get_origin(hint) is Literal)
            yield from ((made, name) for name in literals if name in known)


@pytest.mark.parametrize(
    ("made", "name"), [pytest.param(*one, id=f"{one[0].__name__}-{one[1]}") for one in choices()]
)
def test_a_misspelt_choice_is_refused_from_python_too(made, name):
    sizes = {"observation_dim": 192, "action_dim": 2, "action_low": [-1.0, -1.0], "horizon": 5,
             "action_high": [1.0, 1.0], "stage1": "none.ckpt", "num_policies": 2}  # fmt: skip
    given = {key: value for key, value in sizes.items() if key in parameters_of(made)}
    with pytest.raises(ConfigError, match=rf"{name}.*'nonsense'.*; choose ") as raised:
        made(**{**given, name: "nonsense"})
    assert "\n" not in str(raised.value)
