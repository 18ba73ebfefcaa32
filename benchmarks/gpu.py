"""Steps a second of every method's fit on a GPU, eager and as graphs: ``benchmarks gpu``.

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import peer_ours
from benchmarks.machine import clock, matrix_peak
from benchmarks.made_up import settings
from benchmarks.peer_ours import Fit
from benchmarks.peers import SIZES, Precision, Sizes, stage_fits, write_rows
from lit_offrl import modules
from lit_offrl.modules import graphs

_WARM_UP = 20  # steps that are not timed; arithmetic is counted in the last of them
_TESTS = 210.0  # seconds for the contract tests at most
_STAGES = ("LDCQStage1Module", "LDCQStage2Module", "LDCQStage3Module")
_NAMES = {"TD3BCModule": "TD3+BC", "DiffusionBCModule": "diffusion BC"}
METHODS = {
    _NAMES.get(kind, kind.removesuffix("Module")): kind
    for kind in modules.__all__
    if kind.endswith("Module") and kind not in ("OfflineModule", "ImageVAEModule", *_STAGES)
}
"""All methods that are trained on rows alone, by name; LDCQ's stages come on top.

The encoder of pictures is the one that is not here: rows of numbers are none of it.
"""


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
    graphs: bool = False
    """Whether the steps were replays of CUDA graphs."""


@dataclass(frozen=True)
class GraphsCheck:
    """What a fit by graphs comes to, beside one of eager steps."""

    method: str
    steps: int
    eager_because: str | None
    """Why there are no graphs, where there are none; the other numbers are then of eager steps."""
    difference: float
    """Largest difference of a weight from the eager fit's, in units of its tensor's largest."""
    resumes: bool
    """Whether a fit by graphs that was cut in its middle ends in the same bits."""


@dataclass(frozen=True)
class ContractResult:
    """What pytest says of the contract tests that need a GPU."""

    code: int
    summary: str
    seconds: float


class _Timed(Callback):
    """Ends a fit after some seconds of steps, which it times once some have warmed up."""

    sees_calls = True

    def __init__(self, seconds: float, counts: bool) -> None:
        self._counts, self._seconds = counts, seconds
        self._counter = FlopCounterMode(display=False)
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
            if self._counts:
                self._counter.__exit__(None, None, None)
                self.flops = self._counter.get_total_flops() / (step - self._counting)
            self._first, self._begin = step, clock(pl_module.device)
        elif step >= _WARM_UP:
            self._counting = step
            if self._counts:
                self._counter.__enter__()


def run_fits(
    device: torch.device,
    *,
    sizes: Sizes = SIZES,
    methods: Sequence[str] = (),
    precisions: Sequence[Precision] = ("32-true", "bf16-mixed"),
    seconds: float = 1.5,
    seed: int = 0,
) -> Iterator[FitSpeed]:
    """Fit each method for some seconds by ``lit-offrl fit``'s own Trainer, rows on the device.

    Where steps can be captured there is a second fit, by graphs; its arithmetic is the eager one's.

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
        for name, fit in make_fits(sizes, Path(folder), seed).items():
            if methods and name not in methods:
                continue
            for precision in precisions:
                eager = _run_fit(name, fit, device, precision, seconds, peaks[precision])
                yield eager
                if device.type in graphs.RECORDERS and _captures(fit):
                    yield _run_fit(name, fit, device, precision, seconds, eager.peak, eager)


def make_fits(sizes: Sizes, folder: Path, seed: int) -> dict[str, Fit]:
    """Write the rows, and return what is fitted to them, by the methods' names.

    Methods have their defaults, and DVF those of its small config.
    """
    rows = write_rows(sizes, folder, seed).with_suffix(".hdf5")
    stages = stage_fits(sizes, folder, seed)
    fits = {name: Fit(kind, {}, rows, sizes.batch) for name, kind in METHODS.items()}
    small = settings("quick")
    alone = small.module | {"policy_representation": "none"}  # the rows are of no known policies
    fits["DVF"] = fits["DVF"]._replace(options=alone, gradient_clip=small.gradient_clip)
    return fits | {"LDCQ VAE": stages.vae, "LDCQ prior": stages.prior, "LDCQ Q": stages.q}


def run_checks(
    device: torch.device,
    *,
    sizes: Sizes = SIZES,
    methods: Sequence[str] = (),
    steps: int = 200,
    seed: int = 0,
) -> Iterator[GraphsCheck]:
    """Fit each method eagerly, by graphs, and by graphs with a cut in the middle, in float32.

    Args:
        device: where to train.
        sizes: of rows and batches.
        methods: which, by name; all by default.
        steps: of each fit.
        seed: of the rows.
    """
    with tempfile.TemporaryDirectory() as folder:
        cut = str(Path(folder) / "cut.ckpt")
        for name, fit in make_fits(sizes, Path(folder), seed).items():
            if methods and name not in methods:
                continue
            eager, _ = _weights(fit, device, steps, graphs=False)
            whole, why = _weights(fit, device, steps)
            _weights(fit, device, steps // 2, kept=cut)
            resumed, _ = _weights(fit, device, steps, begun=cut)
            apart = [
                float((whole[key] - value).abs().max() / value.abs().max().clamp_min(1e-30))
                for key, value in eager.items()
                if value.is_floating_point() and value.numel()
            ]
            same = all(torch.equal(whole[key], value) for key, value in resumed.items())
            yield GraphsCheck(name, steps, why, max(apart), same)


def _weights(
    fit: Fit,
    device: torch.device,
    steps: int,
    *,
    graphs: bool | None = None,
    begun: str | None = None,
    kept: str | None = None,
) -> tuple[dict[str, Tensor], str | None]:
    """Weights after a fit from a checkpoint or the start, and why it had no graphs."""
    data = fit.data()
    module = _with(fit, graphs).module(data)
    # as a cut fit ends with its steps, so does each half of a whole one: both log there
    logged = {"max_steps": steps, "log_every_n_steps": 100}
    made = peer_ours.trainer(fit, "32-true", **_options(device), **logged)
    made.fit(module, data, ckpt_path=begun)
    if kept is not None:
        made.save_checkpoint(kept)
    return {key: value.cpu() for key, value in module.state_dict().items()}, module.eager_because


def _options(device: torch.device) -> dict[str, Any]:
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    return {"accelerator": accelerator, "enable_progress_bar": False}


def _with(fit: Fit, graphs: bool | None) -> Fit:
    return fit._replace(options=fit.options | {"cuda_graphs": graphs})


def _captures(fit: Fit) -> bool:
    return fit.module(fit.data()).eager_because is None


def _run_fit(
    name: str,
    fit: Fit,
    device: torch.device,
    precision: str,
    seconds: float,
    peak: float,
    eager: FitSpeed | None = None,
) -> FitSpeed:
    """Time a fit of eager steps or, beside one of those, by graphs."""
    timed, data = _Timed(seconds, counts=eager is None), fit.data()
    module = _with(fit, eager is not None).module(data)
    peer_ours.trainer(fit, precision, timed, **_options(device)).fit(module, data)
    flops = timed.flops if eager is None else eager.flops
    speed = timed.steps / timed.taken
    share = flops * speed / peak
    result = FitSpeed(name, precision, fit.batch_size, timed.steps, speed, flops, peak, share)
    return replace(result, graphs=eager is not None)


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
    heads = ("fit", "in", "steps", "batch", "steps/s", "of eager", "GFLOP a step", "of the peak")
    table = Table(*heads, title="Fits, eager and by CUDA graphs")
    eager = {(r.method, r.precision): r.steps_per_second for r in results if not r.graphs}
    for r in results:
        times = r.steps_per_second / eager[r.method, r.precision] if r.graphs else None
        table.add_row(
            *(r.method, r.precision, "graphs" if r.graphs else "eager", f"{r.batch_size}"),
            *(f"{r.steps_per_second:,.0f}", "" if times is None else f"{times:.3g} ×"),
            *(f"{r.flops / 1e9:.3g}", f"{r.share:.1%}"),
        )
    peaks = {r.precision: f"{r.precision} {r.peak / 1e12:,.3g} TFLOP/s" for r in results}
    table.caption = (
        "by the wall's clock, with Lightning and its callbacks; cuDNN's GRUs are not counted\n"
        f"peak of square products here and now: {', '.join(peaks.values())}"
    )
    return table


def checks_table(results: Sequence[GraphsCheck]) -> Table:
    """One line a method: how far graphs lead from eager steps, and whether they resume."""
    heads = ("fit", "steps", "largest difference of a weight", "resumed")
    table = Table(*heads, title="Fits by CUDA graphs beside eager ones, float32")
    for r in results:
        found = (f"{r.difference:.1e}", "to the bit" if r.resumes else "DIFFERS")
        table.add_row(r.method, f"{r.steps}", *found)
    eager = [f"{r.method}: {r.eager_because}" for r in results if r.eager_because is not None]
    table.caption = "\n".join([*eager, "differences in units of the largest weight of a tensor"])
    return table
