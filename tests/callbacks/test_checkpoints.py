"""Which files a run writes, and when."""

import errno
import os
import subprocess
import tempfile
from pathlib import Path

import torch

from lit_offrl.files import part_path


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


def test_checkpoints_are_written_beside_the_former_ones(lit, monkeypatch):
    """Not in the folder for temporary files, from where another file system gets a copy."""
    monkeypatch.setattr(tempfile, "mkstemp", None)
    assert lit("--checkpoint.dirpath", "run") == 0
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 6


def test_a_folder_that_cannot_be_made_is_one_line(lit, capsys):
    Path("file").write_text("kept")
    assert lit("--checkpoint.dirpath", "file/run") == 2
    assert "file/run: cannot be made (Not a directory)" in capsys.readouterr().err
