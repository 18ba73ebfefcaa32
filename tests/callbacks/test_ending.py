"""The last line of a fit says why it ended, and a file of the run's folder says it to programs."""

import json
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import timer

from lit_offrl.__main__ import main
from lit_offrl.callbacks.record import scoring

STOPPING = (
    "--trainer.callbacks EarlyStopping --trainer.callbacks.monitor val/loss/actor"
    " --trainer.callbacks.min_delta 1000 --trainer.callbacks.patience 1"
    " --trainer.val_check_interval 2 --trainer.max_steps 100000 --checkpoint.dirpath run"
)
RESUMED = ("--ckpt_path", "run/last.ckpt", "--trainer.max_steps")


def step():
    return torch.load("run/last.ckpt", weights_only=True)["global_step"]


def finished():
    return json.loads(Path("run/finished.json").read_text())


@pytest.fixture
def last_line(capsys):
    """Return the last line on stdout since it was asked for last."""
    return lambda: capsys.readouterr().out.splitlines()[-1].removeprefix("lit-offrl: ")


def test_the_last_step(lit, last_line):
    assert lit("--checkpoint.dirpath", "run") == 0
    line = "reached trainer.max_steps at step 6 of 6"
    assert last_line() == line
    assert finished() == {"step": 6, "max_steps": 6, "reason": "max_steps", "line": line}


def test_max_epochs(lit, last_line):
    epochs = ("--trainer.max_steps", "-1", "--trainer.max_epochs", "1")
    assert lit(*epochs, "--checkpoint.dirpath", "run") == 0
    assert last_line() == "reached trainer.max_epochs, 1, at step 8"
    assert finished()["reason"] == "max_epochs" and finished()["max_steps"] is None


def test_max_time_counts_all_jobs_of_a_run_and_is_named(lit, last_line, monkeypatch):
    seconds = count()  # a clock that moves each time somebody looks at it
    monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    limit = ("--trainer.max_time", "00:00:00:03", "--trainer.max_steps", "100000")
    assert lit(*limit, "--checkpoint.dirpath", "run") == 0
    at = step()
    assert 0 < at < 10
    assert last_line() == f"stopped by trainer.max_time at step {at} of 100,000"
    assert finished()["reason"] == "max_time"
    assert main(["fit", "--ckpt_path", "run/last.ckpt"]) == 0
    assert last_line() == (
        f"nothing to do: trainer.max_time is used up at step {at} of 100,000, as it counts all jobs"
        " of a run; raise it to go on"
    )
    assert step() == at
    assert main(["fit", "--ckpt_path", "run/last.ckpt", "--trainer.max_time", "00:00:00:30"]) == 0
    assert last_line().startswith("stopped by trainer.max_time") and step() > at


def test_early_stopping_is_named_and_holds_when_the_run_is_resumed(lit, last_line):
    assert lit(*STOPPING.split()) == 0
    said = last_line()
    assert said.startswith(
        "stopped by EarlyStopping at step 4 of 100,000: val/loss/actor did not improve in the last"
        " validation; its best value is "
    )
    assert finished()["reason"] == "EarlyStopping"
    for _ in range(2):
        assert lit(*STOPPING.split(), "--ckpt_path", "run/last.ckpt") == 0
        assert last_line() == (
            f"nothing to do: {said}; change its options or leave EarlyStopping out to go on"
        )
        assert step() == 4


@pytest.mark.parametrize(
    ("change", "then"),
    [
        (("--trainer.callbacks.patience", "3"), "stopped by EarlyStopping at step 8 of 100,000"),
        (("--trainer.callbacks.min_delta", "-1000", "--trainer.max_steps", "5"), "reached trainer"),
    ],
)
def test_a_run_that_was_stopped_early_goes_on_when_its_stopper_changes(
    lit, last_line, change, then
):
    """Lightning would take the patience of the checkpoint, whatever the command says."""
    assert lit(*STOPPING.split()) == 0
    assert lit(*STOPPING.split(), "--ckpt_path", "run/last.ckpt", *change) == 0
    assert last_line().startswith(then)


def test_a_run_that_was_stopped_early_and_leaves_its_stopper_out_says_so(lit, capsys):
    assert lit(*STOPPING.split()) == 0
    capsys.readouterr()
    assert lit(*RESUMED, "5", "--trainer.callbacks", "null") == 0
    said = capsys.readouterr().out
    assert "EarlyStopping had stopped this run; it is left out now, so the run goes on" in said
    assert said.endswith("reached trainer.max_steps at step 5 of 5\n") and step() == 5


def test_two_stoppers_that_a_checkpoint_cannot_tell_apart_are_one_line(lit, capsys):
    more = "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/loss/actor"
    assert lit(*STOPPING.split(), *more.split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "more than one stateful callback of type `EarlyStop" in said


def test_a_threshold_holds_too(lit, last_line):
    threshold = ("--trainer.callbacks.stopping_threshold", "1000")
    assert lit(*STOPPING.split(), *threshold) == 0
    resumed = ("--ckpt_path", "run/last.ckpt")
    said = "stopped by EarlyStopping at step 2 of 100,000: val/loss/actor reached stopping_threshol"
    assert last_line().startswith(said)
    assert lit(*STOPPING.split(), *threshold, *resumed) == 0
    assert last_line().startswith(f"nothing to do: {said}") and step() == 2


def test_min_steps_come_first(lit, last_line):
    assert lit(*STOPPING.split(), "--trainer.min_steps", "9") == 0
    assert last_line().startswith("stopped by EarlyStopping at step 9 of 100,000")


def test_no_file_while_a_run_is_under_way(lit, monkeypatch):
    from lit_offrl.modules import BCModule

    assert lit("--checkpoint.dirpath", "run") == 0
    seen = []
    monkeypatch.setattr(
        BCModule, "after_step", lambda self: seen.append(Path("run/finished.json").exists())
    )
    assert lit(*RESUMED, "8") == 0
    assert seen == [False, False] and finished()["step"] == 8


def test_fast_dev_run_says_that_nothing_is_kept(lit, last_line):
    assert lit("--trainer.fast_dev_run", "2") == 0
    assert last_line() == "ended trainer.fast_dev_run after step 2; nothing is saved"
    assert not list(Path().rglob("finished.json"))


def test_the_evaluation_of_a_run_whose_folder_got_a_number(lit, capsys):
    assert lit() == 0
    assert "evaluate this one" not in capsys.readouterr().out
    assert lit() == 0
    assert (
        "checkpoints/BCModule-pendulum-seed0 is of an earlier run; evaluate this one by: "
        "lit-offrl evaluate --ckpt_path checkpoints/BCModule-pendulum-seed0-2/last.ckpt"
    ) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("own", "env_id", "said"),
    [
        ("lit_offrl.modules.bc", "Pendulum-v1", "evaluate --ckpt_path run/last.ckpt"),
        ("lit_offrl.modules.bc", None, "ope --ckpt_path run/last.ckpt"),
        ("my_file", "arm:Reach-v0", "evaluate --ckpt_path run/last.ckpt --env arm:Reach-v0 "
         "--import my_file"),
    ],
)  # fmt: skip
def test_the_command_that_scores_a_run_names_what_it_needs(own, env_id, said):
    """Without an environment nothing is rolled out; no file's word is taken for what to import."""
    module = type("Method", (LightningModule,), {"__module__": own})()
    assert scoring(module, env_id, "run/last.ckpt") == ["lit-offrl", *said.split()]
