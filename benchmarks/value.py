"""Cost of one value: DVF's is flat in the horizon, an autoregressive model's grows with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.machine import clock, measure
from benchmarks.made_up import Size, make_dataset, make_module, settings
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.modules import DVFModule
from lit_offrl.modules.occupancy import History
from lit_offrl.nets import symexp


@dataclass
class Calls:
    """How often a denoiser was called, and for how many rows in all."""

    calls: int = 0
    rows: int = 0


@contextmanager
def counted(module: DVFModule) -> Iterator[Calls]:
    """Count the calls of the denoiser that samples."""
    counted, denoiser = Calls(), module.occupancy.average
    original = denoiser.denoise

    def denoise(x_t: Tensor, *rest: Any, **options: Any) -> Tensor:
        counted.calls += 1
        counted.rows += len(x_t)
        return original(x_t, *rest, **options)

    with patch.object(denoiser, "denoise", denoise):
        yield counted


@torch.no_grad()
def autoregressive_value(
    module: DVFModule,
    observations: Tensor,
    history: History | None,
    *,
    steps: int,
    num_samples: int,
    seed: int,
) -> Tensor:
    """V(s) from ``num_samples`` roll-outs of the same denoiser, one step (Δt = 1) at a time.

    What a one-step model of DVF's size has to do: a whole chain of denoising for each step, whose
    result is the next one's condition.

    Args:
        module: whose denoiser, actor and reward to use.
        observations: raw (B, o).
        history: raw, of B states.
        steps: length of a roll-out.
        num_samples: n, roll-outs a state.
        seed: names the noise.

    Returns:
        (B,) values.
    """

    actor = module.actor
    if actor is None:
        raise ValueError("a roll-out's rewards need the module's actor")

    def reward_of(at: Tensor) -> Tensor:
        return symexp(module.reward(torch.cat([at, actor(at)], dim=-1)).squeeze(-1))

    noise = ShardedGenerator(seed, device=module.device)
    states = module.normalizer.normalize(observations).repeat_interleave(num_samples, 0)
    if history is not None:
        history = History._make(
            None if part is None else part.repeat_interleave(num_samples, 0) for part in history
        ).normalised(module.normalizer)
    alive = torch.ones(len(states), dtype=torch.bool, device=module.device)
    total, discount = reward_of(states), 1.0
    for _ in range(steps):
        one = torch.ones_like(states[:, :1])
        condition = module.occupancy.condition(states, one, history, None)
        drawn, absorbed = module.occupancy.sample(condition, noise)
        if history is not None:
            history = history.advanced(states, actor(states))
        states, alive = drawn[:, 0], alive & ~absorbed[:, 0]
        discount *= module.gamma
        total = total + discount * torch.where(alive, reward_of(states), 0.0)
    return total.unflatten(0, (-1, num_samples)).mean(1)


@dataclass(frozen=True)
class ValueResult:
    """One horizon: seconds and denoiser calls of both, and how many times dearer the roll-out is.

    ``measured_steps`` is less than ``horizon`` where the roll-out's time is extrapolated.
    """

    size: str
    states: int
    num_samples: int
    horizon: int
    seconds: float
    calls: int
    autoregressive_seconds: float
    autoregressive_calls: int
    measured_steps: int
    ratio: float


def run_value(
    size: str,
    options: dict[str, Any],
    *,
    device: torch.device,
    seed: int = 0,
    states: int = 1,
    num_samples: int = 32,
    horizons: Sequence[int] = (10, 100, 1000),
    longest: int = 100,
    budget: float = 3.0,
) -> list[ValueResult]:
    """Time values of the same states with Δt cut off at each horizon, in both ways.

    Args:
        size: what to call it.
        options: of the module.
        device: where to compute.
        seed: of data, weights and noise.
        states: B, valued at once.
        num_samples: n, samples or roll-outs a state.
        horizons: largest Δt, rising.
        longest: roll-outs are really run up to so many steps, and extrapolated beyond.
        budget: seconds of each measurement of DVF's.
    """
    dataset = make_dataset(2000, seed)
    module = make_module(options, dataset, device, seed).eval()
    bound = module.view().bind(dataset, device)
    index = bound.rows[torch.linspace(0, len(bound.rows) - 1, states, device=device).long()]
    batch = bound.batch(index, torch.rand(states, 1, dtype=torch.float64).to(device))
    history = History.before(batch)

    def direct(horizon: int) -> Tensor:
        left = torch.full((states,), float(horizon), device=device)
        return module.value(
            batch.observations,
            history=history,
            steps_left=left,
            num_samples=num_samples,
            seed=seed,
        )

    def rolled(steps: int) -> Tensor:
        return autoregressive_value(
            module, batch.observations, history, steps=steps, num_samples=num_samples, seed=seed
        )

    calls = []
    for horizon in horizons:
        with counted(module) as once:
            direct(horizon)
        calls.append(once.calls)
    timings = measure([partial(direct, horizon) for horizon in horizons], device, budget=budget)

    results: list[ValueResult] = []
    rolled(1)
    steps = 0
    for horizon, taken, once_calls in zip(horizons, timings, calls, strict=True):
        if steps < min(horizon, longest):
            steps = min(horizon, longest)
            with counted(module) as each:
                begin = clock(device)
                rolled(steps)
                spent = clock(device) - begin
        results.append(
            ValueResult(
                size,
                states,
                num_samples,
                horizon,
                taken.seconds,
                once_calls,
                spent / steps * horizon,
                each.calls // steps * horizon,
                steps,
                spent / steps * horizon / taken.seconds,
            )
        )
    return results


def run_values(
    *, device: torch.device, seed: int, quick_only: bool, full: bool
) -> list[ValueResult]:
    """Quick size, on a GPU the paper's too; 1000 steps for real on a GPU or with ``full``."""
    cuda = device.type == "cuda"
    longest = 1000 if full or cuda else 100
    sizes: tuple[Size, ...] = ("quick", "paper") if cuda and not quick_only else ("quick",)
    return [
        result
        for size in sizes
        for result in run_value(
            size, settings(size).module, device=device, seed=seed, longest=longest
        )
    ]
