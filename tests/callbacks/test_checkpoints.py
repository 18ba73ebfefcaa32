"""Which files a run writes, and when."""

import errno
import json
import os
import resource
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule

from lit_offrl.__main__ import main
from lit_offrl.callbacks.checkpoints import run_name
from lit_offrl.common.files import part_path
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.modules import BCModule


def steps(path):
    return torch.load(path, weights_only=True)["global_step"]


def test_keeps_the_last_or_all(lit):
    every = ("--checkpoint.every_n_train_steps", "4")
    assert lit(*every, "--checkpoint.dirpath", "last") == 0
    assert [path.name for path in Path("last").glob("*.ckpt")] == ["last.ckpt"]
    assert steps("last/last.ckpt") == 6  # the end is saved though it is no multiple of 4

    assert lit(*every, "--checkpoint.dirpath", "all", "--checkpoint.keep", "all") == 0
    files = {path.name: steps(path) for path in Path("all").glob("*.ckpt")}
    assert files == {"step-4.ckpt": 4, "step-6.ckpt": 6, "last.ckpt": 6}


def test_a_run_that_ends_early_is_saved_too(lit):
    assert lit("--trainer.max_steps", "-1", "--trainer.max_epochs", "1") == 0
    (path,) = Path("checkpoints").glob("*/last.ckpt")
    assert steps(path) == 8


def test_no_checkpoints_if_none_are_wanted(lit):
    assert lit("--trainer.enable_checkpointing", "false") == 0
    assert not list(Path().rglob("*.ckpt"))


def test_a_save_that_fails_leaves_the_former_checkpoint(lit, monkeypatch, capsys):
    assert lit("--trainer.max_steps", "2", "--checkpoint.dirpath", "run") == 0
    before = Path("run/last.ckpt").read_bytes()
    files = set(Path("run").iterdir())

    def full(checkpoint, stream):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    capsys.readouterr()
    options = ("--trainer.max_steps", "4", "--ckpt_path", "run/last.ckpt")
    assert lit(*options) == 2
    assert "last.ckpt: cannot be written (No space left on device)" in capsys.readouterr().err
    assert Path("run/last.ckpt").read_bytes() == before
    assert {path.name for path in set(Path("run").iterdir()) - files} <= {"config-resumed.yaml"}


def test_what_a_killed_save_left_goes_when_the_run_is_begun_anew(lit):
    assert lit("--trainer.max_steps", "1") == 0
    (folder,) = Path("checkpoints").iterdir()
    dead = subprocess.Popen(["true"])
    dead.wait()
    name = part_path(folder / "last.ckpt").name
    part = folder / name.replace(f".{os.getpid()}.part", f".{dead.pid}.part")
    part.write_bytes(b"half")
    assert lit("--trainer.max_steps", "1") == 0
    assert len(list(Path("checkpoints").iterdir())) == 2 and not part.exists()


def test_a_run_on_a_dataset_with_slashes_in_its_name_has_one_folder():
    spec = DatasetSpec(name="minari:D4RL/door/human-v2", observation_dim=1)
    assert run_name(LightningModule(), spec) == "LightningModule-minari-D4RL-door-human-v2-seed0"


@pytest.mark.parametrize("room", [100, 3000])
def test_a_full_disk_is_one_line_whatever_torch_makes_of_it(lit, monkeypatch, capsys, room):
    """A limit of files' sizes refuses real writes, in the middle of torch's own writer."""
    assert lit("--trainer.max_steps", "2", "--checkpoint.dirpath", "run") == 0
    before = Path("run/last.ckpt").read_bytes()
    save, limits = torch.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(checkpoint, stream):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            save(checkpoint, stream)
            stream.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(torch, "save", limited)
    capsys.readouterr()
    assert lit("--trainer.max_steps", "4", "--ckpt_path", "run/last.ckpt") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "last.ckpt: cannot be written (File too large)" in said
    assert Path("run/last.ckpt").read_bytes() == before and not list(Path("run").glob(".*.part"))


def test_a_figure_that_cannot_be_written_costs_no_run_its_end(lit, capsys):
    Path("run").mkdir()
    Path("run/figures").write_text("in the way")
    assert lit("--checkpoint.dirpath", "run") == 0
    said = capsys.readouterr().out
    assert "figures/training_curves.png: cannot be written (File exists)" in said
    assert said.endswith("reached trainer.max_steps at step 6 of 6\n")


def test_checkpoints_are_written_beside_the_former_ones(lit, monkeypatch):
    """Not in the folder for temporary files, from where another file system gets a copy."""
    monkeypatch.setattr(tempfile, "mkstemp", None)
    assert lit("--checkpoint.dirpath", "run") == 0
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 6


def test_a_folder_that_cannot_be_made_is_one_line(lit, capsys):
    Path("file").write_text("kept")
    assert lit("--checkpoint.dirpath", "file/run") == 2
    assert "file/run: cannot be made (Not a directory)" in capsys.readouterr().err


LEARNS = ("--model.init_args.learning_rate", "0.05", "--trainer.val_check_interval", "2")
LEARNS += ("--trainer.log_every_n_steps", "1")
BEST = (*LEARNS, "--checkpoint.keep", "best", "--checkpoint.every_n_train_steps", "3")


def losses(path):
    """(step, sum of the losses on held-out episodes) of each validation."""
    state = torch.load(path, weights_only=True)["callbacks"]["Curves"]["history"]
    curves = [line for name, line in state.items() if name.startswith("val/loss/")]
    return [(points[0][0], sum(v for _, v in points)) for points in zip(*curves, strict=True)]


def test_keeps_the_best_validation_and_resumes_to_the_bit(lit, same_state, capsys):
    """A learning rate so high that the best validation is not the last."""
    end = ("--trainer.max_steps", "14")
    assert lit(*BEST, *end, "--checkpoint.dirpath", "whole") == 0
    found = losses("whole/last.ckpt")
    step, least = min(found, key=lambda point: point[1])
    assert len(found) == 7 and step not in (2, 14)
    assert f"best.ckpt: step {step}, best, lowest val/loss {least:.4g}." in capsys.readouterr().out
    assert steps("whole/best.ckpt") == step and steps("whole/last.ckpt") == 14

    assert lit(*BEST, "--trainer.max_steps", str(step + 1), "--checkpoint.dirpath", "cut") == 0
    assert lit(*BEST, *end, "--ckpt_path", "cut/last.ckpt") == 0
    same_state("whole/last.ckpt", "cut/last.ckpt")
    same_state("whole/best.ckpt", "cut/best.ckpt")

    words = ["--episodes", "2", "--output", "record.json"]
    for name, rule in (("best", "best, lowest val/loss"), ("last", "last")):
        assert main(["evaluate", "--ckpt_path", f"whole/{name}.ckpt", *words]) == 0
        assert json.loads(Path("record.json").read_text())["checkpoint_rule"] == rule


def test_what_the_best_goes_by_may_be_named(lit, capsys, monkeypatch):
    highest = ("--checkpoint.monitor", "val/loss/actor", "--checkpoint.mode", "max")
    assert lit(*BEST, *highest, "--checkpoint.dirpath", "named") == 0
    step, _ = max(losses("named/last.ckpt"), key=lambda point: point[1])
    assert steps("named/best.ckpt") == step
    misspelt = ("--checkpoint.monitor", "val/los/actor", "--checkpoint.dirpath", "misspelt")
    with monkeypatch.context() as patch:
        patch.setattr(BCModule, "after_step", lambda self: pytest.fail("it trains"))
        assert lit(*BEST, *misspelt) == 2
    assert capsys.readouterr().err.endswith(
        "checkpoint.monitor 'val/los/actor' is no metric of the validations of BCModule. Did you"
        " mean 'val/loss/actor'? Use val/actor/squared_error, val/loss, val/loss/actor.\n"
    )
    assert lit("--checkpoint.monitor", "val/loss/actor") == 2
    assert "it goes with keep: best" in capsys.readouterr().err
    assert lit(*BEST, "--data.init_args.validation_fraction", "0") == 2
    assert "checkpoint.keep best goes by validations, of which" in capsys.readouterr().err
    assert lit(*BEST, "--trainer.val_check_interval", "100", "--trainer.max_steps", "3") == 0
    assert "no best.ckpt: there was no validation" in capsys.readouterr().out


def test_a_resumed_run_without_its_best_checkpoint_says_so(lit, capsys):
    assert lit(*BEST, "--trainer.max_steps", "2", "--checkpoint.dirpath", "run") == 0
    assert lit(*BEST, "--ckpt_path", "run/last.ckpt", "--checkpoint.dirpath", "elsewhere") == 0
    said = capsys.readouterr().out
    assert f"best.ckpt of step 2 is not in {Path('elsewhere').resolve()}: the next" in said
    assert Path("elsewhere/best.ckpt").is_file()
