"""Latency of a prioritised draw and of an update, beside a draw without a tree."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.machine import measure
from lit_offrl.datasets.priorities import PrioritizedOrder


@dataclass(frozen=True)
class PriorityResult:
    """Seconds of a draw and of an update of a batch, and of ``torch.multinomial`` for a draw.

    ``ratio`` is how many times longer that takes, which adds all weights up for each draw.
    """

    items: int
    batch_size: int
    draw_seconds: float
    update_seconds: float
    multinomial_seconds: float
    ratio: float


def run_priority(
    *,
    device: torch.device,
    seed: int = 0,
    items: int = 1_000_000,
    batch_size: int = 256,
    repeats: int = 50,
    budget: float = 1.0,
) -> PriorityResult:
    """Draw batches by priority, and set priorities of as many rows.

    Args:
        device: where the priorities are held.
        seed: of priorities and draws.
        items: rows with a priority, at most 2²⁴, which is the most that multinomial takes.
        batch_size: rows of a draw and of an update.
        repeats: draws, or updates, timed at once.
        budget: seconds of each measurement.
    """
    order = PrioritizedOrder(items, batch_size, seed, device=device)
    random = torch.Generator().manual_seed(seed)
    order.update(torch.arange(items), torch.rand(items, generator=random))
    rows = torch.randint(items, (batch_size,), generator=random).to(device)
    values = torch.rand(batch_size, generator=random).to(device)
    weights = order.priorities.double() ** 0.7

    def draws() -> None:
        for step in range(repeats):
            order.draw(step)

    def updates() -> None:
        for _ in range(repeats):
            order.update(rows, values)

    plain = partial(torch.multinomial, weights, batch_size, replacement=True)
    for run in (draws, updates, plain):
        run()
    draw, update, multinomial = measure([draws, updates, plain], device, budget=budget)
    taken = draw.seconds / repeats
    return PriorityResult(
        items,
        batch_size,
        taken,
        update.seconds / repeats,
        multinomial.seconds,
        multinomial.seconds / taken,
    )
