"""Steps a second of every method's fit on a GPU, and shares of its peak: ``benchmarks gpu``.

What is measured is written for any device, so that tests run it on the CPU; no GPU is asked for
anything but to be fast.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import peer_ours
from benchmarks.machine import clock, matrix_peak
from benchmarks.peer_ours import Fit
from benchmarks.peers import SIZES, Precision, Sizes, stage_fits, write_rows

_WARM_UP = 20  # steps that are not timed; arithmetic is counted in the last of them
_TESTS = 240.0  # seconds for the contract tests at most
METHODS = {
    **{"IQL": "IQLModule", "BC": "BCModule", "TD3+BC": "TD3BCModule", "CQL": "CQLModule"},
    **{"AWR": "AWRModule", "ACG": "ACGModule", "ACD": "ACDModule", "IDQL": "IDQLModule"},
    **{"DQL": "DQLModule", "diffusion BC": "DiffusionBCModule"},
}
"""Methods on one-step transitions, with their defaults; LDCQ's stages and DVF come on top."""


@dataclass(frozen=True)
class FitSpeed:
    """Steps a second of a whole fit, and their share of the peak in that precision."""

    method: str
    precision: str
    batch_size: int
    steps: int
    steps_per_second: float
    flops: float
    peak: float
    share: float


@dataclass(frozen=True)
class ContractResult:
    """What pytest says of the contract tests that need a GPU."""

    code: int
    summary: str
    seconds: float


class _Timed(Callback):
    """Ends a fit after some seconds of steps, which it times once some have warmed up."""

    sees_calls = True

    def __init__(self, seconds: float) -> None:
        self._seconds, self._counter = seconds, FlopCounterMode(display=False)
        self._counting: int | None = None
        self._begin: float | None = None
        self._first = 0
        self.steps, self.taken, self.flops = 0, 0.0, 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Count, begin or end."""
        step = trainer.global_step
        if self._begin is not None:
            if time.perf_counter() - self._begin >= self._seconds:
                self.taken = clock(pl_module.device) - self._begin
                self.steps, trainer.should_stop = step - self._first, True
        elif self._counting is not None:
            self._counter.__exit__(None, None, None)
            self.flops = self._counter.get_total_flops() / (step - self._counting)
            self._first, self._begin = step, clock(pl_module.device)
        elif step >= _WARM_UP:
            self._counting = step
            self._counter.__enter__()


def run_fits(
    device: torch.device,
    *,
    sizes: Sizes = SIZES,
    methods: Sequence[str] = (),
    precisions: Sequence[Precision] = ("32-true", "bf16-mixed"),
    seconds: float = 3.0,
    seed: int = 0,
) -> Iterator[FitSpeed]:
    """Fit each method for some seconds by ``lit-offrl fit``'s own Trainer, rows on the device.

    Args:
        device: where to train.
        sizes: of rows and batches.
        methods: which, by name; all by default.
        precisions: of each.
        seconds: of each fit.
        seed: of the rows.
    """
    dtypes = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
    peaks = {each: matrix_peak(device, dtypes[each], budget=seconds / 4) for each in precisions}
    with tempfile.TemporaryDirectory() as folder:
        for name, fit in _fits(sizes, Path(folder), seed).items():
            if methods and name not in methods:
                continue
            for precision in precisions:
                yield _run_fit(name, fit, device, precision, seconds, peaks[precision])


def _fits(sizes: Sizes, folder: Path, seed: int) -> dict[str, Fit]:
    rows = write_rows(sizes, folder, seed).with_suffix(".hdf5")
    stages = stage_fits(sizes, folder, seed)
    fits = {name: Fit(kind, {}, rows, sizes.batch) for name, kind in METHODS.items()}
    return fits | {"LDCQ VAE": stages.vae, "LDCQ prior": stages.prior, "LDCQ Q": stages.q}


def _run_fit(
    name: str, fit: Fit, device: torch.device, precision: str, seconds: float, peak: float
) -> FitSpeed:
    timed, data = _Timed(seconds), fit.data()
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    options = {"accelerator": accelerator, "enable_progress_bar": False}
    peer_ours.trainer(fit, precision, timed, **options).fit(fit.module(data), data)
    speed = timed.steps / timed.taken
    share = timed.flops * speed / peak
    return FitSpeed(
        *(name, precision, fit.batch_size, timed.steps, speed, timed.flops, peak, share)
    )


def run_contract(words: Sequence[str] = ("tests/test_contract.py", "-m", "gpu")) -> ContractResult:
    """Run the tests that need a GPU, in a process of their own.

    Args:
        words: what pytest is to run, from the folder of the project.
    """
    begin = time.perf_counter()
    argv = [sys.executable, "-m", "pytest", "-q", *words]
    try:
        done = subprocess.run(
            argv,
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=_TESTS,
        )
    except subprocess.TimeoutExpired:
        return ContractResult(124, f"not done in {_TESTS:.0f} s", time.perf_counter() - begin)
    lines = [line for line in done.stdout.splitlines() if re.match(r"FAILED|ERROR|\d+ \w+", line)]
    said = "\n".join(lines) or (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return ContractResult(done.returncode, said, time.perf_counter() - begin)


def fits_table(results: Sequence[FitSpeed]) -> Table:
    """One line a method and precision."""
    heads = ("fit", "in", "batch", "steps/s", "GFLOP a step", "of the peak")
    table = Table(*heads, title="Fits, eager")
    for r in results:
        table.add_row(
            *(r.method, r.precision, f"{r.batch_size}", f"{r.steps_per_second:,.0f}"),
            *(f"{r.flops / 1e9:.3g}", f"{r.share:.1%}"),
        )
    peaks = {r.precision: f"{r.precision} {r.peak / 1e12:,.3g} TFLOP/s" for r in results}
    table.caption = (
        "by the wall's clock, with Lightning and its callbacks; cuDNN's GRUs are not counted\n"
        f"peak of square products here and now: {', '.join(peaks.values())}"
    )
    return table
