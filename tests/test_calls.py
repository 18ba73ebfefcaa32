"""However many steps a call of Lightning's loop has, a fit ends in the same bits."""

import math
import random
import signal
from pathlib import Path

import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.views.transitions import BoundTransitions
from lit_offrl.modules import BCModule, OfflineModule
from lit_offrl.modules.calls import Calls
from lit_offrl.modules.optimizer import CostChange

DENOISER = "--model.init_args.width 16 --model.init_args.blocks 1 --model.init_args.hidden [8]"
METHODS = {
    "BCModule": "",
    "TD3BCModule": "--model.init_args.hidden [8]",
    "IQLModule": "--model.init_args.hidden [8] --model.init_args.decay cosine"
    " --model.init_args.dropout 0.1",
    "DQLModule": f"{DENOISER} --model.init_args.num_samples 3",
    "LDCQStage1Module": "--model.init_args.horizon 5 --model.init_args.width 16"
    " --model.init_args.gru_layers 1 --model.init_args.latent_dim 2",
}
# 40 batches an epoch; epochs, validations, checkpoints, points of curves and calls seldom meet.
ODD = (
    *("--trainer.max_steps", "55", "--trainer.log_every_n_steps", "12"),
    *("--trainer.val_check_interval", "27", "--checkpoint.every_n_train_steps", "20"),
    *("--data.init_args.batch_size", "13", "--data.init_args.validation_batches", "1"),
)
# The further methods are for CI: they are slower, and go the same way.
MARKED = [pytest.param(name, marks=[pytest.mark.slow] * (i > 1)) for i, name in enumerate(METHODS)]
STEPS = "--model.init_args.steps_per_call"
LOGGER = ("--trainer.logger", "CSVLogger", "--trainer.logger.init_args.save_dir", "csv")
MONITORED = ("--trainer.callbacks.monitor", "val/loss/actor")


@pytest.fixture
def lengths(monkeypatch):
    """The number of batches of each call that has begun."""
    found = []
    take = Calls.take

    def noted(self, most):
        found.append(take(self, most))
        return found[-1]

    monkeypatch.setattr(Calls, "take", noted)
    return found


@pytest.mark.parametrize("method", MARKED)
def test_calls_of_any_length_end_in_the_same_state(lit, same_state, lengths, method):
    options = (*ODD, *METHODS[method].split())
    for steps in ("1", "7", "100", "null"):
        lengths.clear()
        place = ("--checkpoint.dirpath", f"of-{steps}", STEPS, steps)
        assert lit(*options, *place, module=method) == 0
        assert lengths == [1] if steps == "1" else sum(lengths) == 55 and max(lengths) > 3
    for steps in ("7", "100", "null"):
        same_state("of-1/last.ckpt", f"of-{steps}/last.ckpt")
        assert Path("of-1/curves.csv").read_text() == Path(f"of-{steps}/curves.csv").read_text()


class Killed(Exception):
    """Stands for a kill within a call."""


def kill_at(monkeypatch, batch):
    """Make a fit of any method die as it meets its n-th batch."""
    step, met = OfflineModule.training_step, 0

    def dying(self, *args):
        nonlocal met
        met += 1
        if met > batch:
            raise Killed
        return step(self, *args)

    monkeypatch.setattr(OfflineModule, "training_step", dying)


@pytest.mark.parametrize("method", MARKED)
def test_a_killed_fit_goes_on_with_calls_of_another_length(lit, same_state, monkeypatch, method):
    options = (*ODD, *METHODS[method].split(), "--trainer.max_steps", "75")
    assert lit(*options, STEPS, "1", "--checkpoint.dirpath", "whole", module=method) == 0
    draw = random.Random(method)
    lengths, last = ["1", "7", "100", "null"], "cut/last.ckpt"
    draw.shuffle(lengths)
    for number, steps in enumerate(lengths):
        place = ("--ckpt_path", last) if number else ("--checkpoint.dirpath", "cut")
        words = (*options, STEPS, steps, *place)
        if number == 3:
            assert lit(*words, module=method) == 0
            break
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, draw.randint(21, 27))  # a checkpoint further, each time
            lit(*words, module=method)
    same_state("whole/last.ckpt", last)
    whole, cut = (sorted(Path(f"{name}/curves.csv").open()) for name in ("whole", "cut"))
    assert whole == cut


@pytest.mark.parametrize(
    "options",
    [
        # 2 and 3 batches a step; validations fall within a step, epochs do not.
        "--trainer.accumulate_grad_batches 2 --trainer.val_check_interval 27"
        " --trainer.gradient_clip_val 0.1",
        "--trainer.accumulate_grad_batches 3 --trainer.val_check_interval 30"
        " --trainer.gradient_clip_val 0.01 --trainer.gradient_clip_algorithm value",
        "--trainer.precision bf16-mixed",
        "--trainer.plugins MixedPrecision --trainer.plugins.precision 16-mixed"
        " --trainer.plugins.device cpu --trainer.gradient_clip_val 0.1",
        "--trainer.precision 64-true",
        "--trainer.limit_train_batches 17 --trainer.check_val_every_n_epoch 2"
        " --trainer.val_check_interval 1.0",
        "--trainer.overfit_batches 11",
        "--trainer.max_steps -1 --trainer.max_epochs 2",
        "--trainer.min_steps 33",
    ],
)
def test_the_trainer_s_options_do_the_same_in_calls(lit, same_state, lengths, options):
    for steps in ("1", "20"):
        words = (*ODD, *options.split(), STEPS, steps, "--checkpoint.dirpath", f"of-{steps}")
        lengths.clear()
        assert lit(*words, "--data.init_args.validation_fraction", "0.2", module="TD3BCModule") == 0
        assert max(lengths) == 1 if steps == "1" else max(lengths) > 6
    same_state("of-1/last.ckpt", "of-20/last.ckpt")
    assert Path("of-1/curves.csv").read_text() == Path("of-20/curves.csv").read_text()


@pytest.mark.parametrize("accumulated", ["1", "2"])
def test_two_processes_take_the_same_calls(lit, same_state, monkeypatch, accumulated):
    """Bit for bit what they do batch by batch, and but for rounding what one process does."""
    monkeypatch.setattr("lit_offrl.cli.main._require_launcher", lambda *_: None)
    options = ("--trainer.max_steps", "36", "--trainer.accumulate_grad_batches", accumulated)
    two = ("--trainer.strategy", "ddp_fork", "--trainer.devices", "2")

    def fit(name, steps, size, *more):
        words = (*options, STEPS, steps, "--data.init_args.batch_size", size)
        assert lit(*words, "--checkpoint.dirpath", name, *more, module="TD3BCModule") == 0
        return torch.load(f"{name}/last.ckpt", weights_only=True)["state_dict"]

    alone = fit("alone", "20", "16")
    for steps in ("1", "20", "null"):
        together = fit(f"of-{steps}", steps, "8", *two)
        for name, value in alone.items():
            torch.testing.assert_close(together[name], value, rtol=1e-4, atol=2e-5)
        same_state("of-1/last.ckpt", f"of-{steps}/last.ckpt")


def test_hooks_see_the_step_under_way(lit, lengths, monkeypatch):
    seen: dict[str, list] = {"losses": [], "after_step": []}
    losses = BCModule.losses

    def noted(self, batch):
        if self.training:
            assert batch is self.latest_batch and len(batch.observations) == 64
            seen["losses"].append(self.trainer.global_step)
        return losses(self, batch)

    def after_step(self):
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        seen["after_step"].append((self.trainer.global_step, rate))

    monkeypatch.setattr(BCModule, "losses", noted)
    monkeypatch.setattr(BCModule, "after_step", after_step)
    monkeypatch.setattr(BCModule, "learning_rate_of", lambda self, name, step: 1e-3 / (1 + step))
    options = ("--trainer.max_steps", "20", "--data.init_args.validation_fraction", "0")
    assert lit(*options, STEPS, "5") == 0
    assert lengths == [1, 5, 3, 1, 5, 3, 1, 1]  # 9 batches an epoch
    assert seen["losses"] == list(range(20))
    steps, rates = zip(*seen["after_step"], strict=True)
    assert steps == tuple(range(20))
    assert rates == tuple(1e-3 / (1 + step) for step in steps)


def test_hooks_and_callbacks_that_look_at_batches_see_each(lit, lengths, monkeypatch):
    """And a profiler sees each; a limit of time and what looks at validations have no need to."""
    options = ("--trainer.max_steps", "12", STEPS, "100")
    options += ("--trainer.max_time", "01:00:00:00")
    assert lit(*options, "--trainer.callbacks", "EarlyStopping", *MONITORED) == 0
    assert max(lengths) > 1
    for more in (
        ("--trainer.callbacks", "LearningRateMonitor", *LOGGER),
        ("--trainer.profiler", "simple"),
        ("--trainer.fast_dev_run", "5"),
    ):
        lengths.clear()
        assert lit(*options, *more) == 0
        assert lengths == [1]  # the later ones are not asked for
    seen = []
    hook = lambda self, batch, number: seen.append((self.trainer.global_step, number))  # noqa: E731
    monkeypatch.setattr(BCModule, "on_train_batch_start", hook)
    assert lit(*options) == 0
    assert seen == [(step, step % 8) for step in range(12)]


def test_a_number_that_is_not_finite_is_named_with_its_step(lit, lengths, monkeypatch, capsys):
    losses = BCModule.losses

    def spoiled(self, batch):
        found = losses(self, batch)
        return {"actor": found["actor"] * (math.inf if self.trainer.global_step == 5 else 1)}

    monkeypatch.setattr(BCModule, "losses", spoiled)
    assert lit(STEPS, "100", "--trainer.max_steps", "8", "--checkpoint.dirpath", "run") == 3
    assert lengths == [1, 7]
    assert "loss 'actor' is not finite at step 5; the last good" in capsys.readouterr().err


def test_a_signal_waits_for_the_call_s_end(lit, lengths, monkeypatch, same_state, capsys):
    options = (*ODD, STEPS, "10")
    assert lit(*options, "--checkpoint.dirpath", "whole") == 0
    losses = BCModule.losses

    def losses_and_signal(self, batch):
        if self.training and self.trainer.global_step == 15:
            signal.raise_signal(signal.SIGTERM)
        return losses(self, batch)

    lengths.clear()
    with monkeypatch.context() as patch:
        patch.setattr(BCModule, "losses", losses_and_signal)
        assert lit(*options, "--checkpoint.dirpath", "cut") == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step 20; saved" in capsys.readouterr().err
    assert lengths == [1, 10, 1, 8]  # curves have a point at step 12
    assert lit(*options, STEPS, "100", "--ckpt_path", "cut/last.ckpt") == 0
    same_state("whole/last.ckpt", "cut/last.ckpt")


def test_calls_grow_until_they_take_their_time(lit, lengths, monkeypatch):
    options = ("--trainer.max_steps", "250", "--data.init_args.batch_size", "1")
    options += ("--data.init_args.validation_fraction", "0")
    assert lit(*options) == 0
    assert lengths[:7] == [1, 2, 4, 8, 16, 32, 37] and max(lengths) <= 100  # to step 100
    monkeypatch.setattr("lit_offrl.modules.calls.SECONDS", 0.0)
    lengths.clear()
    assert lit(*options, "--trainer.max_steps", "20") == 0
    assert lengths == [1] * 20
    lengths.clear()
    monkeypatch.setattr("lit_offrl.modules.calls.SECONDS", 1e9)
    change = CostChange(9, dearer=True)
    monkeypatch.setattr(BCModule, "cost_changes", lambda self, step: change if step < 9 else None)
    assert lit(*options, "--trainer.max_steps", "20") == 0
    assert lengths == [1, 2, 4, 2, 1, 2, 4, 4]  # what a step costs from step 9 on is not known
    monkeypatch.setattr("lit_offrl.modules.calls.BYTES", 100)  # a row has 33
    lengths.clear()
    assert lit(*options, "--trainer.max_steps", "8") == 0
    assert lengths == [1, 2, 3, 2]
    with pytest.raises(ConfigError, match="steps_per_call is 0: give"):
        BCModule(3, 1, steps_per_call=0)


def test_batches_are_views_of_one_gather(lit, monkeypatch):
    gathered, pointers = [], []
    batch, losses = BoundTransitions.batch, BCModule.losses

    def gather(self, index, uniforms=None):
        gathered.append(len(index))
        return batch(self, index, uniforms)

    def noted(self, batch):
        pointers.append(batch.observations.untyped_storage().data_ptr())
        return losses(self, batch)

    monkeypatch.setattr(BoundTransitions, "batch", gather)
    monkeypatch.setattr(BCModule, "losses", noted)
    assert lit(STEPS, "5", "--data.init_args.validation_fraction", "0") == 0
    assert gathered == [64, 5 * 64]
    assert len(set(pointers[1:])) == 1
