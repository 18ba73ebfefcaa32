"""A number that is not finite ends the run before it reaches a weight."""

import math
import signal
from pathlib import Path

import pytest
import torch

from lit_offrl.modules import BCModule

OPTIONS = ("--checkpoint.every_n_train_steps", "2", "--checkpoint.dirpath", "run")


@pytest.fixture
def spoil(monkeypatch):
    """Spoil something in step 5, whose batch is the fifth."""

    def arrange(what):
        losses = BCModule.losses

        def spoiled(self, batch):
            found = losses(self, batch)
            if not self.trainer.training or self.trainer.global_step < 4:
                return found
            if what == "loss":
                return found | {"extra": found["actor"] * math.inf}
            (parameter, *_) = self.actor.parameters()
            parameter.register_hook(lambda gradient: gradient / 0)
            return found

        monkeypatch.setattr(BCModule, "losses", spoiled)

    return arrange


@pytest.mark.parametrize(
    ("what", "said"),
    [("loss", "loss 'extra'"), ("gradient", "the gradient of 'actor'")],
)
def test_names_the_term_the_step_and_the_last_good_checkpoint(lit, spoil, capsys, what, said):
    spoil(what)
    assert lit(*OPTIONS) == 3
    errors = capsys.readouterr().err
    last = Path("run/last.ckpt").resolve()
    assert errors.startswith(f"lit-offrl: error: {said} is not finite at step 4; the last good")
    assert str(last) in errors and errors.count("\n") == 1
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == 4
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_names_the_column_of_a_batch(lit, monkeypatch, capsys):
    from lit_offrl.datasets import sampler

    batches = sampler.TrainLoader.__iter__

    def spoiled(self):
        for batch in batches(self):
            yield batch._replace(actions=batch.actions * math.nan)

    monkeypatch.setattr(sampler.TrainLoader, "__iter__", spoiled)
    assert lit(*OPTIONS) == 3
    errors = capsys.readouterr().err
    assert "column 'actions' of the batch is not finite at step 0" in errors
    assert "none has been saved yet" in errors


def test_accumulated_gradients_are_checked_too(lit, spoil, capsys):
    spoil("gradient")
    assert lit(*OPTIONS, "--trainer.accumulate_grad_batches", "2") == 3
    assert "the gradient of 'actor' is not finite at step 4" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["actor", "average"])
def test_weights_that_are_not_finite_replace_no_checkpoint(lit, monkeypatch, capsys, part):
    """A step can go too far with finite gradients; averages and targets count as weights."""
    assert lit("--trainer.max_steps", "2", "--checkpoint.dirpath", "run") == 0
    last = Path("run/last.ckpt").resolve()
    before = last.read_bytes()
    capsys.readouterr()

    def overflow(self):
        if part == "average":
            self.average = torch.nn.Linear(1, 1).requires_grad_(False)
            self.average.weight.fill_(math.inf)

    monkeypatch.setattr(BCModule, "after_step", overflow)
    rate = ("--model.init_args.learning_rate", "1e39") if part == "actor" else ()
    options = ("--trainer.max_steps", "3", "--ckpt_path", "run/last.ckpt")
    assert lit(*options, *rate) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"weight '{part}." in said
    assert (
        "is not finite after step 3, and not saved; the last good checkpoint is run/last.ckpt"
        in said
    )
    assert last.read_bytes() == before


def test_a_signal_does_not_save_them_either(lit, monkeypatch, capsys):
    def overflow(self):
        with torch.no_grad():
            next(self.parameters()).fill_(math.nan)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(BCModule, "after_step", overflow)
    assert lit("--checkpoint.dirpath", "run") == 128 + signal.SIGTERM
    said = capsys.readouterr().err
    assert "stopped by SIGTERM after step 1; nothing saved: weight 'actor." in said
    assert "none, as none has been saved yet" in said and not Path("run/last.ckpt").exists()
