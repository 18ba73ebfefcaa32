"""What makes the sampling of DVF's futures cheap at the paper's size, and what values lose by it.

Time is of the paper's size, by timing one solver step of a few states and counting how often a step
of training does it. Quality is of a small model, trained here on the data that come with the
library: correlation and error of V against the returns of held-out episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from rich.table import Table
from torch import Tensor

from benchmarks.machine import matrix_peak, measure, processor_clock
from benchmarks.made_up import make_dataset, make_module, settings
from benchmarks.step import count_flops
from lit_offrl.datamodules import PyBulletDataModule
from lit_offrl.datasets.views import FutureStateBatch
from lit_offrl.diffusion import make_sampler
from lit_offrl.modules import DVFModule
from lit_offrl.modules.occupancy import History


@dataclass(frozen=True)
class Lever:
    """One way to sample futures; the defaults are the paper's."""

    name: str
    latents_per: str = "sample"
    num_samples: int = 32
    draws: Literal["independent", "antithetic"] = "independent"
    sampling_steps: int = 10
    half: bool = False
    naive: bool = False
    """Whether the condition is encoded for each sample and solver step."""
    cached: bool = False
    """Whether each row is valued once in a run of ``OPTIMISER_STEPS`` steps."""


OPTIMISER_STEPS, DATA_ROWS = 100_000, 60_000
"""The default length of a run, and the rows of a PyBullet dataset of the paper's mixed kind."""

TIMED_STATES = {"sample": 4, "state": 32}
"""States whose solver step is timed: so many that reading the weights does not count."""

LEVERS = (
    Lever("condition encoded for each sample and solver step", naive=True),
    Lever("condition encoded once a state and sample"),
    Lever("and latents per state", latents_per="state"),
    Lever("16 antithetic draws in place of 32", num_samples=16, draws="antithetic"),
    Lever("8 antithetic draws", num_samples=8, draws="antithetic"),
    Lever("5 solver steps in place of 10", sampling_steps=5),
    Lever("3 solver steps", sampling_steps=3),
    Lever("bf16 autocast", half=True),
    Lever("cached", cached=True),
    Lever("latents, 5 steps, antithetic", "state", 32, "antithetic", 5),
    Lever("… and bf16", "state", 32, "antithetic", 5, half=True),
    Lever("… and cached", "state", 32, "antithetic", 5, half=True, cached=True),
)


@dataclass(frozen=True)
class LeverResult:
    """Arithmetic and time of the values of a training step, and what the values are worth.

    ``share`` is of the peak of the precision it computes in; ``correlation`` and ``error`` (root
    mean square) are against discounted returns of held-out episodes, ``noise`` is the standard
    deviation of a value over repeated draws, all by the small model.
    """

    name: str
    flops: float
    seconds: float
    share: float
    correlation: float
    error: float
    noise: float


@dataclass
class _Costs:
    """Of encoding a state with one sample, and of a solver step of one sample, by precision."""

    encode: float
    denoise: float
    encode_flops: float
    denoise_flops: float
    peak: float


def run_levers(
    *,
    device: torch.device,
    seed: int = 0,
    steps: int = 1000,
    held_out: int = 200,
    repeats: int = 2,
    timed_states: Mapping[str, int] = TIMED_STATES,
    budget: float = 2.0,
    levers: Sequence[Lever] = LEVERS,
    paper: dict[str, Any] | None = None,
    small: dict[str, Any] | None = None,
) -> Iterator[LeverResult]:
    """Measure each lever.

    Args:
        device: where to compute.
        seed: of data, weights and noise.
        steps: of the small models' training.
        held_out: states that are valued for the quality.
        repeats: draws of each value.
        timed_states: states whose solver step is timed, with 32 samples each, by ``latents_per``.
        budget: seconds of each measurement.
        levers: what to measure.
        paper: options of the timed model in place of the paper's.
        small: options of the trained model in place of the quick overlay's.
    """
    plan = settings("paper")
    costs = {
        key: _time(plan.module | (paper or {}), *key, device, seed, timed_states[key[0]], budget)
        for key in dict.fromkeys((each.latents_per, each.half) for each in levers)
    }
    models = {
        kind: _train(kind, device, seed, steps, held_out, small or {})
        for kind in dict.fromkeys(each.latents_per for each in levers)
    }
    known: dict[Lever, tuple[float, float, float]] = {}
    for lever in levers:
        cost = costs[lever.latents_per, lever.half]
        valued: float = plan.batch_size
        if lever.cached:
            valued = DATA_ROWS / OPTIMISER_STEPS
        predicted = valued * lever.num_samples * lever.sampling_steps
        encoded = predicted if lever.naive else valued
        flops = encoded * cost.encode_flops + predicted * cost.denoise_flops
        seconds = encoded * cost.encode + predicted * cost.denoise
        way = replace(lever, name="", naive=False, cached=False)  # these change no value
        if way not in known:
            known[way] = _quality(way, *models[way.latents_per], repeats)
        quality = known[way]
        yield LeverResult(lever.name, flops, seconds, flops / seconds / cost.peak, *quality)


def _time(
    options: dict[str, Any],
    latents_per: str,
    half: bool,
    device: torch.device,
    seed: int,
    states: int,
    budget: float,
) -> _Costs:
    dataset = make_dataset(2000, seed)
    online = options | {"latents_per": latents_per, "values": "online", "warmup_steps": 0}
    module = make_module(online, dataset, device, seed).eval()
    view = module.view().bind(dataset, device)
    batch = view.batch(view.rows[:states], torch.zeros(states, 1, dtype=torch.float64))
    history = History.before(batch)
    condition = module.occupancy.condition(
        module.normalizer.normalize(batch.observations),
        torch.ones(states, 32, device=device),
        None if history is None else history.normalised(module.normalizer),
        None,
    )
    denoiser = module.occupancy.average
    noisy = torch.randn(states * 32, module.occupancy.state_dim, device=device)
    times = torch.tensor([5], device=device).expand(states * 32)
    dtype = torch.bfloat16 if half else torch.float32
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half):
        encoded = denoiser.encode(condition)
        runs: list[Callable[[], object]] = [
            partial(denoiser.encode, condition),
            partial(denoiser.denoise, noisy, times, encoded),
        ]
        encode_flops = count_flops(runs[0])
        both = count_flops(lambda: denoiser.denoise(noisy, times, denoiser.encode(condition)))
        denoise_flops = both - encode_flops
        encode, denoise = measure(runs, device, budget=budget, now=processor_clock)
    peak = matrix_peak(device, dtype, budget=budget, now=processor_clock)
    return _Costs(
        encode.fastest / states,
        denoise.fastest / states / 32,
        encode_flops / states,
        denoise_flops / states / 32,
        peak,
    )


def _train(
    latents_per: str,
    device: torch.device,
    seed: int,
    steps: int,
    held_out: int,
    small: dict[str, Any],
) -> tuple[DVFModule, FutureStateBatch]:
    """Train ρ, r and the cloned actor; return them with a batch of held-out rows."""
    data = PyBulletDataModule("hopper-bullet-bundled", batch_size=128, validation_fraction=0.15)
    options = settings("quick").module | small
    options |= {"latents_per": latents_per, "warmup_steps": steps, "values": "cached"}
    torch.manual_seed(seed)
    spec = data.spec
    assert spec.observation_dim is not None and spec.action_dim is not None
    module = DVFModule(
        spec.observation_dim, spec.action_dim, spec.action_low, spec.action_high,
        seed=seed, **options,
    )  # fmt: skip
    trainer = Trainer(
        max_steps=steps,
        accelerator=device.type,
        devices=1,
        gradient_clip_val=None,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    rows: list[FutureStateBatch] = []
    for batch in data.test_dataloader():
        rows.append(batch)
    joined = FutureStateBatch._make(
        None if parts[0] is None else torch.cat(parts) for parts in zip(*rows, strict=True)
    )
    chosen = torch.linspace(0, len(joined.rows) - 1, held_out).long()
    return module.to(device).eval(), FutureStateBatch._make(
        None if part is None else part[chosen].to(device) for part in joined
    )


@torch.no_grad()
def _quality(
    lever: Lever, module: DVFModule, batch: FutureStateBatch, repeats: int
) -> tuple[float, float, float]:
    """Return the correlation, the root mean square error, and the noise of a value."""
    occupancy, returns = module.occupancy, batch.returns
    assert returns is not None
    occupancy.draws = lever.draws
    occupancy.sampler = make_sampler("dpm++", num_steps=lever.sampling_steps, clip=1.0)

    def values(number: int) -> Tensor:
        with torch.autocast(module.device.type, torch.bfloat16, enabled=lever.half):
            drawn = module.value(
                batch.observations,
                history=History.before(batch),
                num_samples=lever.num_samples,
                seed=number,
            )
        return drawn.float()

    drawn = torch.stack([values(number) for number in range(repeats)])
    correlations = [torch.corrcoef(torch.stack([each, returns]))[0, 1] for each in drawn]
    return (
        float(torch.stack(correlations).mean()),
        float((drawn - returns).square().mean().sqrt()),
        float(drawn.var(dim=0).mean().sqrt()),
    )


def levers_table(results: Sequence[LeverResult]) -> Table:
    """One line a lever; times are beside the second line's, the library's way by default."""
    heads = ("values of a step", "TFLOP", "time", "of the peak", "correlation", "error", "noise")
    table = Table(*heads, title="DVF's futures at the paper's size")
    table.columns[0].no_wrap = True
    for r in results:
        table.add_row(
            r.name,
            f"{r.flops / 1e12:,.3g}",
            f"{r.seconds:,.3g} s",
            f"{r.share:.0%}",
            f"{r.correlation:.3f}",
            f"{r.error:.1f}",
            f"{r.noise:.1f}",
        )
    table.caption = (
        "values of 128 states: 32 samples in 10 solver steps unless a line says otherwise; times "
        "EXTRAPOLATED\nfrom one solver step of a few states; cached: "
        f"{DATA_ROWS:,} rows once, shared by {OPTIMISER_STEPS:,} steps;\nquality: of a small model "
        "on held-out episodes of the bundled data, noise: of a value over draws"
    )
    return table
