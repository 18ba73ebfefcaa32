"""A fit that is stopped while it makes a table ends as an unbroken one, wherever it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_offrl.modules import LDCQStage1Module, LDCQStage3Module
from lit_offrl.modules.ldcq import tables

OPTIONS = {
    1: {"width": 8, "horizon": 3, "gru_layers": 1},
    2: {"width": 8, "widths": [8, 4, 8], "stage1": "one/last.ckpt"},
    3: {"state_hidden": [8], "latent_hidden": [8], "joined": [8], "stage2": "two/last.ckpt"},
}


@pytest.fixture
def words(command):
    """Build arguments of a small fit of a stage, with its checkpoint and its tables by its name."""

    def build(stage, name, *more, **options):
        given = (OPTIONS[stage] | options).items()
        chosen = [word for key, value in given for word in (f"--model.init_args.{key}", str(value))]
        run = ("--data.init_args.data_dir", f"{name}-data", "--checkpoint.dirpath", name)
        return command(*chosen, *run, *more, module=f"LDCQStage{stage}Module")

    return build


@pytest.fixture
def fit(words):
    """Run such a fit in this process; returns the exit code."""
    from lit_offrl.__main__ import main

    return lambda *given, **options: main(words(*given, **options))


def files(name, pattern):
    return {path.name: path.read_bytes() for path in Path(f"{name}-data").rglob(pattern)}


@pytest.mark.parametrize(("stage", "number"), [(2, signal.SIGINT), (3, signal.SIGTERM)])
def test_a_signal_stops_between_two_chunks(fit, capsys, monkeypatch, same_state, stage, number):
    """The second stage encodes snippets before its first step, the third samples latents in it."""
    monkeypatch.setattr(tables, "_CHUNK", 100)
    monkeypatch.setattr(tables, "CHAINS", 1000)
    kind, name, what = {
        2: (LDCQStage1Module, "posterior", "encoding snippets"),
        3: (LDCQStage3Module, "propose", "sampling latents"),
    }[stage]
    options = {3: {"num_latents": 10}}.get(stage, {})
    compute, made, last = getattr(kind, name), [], 0

    def counting(self, given, *more):
        made.append(len(given if stage == 3 else given.rows))
        if len(made) == last:
            signal.raise_signal(number)
        return compute(self, given, *more)

    for earlier, run in ((1, "one"), (2, "two"))[: stage - 1]:
        assert fit(earlier, run) == 0
    monkeypatch.setattr(kind, name, counting)
    assert fit(stage, "whole", **options) == 0
    chunks, last = made.copy(), 4
    made.clear()
    capsys.readouterr()
    assert fit(stage, "cut", **options) == 128 + number
    assert capsys.readouterr().err == (
        f"lit-offrl: stopped by {number.name} after step 0; {what} goes on with the same command.\n"
    )
    assert made == chunks[:4] and len(chunks) > 5 and not Path("cut/last.ckpt").exists()
    assert len(files("cut", "*.npy")) == len(files("whole", "*.npy")) - 1

    last = 0
    made.clear()
    assert fit(stage, "cut", **options) == 0
    assert made == chunks[4:]
    assert files("cut", "*.npy") == files("whole", "*.npy") and not files("cut", "*.part*")
    same_state("whole/last.ckpt", "cut/last.ckpt")


def start_and_signal(words, number, chunks):
    """Start a fit, send a signal once there are so many chunks; return exit code and stderr."""
    command = [sys.executable, "-m", "lit_offrl", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        deadline = time.monotonic() + 600
        while sum(map(len, files("cut", "candidates*.sums").values())) < 4 * chunks:
            assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=400)
    return process.returncode, errors


@pytest.mark.slow
def test_kill_9_and_then_sigterm_to_one_of_two_processes(fit, words, same_state):
    """Six chunks of latents, the first of which one process makes, and then one of two."""
    assert fit(1, "one") == 0 and fit(2, "two") == 0
    assert fit(3, "whole", num_latents=700) == 0

    cut = words(3, "cut", num_latents=700)
    code, _ = start_and_signal(cut, signal.SIGKILL, 1)
    assert code == -signal.SIGKILL and not files("cut", "candidates*.npy")
    pair = ("--trainer.strategy", "ddp", "--trainer.devices", "2")
    code, errors = start_and_signal([*cut, *pair], signal.SIGTERM, 2)
    assert code == 128 + signal.SIGTERM
    assert errors.endswith(
        "stopped by SIGTERM after step 0; sampling latents goes on with the same command.\n"
    )
    assert not files("cut", "candidates*.npy") and not Path("cut/last.ckpt").exists()

    assert fit(3, "cut", num_latents=700) == 0
    assert files("cut", "*.npy") == files("whole", "*.npy")
    same_state("whole/last.ckpt", "cut/last.ckpt")
