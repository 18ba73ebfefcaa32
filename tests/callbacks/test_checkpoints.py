"""Which files a run writes, and when."""

from pathlib import Path

import torch


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
