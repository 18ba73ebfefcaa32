"""DVF's training step, part by part, as a share of the machine's matrix-product peak."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import matrix_peak, measure, product_speed
from benchmarks.made_up import Settings, make_dataset, make_module, settings
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import FutureStateBatch
from lit_offrl.modules import DVFModule
from lit_offrl.nets import PerceiverDenoiser

Precision = Literal["32-true", "bf16-mixed"]

PARTS = ("occupancy", "reward", "q", "actor")


@dataclass(frozen=True)
class StepPart:
    """Forward and backward of one loss, or the optimiser, for a whole batch.

    ``measured_rows`` is less than the batch where a few rows were timed and the rest extrapolated.
    """

    name: str
    seconds: float
    flops: float
    measured_rows: int
    repeats: int


@dataclass(frozen=True)
class StepResult:
    """A step of Algorithm 1, all losses in one; ``share`` is its FLOP/s over ``peak``.

    A config with ``values: cached`` never takes it: then ``warmup_seconds`` is a step before the
    values are sampled, and ``row_seconds`` the sampling of one row's; else both are None.
    """

    size: str
    precision: str
    batch_size: int
    parts: list[StepPart]
    seconds: float
    flops: float
    peak: float
    share: float
    narrow_peak: float
    """FLOP/s of a product as narrow as the model's: all the batch's latents by width × width."""
    warmup_seconds: float | None = None
    row_seconds: float | None = None
    consumers: dict[str, float] = field(default_factory=dict)
    """Share of a step's time by operation, the largest first."""


def run_step(
    size: str,
    plan: Settings,
    *,
    device: torch.device,
    precision: Precision = "32-true",
    seed: int = 0,
    rows: int = 20_000,
    q_rows: int | None = None,
    budget: float = 3.0,
    profiled: bool = False,
) -> StepResult:
    """Time each part of a step, count its FLOPs, and divide by the peak of the same minutes.

    Args:
        size: what to call it.
        plan: the module's options and the batch size.
        device: where to train.
        precision: as Lightning's.
        seed: of data, weights and noise.
        rows: rows of the made-up data.
        q_rows: rows of the batch to time the Q loss with; all if None. At the paper's size one Q
            loss takes minutes on a CPU. FLOPs are linear in rows, time is somewhat more than that,
            as more rows at once fit the caches less: what is extrapolated is a lower bound.
        budget: seconds of each measurement.
        profiled: whether to say what the time goes to.
    """
    half = precision == "bf16-mixed"
    dtype = torch.bfloat16 if half else torch.float32
    peak = matrix_peak(device, dtype, budget=budget / 4)
    width, latents = plan.module["width"], plan.module["latents"]
    narrow = product_speed(
        plan.batch_size * latents, width, width, device, dtype, budget=budget / 4
    )
    dataset = make_dataset(rows, seed)
    # every part is timed, also Q, which the quick overlay does without
    online = plan.module | {"values": "online", "warmup_steps": 0, "advantage": "q"}
    module = make_module(online, dataset, device, seed)
    batch = _draw(module, dataset, plan.batch_size, device, seed)
    optimizer = module.configure_optimizers()
    module.seed_noise(0)

    def loss(name: str, some: FutureStateBatch) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            value = getattr(module, f"{name}_loss")(some)
        value.backward()

    def update() -> None:
        module.configure_gradient_clipping(optimizer, plan.gradient_clip, "norm")
        optimizer.step()
        module.after_step()

    batches = dict.fromkeys(PARTS, batch)
    if q_rows is not None:
        batches["q"] = FutureStateBatch._make(
            None if part is None else part[:q_rows] for part in batch
        )
    parts = []
    for name, some in batches.items():
        run, taken = partial(loss, name, some), len(some.observations)
        scale = plan.batch_size / taken
        flops = count_flops(run)  # warms up, too
        timing = measure([run], device, budget=budget)[0]
        parts.append(StepPart(name, timing.seconds * scale, flops * scale, taken, timing.repeats))
    update()
    timing = measure([update], device, budget=budget)[0]
    parts.append(StepPart("optimiser", timing.seconds, 0.0, plan.batch_size, timing.repeats))

    def whole() -> None:
        optimizer.zero_grad()
        for name in PARTS:
            loss(name, batch)
        update()

    # once more: what disturbed the first measurement may be gone, and would flatter the step
    peak = max(peak, matrix_peak(device, dtype, budget=budget / 4))
    seconds, flops = sum(part.seconds for part in parts), sum(part.flops for part in parts)
    q_seconds = next(part.seconds for part in parts if part.name == "q")
    cached = plan.module.get("values") == "cached"
    return StepResult(
        size=size,
        precision=precision,
        batch_size=plan.batch_size,
        parts=parts,
        seconds=seconds,
        flops=flops,
        peak=peak,
        share=flops / seconds / peak,
        narrow_peak=narrow,
        warmup_seconds=seconds - q_seconds if cached else None,
        row_seconds=q_seconds / plan.batch_size if cached else None,
        consumers=time_consumers(whole, device) if profiled else {},
    )


def run_steps(
    *, device: torch.device, precision: Precision, seed: int, quick_only: bool, full: bool
) -> Iterator[StepResult]:
    """Quick size, and unless ``quick_only`` the paper's, on a CPU with 4 rows of its Q loss."""
    shared: dict[str, Any] = {"device": device, "precision": precision, "seed": seed}
    yield run_step("quick", settings("quick"), profiled=True, **shared)
    if not quick_only:
        few = None if full or device.type == "cuda" else 4
        yield run_step("paper", settings("paper"), q_rows=few, **shared)


def _draw(
    module: DVFModule, dataset: OfflineDataset, batch_size: int, device: torch.device, seed: int
) -> FutureStateBatch:
    bound = module.view().bind(dataset, device)
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(bound.rows), (batch_size,), generator=generator).to(device)
    uniforms = torch.rand(batch_size, 1, dtype=torch.float64, generator=generator)
    return bound.batch(bound.rows[index], uniforms.to(device))


def count_flops(run: Callable[[], object]) -> float:
    """FLOPs of matrix products that the model needs, forward and backward.

    Attention is counted by its plain products, since PyTorch does not know the FLOPs of its fused
    CPU kernel, and without the padding by which a CPU attends for several rows at once.
    """

    def unpadded(_: PerceiverDenoiser, states: int, samples: int) -> tuple[int, int, int]:
        return states, samples, 1

    counter = FlopCounterMode(display=False)
    with patch.object(PerceiverDenoiser, "_grid", unpadded), sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return float(counter.get_total_flops())


def time_consumers(
    run: Callable[[], object], device: torch.device, most: int = 8
) -> dict[str, float]:
    """Share of the time by operation, measured by PyTorch's profiler after a warm-up."""
    run()
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as counted:
        run()
    spent: dict[str, float] = {}
    for event in counted.key_averages():
        if event.device_type == torch.autograd.DeviceType.CPU:  # kernels are inside operations
            time = event.self_device_time_total if cuda else event.self_cpu_time_total
            spent[event.key.removeprefix("aten::").lstrip("_")] = float(time)
    total = sum(spent.values())
    largest = sorted(spent, key=spent.__getitem__, reverse=True)[:most]
    return {name: spent[name] / total for name in largest}
