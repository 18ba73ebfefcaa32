"""LDCQ's VAE step beside the machine's matrix-product peak, and in bfloat16 beside float32."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import clock, matrix_peak
from lit_offrl.datasets.views import SnippetBatch
from lit_offrl.modules import LDCQStage1Module

SHAPES = {"maze2d": (4, 2), "AntMaze": (29, 8)}
"""Numbers of a state and of an action."""
HORIZON, BATCH = 30, 128
AUTHORS_LAYERS = 4
"""Of their GRU, in the code; the paper has 2."""
AUTHORS = {"maze2d": 1.087, "AntMaze": 1.349}
"""Seconds of a step of the authors' code, one thread of such a machine, with their layers."""


@dataclass(frozen=True)
class VAEResult:
    """A whole step: losses, gradients and optimiser, in float32 and in bfloat16 (``half``).

    ``loss`` and ``half_loss`` are those of the last step, after the same number of them from the
    same weights with the same noise and batch. bfloat16 is None where its products are slower here.
    """

    shape: str
    layers: int
    batch_size: int
    horizon: int
    steps: int
    seconds: float
    flops: float
    peak: float
    share: float
    half_seconds: float | None
    half_peak: float
    loss: float
    half_loss: float | None
    authors_seconds: float | None


def run_vae(
    shape: str,
    layers: int,
    *,
    device: torch.device,
    seed: int = 0,
    steps: int = 5,
    batch_size: int = BATCH,
    horizon: int = HORIZON,
    width: int = 256,
    budget: float = 1.0,
) -> VAEResult:
    """Time steps on one made-up batch, float32 and bfloat16 in turns.

    With one thread on a CPU by the process's own time, which other processes do not lengthen.

    Args:
        shape: of ``SHAPES``.
        layers: of the GRU.
        device: where to train.
        seed: of weights, data and noise.
        steps: timed in each precision, after one that warms up.
        batch_size: snippets of a step.
        horizon: steps of a snippet.
        width: of all layers.
        budget: seconds for each peak.
    """
    peak = matrix_peak(device, torch.float32, budget=budget)
    half_peak = matrix_peak(device, torch.bfloat16, budget=budget)
    sizes = {"horizon": horizon, "gru_layers": layers, "width": width, "seed": seed}
    torch.manual_seed(seed)
    batch = _make_batch(shape, batch_size, horizon, device)
    modules = [LDCQStage1Module(*SHAPES[shape], **sizes) for _ in range(2)]  # type: ignore[arg-type]
    modules[1].load_state_dict(modules[0].state_dict())
    # on the CPU, whose GRU is made of plain products; cuDNN's are none that could be counted
    with FlopCounterMode(display=False) as counter:
        modules[0].seed_noise(0)
        own = SnippetBatch._make(None if part is None else part.cpu() for part in batch)
        torch.stack(list(modules[0].losses(own).values())).sum().backward()
    flops = float(counter.get_total_flops())
    runs = range(2 if half_peak > peak else 1)
    both = [modules[half].to(device) for half in runs]
    optimizers = [module.configure_optimizers() for module in both]
    taken: list[list[float]] = [[], []]
    losses = [torch.zeros(()), torch.zeros(())]
    for step in range(steps + 1):
        for half in runs:
            before = _clock(device)
            both[half].seed_noise(step)
            with torch.autocast(device.type, torch.bfloat16, enabled=bool(half)):
                loss = torch.stack(list(both[half].losses(batch).values())).sum()
            optimizers[half].zero_grad()
            loss.backward()
            optimizers[half].step()
            taken[half].append(_clock(device) - before)
            losses[half] = loss.detach()
    seconds = median(taken[0][1:])
    # once more: what disturbed the first measurement may be gone, and would flatter the step
    peak = max(peak, matrix_peak(device, torch.float32, budget=budget))
    known = device.type == "cpu" and layers == AUTHORS_LAYERS
    return VAEResult(
        shape=shape,
        layers=layers,
        batch_size=batch_size,
        horizon=horizon,
        steps=steps,
        seconds=seconds,
        flops=flops,
        peak=peak,
        share=flops / seconds / peak,
        half_seconds=median(taken[1][1:]) if len(runs) == 2 else None,
        half_peak=half_peak,
        loss=float(losses[0]),
        half_loss=float(losses[1]) if len(runs) == 2 else None,
        authors_seconds=AUTHORS[shape] if known else None,
    )


def run_vaes(*, device: torch.device, seed: int, quick_only: bool) -> Iterator[VAEResult]:
    """Both shapes with the authors' layers and with the paper's; one of them if ``quick_only``."""
    steps = 5 if device.type == "cpu" else 100
    for shape in SHAPES:
        for layers in (AUTHORS_LAYERS, 2):
            if not quick_only or (shape, layers) == ("maze2d", 2):
                yield run_vae(shape, layers, device=device, seed=seed, steps=steps)


def vae_table(results: Sequence[VAEResult]) -> Table:
    """One line a shape and number of layers."""
    first = results[0]
    title = f"LDCQ's VAE step, batch {first.batch_size}, H = {first.horizon}"
    heads = ("shape", "GRU layers", "float32", "of the peak", "authors' code")
    table = Table(*heads, "bfloat16", "loss apart", title=title)
    for r in results:
        authors = "" if r.authors_seconds is None else f"{r.authors_seconds * 1e3:,.0f} ms"
        half, apart = "slower", ""
        if r.half_seconds is not None and r.half_loss is not None:
            half = f"{r.half_seconds * 1e3:,.4g} ms ({r.seconds / r.half_seconds:.1f} ×)"
            apart = f"{abs(r.half_loss - r.loss) / abs(r.loss):.2%}"
        own = f"{r.seconds * 1e3:,.4g} ms"
        table.add_row(r.shape, f"{r.layers}", own, f"{r.share:.0%}", authors, half, apart)
    peaks = [
        max(peaks) / 1e9 for peaks in zip(*((r.peak, r.half_peak) for r in results), strict=True)
    ]
    table.caption = (
        f"peaks of square products here and now: float32 {peaks[0]:,.0f}, bfloat16 {peaks[1]:,.0f} "
        f"GFLOP/s\nloss apart: bfloat16's from float32's after {first.steps + 1} steps\n"
        "authors' code: one thread of a machine like that of the README's numbers"
    )
    return table


def _clock(device: torch.device) -> float:
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return time.process_time()
    return clock(device)


def _make_batch(shape: str, rows: int, horizon: int, device: torch.device) -> SnippetBatch:
    observation_dim, action_dim = SHAPES[shape]
    columns = {
        "observations": torch.randn(rows, horizon, observation_dim),
        "actions": 2 * torch.rand(rows, horizon, action_dim) - 1,
        "next_observations": torch.randn(rows, observation_dim),
        "terminals": torch.zeros(rows, dtype=torch.bool),
        "discounts": torch.ones(rows),
        "mask": torch.ones(rows, horizon, dtype=torch.bool),
        "rows": torch.arange(rows),
    }
    on_device = {name: column.to(device) for name, column in columns.items()}
    return SnippetBatch(**on_device, returns=None, goals=None, weights=None)
