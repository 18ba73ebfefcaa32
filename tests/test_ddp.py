"""Two processes started by the real command line; the contract tests compare weights by module."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_offrl.evaluation.record import EvaluationRecord


@pytest.fixture
def launcher():
    """The console script, in which Lightning finds its own name by another way than with -m."""
    script = Path(sys.executable).with_name("lit-offrl")
    return [str(script)] if script.exists() else [sys.executable, "-m", "lit_offrl"]


@pytest.mark.slow
def test_two_processes_match_one_and_share_the_episodes(launcher, lit, command):
    options = ("--trainer.max_steps", "12", "--trainer.val_check_interval", "4")
    # an odd number of held-out rows, of which the processes get different shares
    options += ("--data.init_args.validation_fraction", "0.15")
    options += ("--evaluation.episodes", "3", "--trainer.log_every_n_steps", "4")
    pair = ("--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.init_args.batch_size")
    words = command(*options, *pair, "32", "--checkpoint.dirpath", "two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, *words], capture_output=True, text=True, timeout=1000, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Pendulum-v1, 3 episodes") == 1  # one process speaks for both

    assert lit(*options, "--checkpoint.dirpath", "one") == 0
    two, one = (torch.load(f"{name}/last.ckpt", weights_only=True) for name in ("two", "one"))
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=1e-5, atol=1e-6)
    curves = [state["callbacks"]["Curves"]["history"]["val/loss/actor"] for state in (two, one)]
    torch.testing.assert_close(*map(torch.tensor, curves), rtol=1e-4, atol=1e-5)

    records = [EvaluationRecord.load(f"{name}/evaluation.json") for name in ("two", "one")]
    assert records[0].episodes == records[1].episodes == (0, 1, 2)
    torch.testing.assert_close(*(torch.tensor(r.returns) for r in records), rtol=1e-4, atol=1e-2)


def test_predictions_of_two_processes_cover_each_row_once(lit, folder):
    import numpy as np

    from lit_offrl.__main__ import main

    assert lit("--checkpoint.dirpath", "run") == 0
    words = ["predict", "--ckpt_path", "run/last.ckpt", "--trainer.accelerator", "cpu"]
    assert main(words) == 0
    assert main([*words, "--trainer.strategy", "ddp_fork", "--trainer.devices", "2"]) == 0
    with np.load("predictions.npz") as alone:
        parts = [np.load(f"predictions.rank{rank}.npz")["observations"] for rank in (0, 1)]
        np.testing.assert_array_equal(np.concatenate(parts), alone["observations"])
