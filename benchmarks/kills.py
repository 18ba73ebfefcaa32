"""Fits that SIGKILL ends at random steps, and that go on from their last checkpoints.

Each is a process of its own that runs ``lit-offrl fit``; nothing can tell it to save, and the next
one is given ``--ckpt_path`` alone beside the options of the first. However often it was killed and
however many steps a call has, it ends as the unbroken run with a step a call: weights, optimiser,
curves and counters are equal to the bit on a CPU.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.signals import write_pendulum

# Ends itself in the training step of that number, its batches drawn, its weights half-way.
_CODE = """
import os, signal, sys
from lit_offrl.__main__ import main
from lit_offrl.modules import OfflineModule

last, training_step = int(sys.argv[1]), OfflineModule.training_step

def dying(self, *args):
    if self.trainer.global_step == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return training_step(self, *args)

OfflineModule.training_step = dying
sys.exit(main(sys.argv[2:]))
"""
_NEVER = -1
_STATE = ("state_dict", "optimizer_states", "callbacks", "loops", "global_step", "epoch")
_DENOISER = "--model.init_args.width 16 --model.init_args.blocks 1 --model.init_args.hidden [8]"
METHODS: Mapping[str, str] = {
    "BCModule": "--model.init_args.hidden [32]",
    "TD3BCModule": "--model.init_args.hidden [32]",
    "IQLModule": "--model.init_args.hidden [32] --model.init_args.dropout 0.1"
    " --model.init_args.decay cosine",
    "IDQLModule": f"{_DENOISER} --model.init_args.num_samples 3",
    "LDCQStage1Module": "--model.init_args.horizon 5 --model.init_args.width 16"
    " --model.init_args.gru_layers 1 --model.init_args.latent_dim 2",
    "DVFModule": f"{_DENOISER} --model.init_args.latents 4 --model.init_args.history 2"
    " --model.init_args.num_samples 2 --model.init_args.diffusion_steps 8"
    " --model.init_args.sampling_steps 2",
}
"""Methods by name, with options that make them small."""


@dataclass(frozen=True)
class KillsResult:
    """What a fit that was killed several times ended in.

    Attributes:
        method: name of the module.
        steps_per_call: of the killed fit; the unbroken one has 1.
        steps: of either.
        kills: the steps within which SIGKILL came, one a process.
        resumed: the steps of the checkpoints from which it went on; 0 where there was none yet.
        violations: lines about what differs from the unbroken fit.
    """

    method: str
    steps_per_call: int
    steps: int
    kills: tuple[int, ...]
    resumed: tuple[int, ...]
    violations: list[str] = field(default_factory=list)


def run_kills(
    *,
    methods: Mapping[str, str] = METHODS,
    lengths: tuple[int, ...] = (1, 100),
    times: int = 4,
    steps: int = 400,
    seed: int = 0,
) -> Iterator[KillsResult]:
    """Fit each method unbroken, then with calls of each length, killed so many times.

    Args:
        methods: names of modules, with further options.
        lengths: steps of a call.
        times: kills of a fit, each at a random step.
        steps: of a fit; checkpoints come every quarter of them.
        seed: of data and kills.
    """
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pendulum(folder / "pendulum.hdf5", seed)
        for method, options in methods.items():
            words = [*_words(folder, method, steps), *options.split()]
            _fit(words, folder / method, steps_per_call=1)
            for length in lengths:
                kills = tuple(sorted(draw.sample(range(1, steps), times)))
                run = folder / f"{method}-{length}"
                resumed = []
                for end in (*kills, _NEVER):
                    resumed.append(_fit(words, run, length, end))
                yield KillsResult(
                    *(method, length, steps, kills, tuple(resumed[1:])),
                    _violations(folder / method, run, kills, resumed),
                )


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Name the places where two nested structures of tensors and plain types differ."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [path]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{path}: keys {set(one) ^ set(other)}"]
        return [x for key in one for x in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{path}: lengths {len(one)}, {len(other)}"]
        pairs = enumerate(zip(one, other, strict=True))
        return [x for i, pair in pairs for x in differences(*pair, f"{path}[{i}]")]
    return [] if one == other else [f"{path}: {one} and {other}"]


def state_of(path: Path) -> dict[str, Any]:
    """Read of a checkpoint what a fit has to end in: weights, optimiser, curves, counters."""
    checkpoint = torch.load(path, weights_only=True)
    return {part: checkpoint[part] for part in _STATE}


def _violations(whole: Path, cut: Path, kills: tuple[int, ...], resumed: list[int]) -> list[str]:
    unbroken, ended = (state_of(run / "last.ckpt") for run in (whole, cut))
    found = [f"{cut.name}: {line}" for line in differences(unbroken, ended)]
    curves = [(run / "curves.csv").read_text() for run in (whole, cut)]
    if sorted(curves[0].splitlines()) != sorted(curves[1].splitlines()):
        found.append(f"{cut.name}: curves.csv differs")
    found += [
        f"{cut.name}: killed in step {kill} and gone on with from step {step}"
        for kill, step in zip(kills, resumed[1:], strict=True)
        if step > kill
    ]
    return found


def _words(folder: Path, method: str, steps: int) -> list[str]:
    argv = ["fit", "--model", method, "--data", "PyBulletDataModule", "--data.init_args.dataset"]
    argv += [str(folder / "pendulum.hdf5"), "--data.init_args.batch_size", "16"]
    argv += ["--data.init_args.validation_batches", "2", "--trainer.accelerator", "cpu"]
    argv += ["--trainer.max_steps", str(steps), "--trainer.log_every_n_steps", str(steps // 4)]
    argv += ["--trainer.val_check_interval", str(steps // 3), "--trainer.logger", "false"]
    argv += ["--trainer.enable_progress_bar", "false", "--evaluation.episodes", "0"]
    return [*argv, "--checkpoint.every_n_train_steps", str(steps // 4)]


def _fit(words: list[str], run: Path, steps_per_call: int, end: int = _NEVER) -> int:
    """Fit or go on until step ``end``; return the step of the checkpoint that it goes on from."""
    last = run / "last.ckpt"
    place = ["--ckpt_path", str(last)] if last.exists() else ["--checkpoint.dirpath", str(run)]
    begin = int(state_of(last)["global_step"]) if last.exists() else 0
    length = ["--model.init_args.steps_per_call", str(steps_per_call)]
    done = subprocess.run(
        [sys.executable, "-c", _CODE, str(end), *words, *length, *place],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=run.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != (0 if end == _NEVER else -signal.SIGKILL):
        raise RuntimeError(f"{run.name}, exit code {done.returncode}: {done.stderr[-2000:]}")
    return begin
