"""A run that is killed and resumed ends where the unbroken one ends, bit for bit."""

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

import h5py
import pytest
import torch

from lit_offrl.__main__ import main
from lit_offrl.common.files import file_sha256
from lit_offrl.modules import BCModule
from tests.helpers import forked

# 18 training episodes of 29 or 30 usable rows: 8 batches of 64 an epoch.
STEPS = ("--trainer.max_steps", "20", "--trainer.log_every_n_steps", "2")


class Killed(Exception):
    """Stands for a kill at a step, where a real one would take too long."""


@contextlib.contextmanager
def killed(at, *, validating=False):
    """Make a fit die as it meets its n-th batch, or in the validation after step n."""
    losses, met = BCModule.losses, 0

    def dying(self, batch):
        nonlocal met
        met += self.trainer.training
        if (self.trainer.validating and self.trainer.global_step == at) if validating else met > at:
            raise Killed
        return losses(self, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(BCModule, "losses", dying)
        yield


def step_of(checkpoint):
    return torch.load(checkpoint, weights_only=True)["global_step"]


@pytest.mark.parametrize(
    ("options", "deaths"),
    [
        # Checkpoints every 3 steps and validations every 4 meet at step 12; epochs end at 8 and 16.
        ("--trainer.val_check_interval 4 --checkpoint.every_n_train_steps 3", (4, 12, 17)),
        # All three coincide.
        ("--trainer.val_check_interval 8 --checkpoint.every_n_train_steps 8", (8, 17)),
        # Two batches a step: death between them.
        (
            "--trainer.val_check_interval 8 --checkpoint.every_n_train_steps 4"
            " --trainer.accumulate_grad_batches 2",
            (9, 20),
        ),
    ],
)
def test_resumes_to_the_unbroken_run_wherever_it_died(lit, same_state, options, deaths):
    options = (*STEPS, *options.split())
    assert lit(*options, "--checkpoint.dirpath", "whole") == 0
    for death in deaths:
        with killed(death):
            lit(*options, "--checkpoint.dirpath", f"cut{death}")
        last = f"cut{death}/last.ckpt"
        assert 0 < step_of(last) < 20
        assert lit(*options, "--ckpt_path", last) == 0
        same_state("whole/last.ckpt", last)


def test_a_death_within_a_validation_leaves_no_hole_in_the_curve(lit, same_state):
    options = (*STEPS, "--trainer.val_check_interval", "4", "--checkpoint.every_n_train_steps", "4")
    assert lit(*options, "--checkpoint.dirpath", "whole") == 0
    with killed(12, validating=True):
        lit(*options, "--checkpoint.dirpath", "cut")
    assert step_of("cut/last.ckpt") == 8  # that of step 12 waits for its validation
    assert lit(*options, "--ckpt_path", "cut/last.ckpt") == 0
    same_state("whole/last.ckpt", "cut/last.ckpt")


def test_resuming_without_steps_left_does_nothing_and_succeeds(lit, capsys):
    assert lit(*STEPS, "--checkpoint.dirpath", "run") == 0
    before = Path("run/last.ckpt").read_bytes()
    assert lit(*STEPS, "--ckpt_path", "run/last.ckpt") == 0
    assert Path("run/last.ckpt").read_bytes() == before
    said = capsys.readouterr()
    assert said.err == "" and "nothing to do: it is at step 20 of 20" in said.out


def test_the_checkpoint_alone_is_enough_to_go_on_further(lit, folder):
    assert lit(*STEPS, "--checkpoint.dirpath", "run") == 0
    assert main(["fit", "--ckpt_path", "run/last.ckpt", "--trainer.max_steps", "24"]) == 0
    assert step_of("run/last.ckpt") == 24
    history = torch.load("run/last.ckpt", weights_only=True)["callbacks"]["Curves"]["history"]
    assert [step for step, _ in history["train/loss/actor"]] == list(range(2, 25, 2))


LONG = ("--trainer.max_steps", "400", "--checkpoint.every_n_train_steps", "20")


def start_and_signal(arguments, number):
    """Start a fit, send a signal once it has saved a new checkpoint; return exit code, stderr."""
    last = Path("cut/last.ckpt")
    before = last.stat().st_mtime_ns if last.exists() else None
    process = forked(main, arguments, stderr="errors")
    deadline = time.monotonic() + 600
    while not last.exists() or last.stat().st_mtime_ns == before:
        assert process.is_alive() and time.monotonic() < deadline, Path("errors").read_text()
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(400)
    return process.exitcode, Path("errors").read_text()


def test_kill_9_and_sigterm_in_a_real_process(lit, command, same_state):
    assert lit(*LONG, "--checkpoint.dirpath", "whole") == 0

    cut = command(*LONG, "--checkpoint.dirpath", "cut")
    code, _ = start_and_signal(cut, signal.SIGKILL)
    assert code == -signal.SIGKILL
    killed_at = step_of("cut/last.ckpt")
    assert 0 < killed_at < 400 and killed_at % 20 == 0

    resumed = command(*LONG, "--ckpt_path", "cut/last.ckpt")
    code, errors = start_and_signal(resumed, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    terminated_at = step_of("cut/last.ckpt")
    assert killed_at < terminated_at < 400
    assert errors == (
        f"lit-offrl: stopped by SIGTERM after step {terminated_at};"
        f" saved {Path('cut/last.ckpt').resolve()}.\n"
    )

    assert lit(*LONG, "--ckpt_path", "cut/last.ckpt") == 0
    same_state("whole/last.ckpt", "cut/last.ckpt")


def test_a_resumed_run_stays_in_its_folder(lit, folder):
    assert lit("--trainer.max_steps", "2") == 0
    (last,) = folder.rglob("last.ckpt")
    assert lit("--trainer.max_steps", "4", "--ckpt_path", str(last)) == 0
    assert list(folder.rglob("last.ckpt")) == [last]
    assert (last.parent / "config-resumed.yaml").is_file()


def test_a_copy_of_a_run_goes_on_in_its_own_folder(lit, folder):
    assert lit("--trainer.max_steps", "2", "--checkpoint.dirpath", "run") == 0
    shutil.copytree("run", "copy")
    before = Path("run/last.ckpt").read_bytes()
    assert main(["fit", "--ckpt_path", "copy/last.ckpt", "--trainer.max_steps", "4"]) == 0
    assert Path("run/last.ckpt").read_bytes() == before and step_of("copy/last.ckpt") == 4


def test_a_new_run_does_not_take_the_folder_of_another(lit, capsys):
    options = ("--trainer.max_steps", "2", "--checkpoint.dirpath")
    assert lit(*options, "one") == 0
    assert lit(*options, "two") == 0
    before = Path("two/last.ckpt").read_bytes()
    capsys.readouterr()
    for more in ((), ("--ckpt_path", "one/last.ckpt")):
        assert lit(*options, "two", *more) == 2
        assert "two: holds the checkpoint of another run" in capsys.readouterr().err
    assert Path("two/last.ckpt").read_bytes() == before


def test_a_resumed_run_says_that_the_data_are_others_and_records_them(
    lit, folder, d4rl_file, capsys
):
    data = str(shutil.copy(d4rl_file, folder / "rows.hdf5"))
    options = ("--data.init_args.dataset", data, "--checkpoint.dirpath", "run")
    assert lit(*options) == 0
    before = torch.load("run/last.ckpt", weights_only=True)["lit_offrl"]["spec"]
    with h5py.File(data, "r+") as file:
        file["actions"][0] = 0.5
    capsys.readouterr()
    go_on = ("--ckpt_path", "run/last.ckpt")
    assert main(["fit", *go_on, "--trainer.max_steps", "8"]) == 0
    said = capsys.readouterr().out
    after = torch.load("run/last.ckpt", weights_only=True)["lit_offrl"]["spec"]
    assert after["sha256"] == file_sha256(Path(data)) != before["sha256"]
    assert f"{after['sha256'][:12]}… and {before['sha256'][:12]}…" in said

    assert main(["fit", *go_on, "--trainer.max_steps", "9"]) == 0
    assert "other data" not in capsys.readouterr().out


@pytest.mark.parametrize("validating", [False, True])
def test_a_signal_at_any_step_of_an_epoch_leaves_the_unbroken_run(
    lit, same_state, monkeypatch, validating
):
    options = ("--trainer.max_steps", "18", "--checkpoint.every_n_train_steps", "100")
    options += ("--model.init_args.steps_per_call", "1")  # else a signal waits for a call's end
    options += ("--trainer.val_check_interval", "4") if validating else ()
    options += () if validating else ("--trainer.limit_val_batches", "0")
    assert lit(*options, "--checkpoint.dirpath", "whole") == 0
    losses, met = BCModule.losses, 0

    def signalled(self, batch):
        nonlocal met
        met += self.trainer.training
        if self.trainer.training and met == step:
            signal.raise_signal(signal.SIGTERM)
        return losses(self, batch)

    for step in (7, 8, 16):  # epochs end at 8 and 16
        met = 0
        with monkeypatch.context() as patch:
            patch.setattr(BCModule, "losses", signalled)
            assert lit(*options, "--checkpoint.dirpath", f"cut{step}") == 128 + signal.SIGTERM
        last = f"cut{step}/last.ckpt"
        assert step_of(last) == step
        assert lit(*options, "--ckpt_path", last) == 0
        same_state("whole/last.ckpt", last)
