"""Options of the Trainer and Lightning's callbacks: as documented, or refused by name in a line."""

import inspect
import os
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch import callbacks as stock

from lit_offrl.__main__ import main
from lit_offrl.cli.trainer import REFUSED_CALLBACKS, require_cores, require_trainer_options
from lit_offrl.common.errors import ConfigError

WORK = {
    "BasePredictionWriter",
    "Callback",
    "Checkpoint",
    "DeviceStatsMonitor",
    "EarlyStopping",
    "LambdaCallback",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "ProgressBar",
    "RichModelSummary",
    "RichProgressBar",
    "SpikeDetection",
    "TQDMProgressBar",
    "ThroughputMonitor",
    "Timer",
}


def only_line(capsys):
    """Return the one line on stderr."""
    errors = capsys.readouterr().err
    assert errors.startswith("lit-offrl: error: ") and errors.count("\n") == 1
    return errors


@pytest.mark.parametrize("name", stock.__all__)
def test_each_of_lightnings_callbacks_was_looked_at(name):
    kind = getattr(stock, name)
    refused = any(issubclass(kind, one) for one in REFUSED_CALLBACKS)
    assert refused != (name in WORK)
    options = {"callbacks": [{"class_path": f"lightning.pytorch.callbacks.{name}"}]}
    if refused:
        with pytest.raises(ConfigError, match=f"trainer.callbacks: {name} cannot be used: "):
            require_trainer_options(options)
    else:
        require_trainer_options(options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"barebones": True}, "trainer.barebones cannot be used"),
        ({"model_registry": "x"}, "trainer.model_registry cannot be used"),
        ({"reload_dataloaders_every_n_epochs": 1}, "reload_dataloaders_every_n_epochs cannot"),
        ({"val_check_interval": "00:00:01:00"}, "trainer.val_check_interval is a time"),
        ({"min_steps": 3, "max_steps": 2}, "trainer.min_steps is 3 and trainer.max_steps 2"),
        ({"min_epochs": 3, "max_epochs": 2}, "trainer.min_epochs is 3 and trainer.max_epochs 2"),
        ({"strategy": "fsdp"}, "trainer.strategy fsdp"),
        ({"precision": "transformer-engine"}, "trainer.precision transformer-engine"),
        ({"limit_train_batches": 0}, "trainer.limit_train_batches is 0"),
        ({"overfit_batches": -1}, "trainer.overfit_batches is -1"),
        ({"num_sanity_val_steps": -2}, "trainer.num_sanity_val_steps is -2"),
        ({"log_every_n_steps": 0}, "trainer.log_every_n_steps is 0"),
        (
            {"enable_progress_bar": False, "callbacks": "RichProgressBar"},
            "trainer.enable_progress_bar is false, and trainer.callbacks has a RichProgressBar",
        ),
        ({"max_time": "00:00:01:00", "callbacks": "Timer"}, "trainer.max_time and a Timer"),
    ],
)
def test_options_that_cannot_do_what_they_promise(options, said):
    if "callbacks" in options:
        options["callbacks"] = {"class_path": f"lightning.pytorch.callbacks.{options['callbacks']}"}
    with pytest.raises(ConfigError) as caught:
        require_trainer_options(options)
    assert said in str(caught.value)


def test_the_trainers_own_defaults_are_not_refused():
    parameters = inspect.signature(Trainer.__init__).parameters.values()
    require_trainer_options({p.name: p.default for p in parameters if p.name != "self"})


@pytest.mark.parametrize(
    ("devices", "refused"), [(64, True), ("64", True), (1, False), ("auto", False), ([0], False)]
)
def test_many_more_processes_than_cores(devices, refused, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda number: {0, 1})
    options = {"accelerator": "cpu", "devices": devices}
    if refused:
        with pytest.raises(ConfigError, match="64, each a process, and this machine has 2 CPU"):
            require_cores(options)
        monkeypatch.setenv("SLURM_NTASKS", "64")  # which has counted them
    require_cores(options)


def test_a_few_more_processes_than_cores_are_warned_of(monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda number: {0, 1})
    require_cores({"accelerator": "cpu", "devices": 3})
    assert "trainer.devices is 3, each a process, and this machine has 2" in capsys.readouterr().out


def test_refusals_on_the_command_line(lit, capsys):
    for option, said in (
        ("--trainer.callbacks+=LearningRateFinder", "LearningRateFinder cannot be used: modules"),
        (
            "--trainer.devices=64",
            "trainer.devices is 64" if len(os.sched_getaffinity(0)) < 16 else "",
        ),
        ("--trainer.devices=[0,1]", "trainer: `devices` selected with"),
    ):
        assert lit(option) == 2
        assert said in only_line(capsys)


# ---- batches -----------------------------------------------------------------------------------


@pytest.fixture
def batches(lit, monkeypatch):
    """Run a fit and return the sum of each training batch, with the epoch that it is of."""
    from lit_offrl.modules import BCModule

    losses = BCModule.losses

    def seen(self, batch):
        if self.trainer.training:
            total = batch.observations.double().sum().item()
            run.seen.append((self.trainer.current_epoch, round(total, 6)))
        return losses(self, batch)

    def run(*options):
        run.seen = []
        assert lit(*options) == 0
        return run.seen

    monkeypatch.setattr(BCModule, "losses", seen)
    return run


@pytest.mark.parametrize("number", [1, 3])
def test_overfitting_takes_the_same_batches_each_time(batches, number):
    options = ("--trainer.overfit_batches", str(number), "--checkpoint.dirpath", "run")
    taken = batches(*options, "--trainer.max_steps", "7")
    sums = [total for _, total in taken]
    assert len(set(sums)) == number and sums == (sums[:number] * 7)[:7]
    assert [epoch for epoch, _ in taken] == [step // number for step in range(7)]
    more = batches(*options, "--ckpt_path", "run/last.ckpt", "--trainer.max_steps", "9")
    assert [total for _, total in more] == (sums[:number] * 9)[7:9]


def test_limited_epochs_are_that_long_and_their_batches_go_on(batches):
    whole = batches("--trainer.max_steps", "7")
    limited = batches("--trainer.max_steps", "7", "--trainer.limit_train_batches", "3")
    assert [total for _, total in limited] == [total for _, total in whole]
    assert [epoch for epoch, _ in limited] == [0, 0, 0, 1, 1, 1, 2]


def test_a_limit_makes_whole_steps(lit, capsys):
    for name in ("overfit_batches", "limit_train_batches"):
        options = (f"--trainer.{name}", "3", "--trainer.accumulate_grad_batches", "2")
        assert lit(*options) == 2
        assert f"trainer.{name} takes 3 batches of an epoch, and trainer.acc" in only_line(capsys)


# ---- monitors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("callback", "options", "said"),
    [
        (
            "EarlyStopping",
            "--trainer.callbacks.monitor val_loss",
            "EarlyStopping monitors 'val_loss', which is no metric of BCModule. Did you mean",
        ),
        (
            "ModelCheckpoint",
            "--trainer.callbacks.monitor val/loss/actr",
            "ModelCheckpoint monitors 'val/loss/actr', which is no metric of BCModule. Did you "
            "mean 'val/loss/actor'? Use val/actor/squared_error, val/loss/actor.",
        ),
        (
            "EarlyStopping",
            "--trainer.callbacks.monitor val/loss/actor --data.init_args.validation_fraction 0",
            "EarlyStopping looks at validations, and this fit has none",
        ),
    ],
)
def test_a_monitor_that_is_not_there_is_refused_before_training(
    lit, capsys, monkeypatch, callback, options, said
):
    from lit_offrl.modules import BCModule

    monkeypatch.setattr(BCModule, "after_step", lambda self: pytest.fail("it trains"))
    assert lit("--trainer.callbacks", callback, *options.split()) == 2
    assert said in only_line(capsys)


def test_looking_for_a_monitor_changes_no_weight(lit, same_state):
    watch = ("--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor")
    every = ("--trainer.val_check_interval", "2")
    assert lit(*every, "--checkpoint.dirpath", "plain") == 0
    assert lit(*every, *watch, "train/loss/actor", "--checkpoint.dirpath", "watched") == 0
    one, other = (torch.load(f"{n}/last.ckpt", weights_only=True) for n in ("plain", "watched"))
    assert one["callbacks"]["Curves"] == other["callbacks"]["Curves"]
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name])


def test_a_stopper_that_never_looks_says_so(lit, capsys):
    watch = ("--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor")
    assert lit(*watch, "val/loss/actor") == 0
    assert "EarlyStopping never looks: the first validation would" in capsys.readouterr().out
    assert lit(*watch, "val_loss", "--trainer.callbacks.strict", "false") == 0
    assert "strict is false, so the run goes on" in capsys.readouterr().out


# ---- options of Lightning's own classes ---------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--trainer.callbacks+=Timer --trainer.callbacks.duration 5s", "DD:HH:MM:SS."),
        ("--trainer.callbacks+=Timer --trainer.callbacks.interval week", "Timer(interval=week)"),
        ("--config timer.yaml", "DD:HH:MM:SS."),  # not in a list
    ],
)
def test_what_a_class_of_lightnings_refuses_is_one_line(lit, capsys, options, said):
    timer = "{class_path: Timer, init_args: {duration: 5s}}"
    Path("timer.yaml").write_text(f"trainer: {{callbacks: {timer}}}")
    assert lit(*options.split()) == 2
    line = only_line(capsys)
    assert line.startswith("lit-offrl: error: trainer: ") and said in line


# ---- bars, profilers, checkpoints of weights ---------------------------------------------------


@pytest.mark.parametrize("bar", ["RichProgressBar", "TQDMProgressBar"])
def test_the_bar_can_be_exchanged(lit, monkeypatch, bar):
    seen = []
    kind = getattr(stock, bar)
    shown = kind.on_train_batch_end

    def watched(self, *words):
        seen.append(bar)
        shown(self, *words)

    monkeypatch.setattr(kind, "on_train_batch_end", watched)
    assert lit("--trainer.callbacks+=" + bar, "--trainer.enable_progress_bar", "true") == 0
    assert seen == [bar] * 6


def test_a_profiler_shows_its_table(lit, caplog):
    assert lit("--trainer.profiler", "simple") == 0
    assert "Profiler Report" in caplog.text


def test_a_checkpoint_of_weights_alone_is_not_resumed(lit, capsys):
    weights = ("--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.dirpath", "weights")
    weights += ("--trainer.callbacks.save_weights_only", "true")
    assert lit(*weights, "--trainer.callbacks.every_n_train_steps", "6") == 0
    path = "weights/epoch=0-step=6.ckpt"
    capsys.readouterr()
    for command in (lambda *words: main(["fit", *words]), lit):
        assert command("--ckpt_path", path) == 2
        assert f"{path}: the checkpoint holds weights alone: it cannot be res" in only_line(capsys)


def test_every_callback_of_fit_is_refused_a_second_time():
    from lit_offrl import callbacks as own
    from lit_offrl.callbacks.progress import StepProgress

    kinds = {getattr(own, name) for name in own.__all__} | {StepProgress}
    assert {k for k in kinds if issubclass(k, Callback)} <= REFUSED_CALLBACKS.keys()


# ---- precision, files --------------------------------------------------------------------------


def test_double_precision_resumes_to_the_bit(lit, same_state):
    """Weights are loaded as they were saved, not rounded to float32 on the way."""
    double = ("--trainer.precision", "64-true", "--trainer.log_every_n_steps", "1")
    assert lit(*double, "--checkpoint.dirpath", "whole") == 0
    assert lit(*double, "--checkpoint.dirpath", "cut", "--trainer.max_steps", "3") == 0
    assert lit(*double, "--ckpt_path", "cut/last.ckpt", "--trainer.max_steps", "6") == 0
    same_state("whole/last.ckpt", "cut/last.ckpt")


def test_a_precision_that_a_method_does_not_have_is_refused_by_name(lit, capsys):
    small = ("--model.init_args.width", "16", "--model.init_args.blocks", "1")
    assert lit(*small, "--trainer.precision", "64-true", module="DVFModule") == 2
    assert "trainer.precision 64-true: DVFModule computes some of its numbers" in only_line(capsys)


@pytest.mark.parametrize("option", ["--trainer", "--checkpoint", "--evaluation"])
def test_a_binary_file_in_the_place_of_options(lit, capsys, folder, option):
    (folder / "weights.bin").write_bytes(b"\x7fELF\xd0\xff\x00")
    assert lit(option, "weights.bin") == 2
    assert f"{option} weights.bin: is no text" in only_line(capsys)
