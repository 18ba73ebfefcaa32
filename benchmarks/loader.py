"""Rows a second of the tensor-indexed views, beside PyTorch's map-style DataLoader."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import measure
from benchmarks.made_up import make_dataset
from lit_offrl.datamodules.loaders import TrainLoader
from lit_offrl.datasets.sampler import RowOrder
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import FutureStates, Transitions, View


class MapStyleTransitions(Dataset[tuple[Tensor, ...]]):
    """The rows of ``Transitions`` one at a time, as a map-style dataset hands them out."""

    def __init__(self, dataset: OfflineDataset, view: Transitions) -> None:
        self.rows = view.bind(dataset).rows.numpy()
        names = ("observations", "actions", "rewards", "terminals")
        self.columns = {name: torch.tensor(dataset.columns[name]) for name in names}
        self.stops = np.repeat(dataset.episodes[:, 1], dataset.episode_lengths)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[Tensor, ...]:
        row, columns = self.rows[position], self.columns
        return (
            columns["observations"][row],
            columns["actions"][row],
            columns["rewards"][row],
            columns["observations"][min(row + 1, self.stops[row] - 1)],
            columns["terminals"][row],
        )


class MapStyleFutureStates(Dataset[tuple[Tensor, ...]]):
    """The rows of ``FutureStates`` one at a time, without the discounted returns."""

    def __init__(self, dataset: OfflineDataset, view: FutureStates, seed: int) -> None:
        self.steps = MapStyleTransitions(dataset, Transitions())
        self.rows = view.bind(dataset).rows.numpy()
        self.starts = np.repeat(dataset.episodes[:, 0], dataset.episode_lengths)
        self.terminated = np.repeat(dataset.episode_terminated, dataset.episode_lengths)
        self.log_gamma, self.history = math.log(view.gamma), view.history
        self.random = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[Tensor, ...]:
        return self.make(self.rows[position], self.random.random())

    def make(self, row: int, uniform: float) -> tuple[Tensor, ...]:
        """One row of a FutureStateBatch: the six tensors of a transition in the batch's order,
        then future state, absorbed, Δt, history, its actions and mask.
        """
        steps = self.steps
        states, actions = steps.columns["observations"], steps.columns["actions"]
        start, stop = self.starts[row], steps.stops[row]
        limit = math.inf if self.terminated[row] else float(stop - 1 - row)
        drawn = math.log1p(uniform * math.expm1(limit * self.log_gamma)) / self.log_gamma
        ahead = int(min(max(math.ceil(drawn), 1), limit))
        absorbed = bool(self.terminated[row]) and row + ahead >= stop
        future = torch.zeros_like(states[0]) if absorbed else states[row + ahead]
        first = max(start, row - self.history)
        missing = self.history - (row - first)
        mask = torch.ones(self.history, dtype=torch.bool)
        mask[:missing] = False
        return (
            states[row],
            actions[row],
            steps.columns["rewards"][row],
            states[min(row + 1, stop - 1)],
            steps.columns["terminals"][row],
            future,
            torch.tensor(absorbed),
            torch.tensor(ahead),
            torch.cat([states.new_zeros(missing, states.shape[1]), states[first:row]]),
            torch.cat([actions.new_zeros(missing, actions.shape[1]), actions[first:row]]),
            mask,
        )


@dataclass(frozen=True)
class LoaderResult:
    """Rows a second of a view, of the map-style loader, and how many times faster the view is."""

    view: str
    batch_size: int
    rows_per_second: float
    map_style_rows_per_second: float
    ratio: float


class _Candidate(NamedTuple):
    name: str
    view: View
    map_style: Dataset[tuple[Tensor, ...]]


def run_loader(
    *,
    device: torch.device,
    seed: int = 0,
    rows: int = 1_000_000,
    batch_sizes: Sequence[int] = (128, 256),
    history: int = 8,
    batches: int = 200,
    budget: float = 1.5,
) -> list[LoaderResult]:
    """Draw shuffled batches in both ways from the same rows, in this process.

    The permutation of an epoch is made before the clock starts, in both. With a GPU as device, the
    views' columns lie there and the map-style loader's batches are moved there.

    Args:
        device: where the batches are wanted.
        seed: of data and order.
        rows: rows of the dataset.
        batch_sizes: rows of a batch, one measurement each.
        history: preceding states of ``FutureStates``.
        batches: timed at once; the map-style loader makes a tenth.
        budget: seconds of each measurement.
    """
    dataset = make_dataset(rows, seed)
    steps, future = Transitions(), FutureStates(history=history)
    candidates = (
        _Candidate("Transitions", steps, MapStyleTransitions(dataset, steps)),
        _Candidate(
            f"FutureStates(history={history})",
            future,
            MapStyleFutureStates(dataset, future, seed),
        ),
    )
    results = []
    for name, view, map_style in candidates:
        bound = view.bind(dataset, device)
        for size in batch_sizes:
            order = RowOrder(len(bound.rows), size, seed, device=device)
            ours = iter(TrainLoader(bound, order, 1 << 40, lambda: 0))
            theirs = _endless(map_style, size, device)
            fewer = max(1, batches // 10)
            draws = [partial(_draw, ours, batches), partial(_draw, theirs, fewer)]
            for source in (ours, theirs):
                next(source)  # makes the permutation
            fast, slow = measure(draws, device, budget=budget)
            speed, other = batches * size / fast.seconds, fewer * size / slow.seconds
            results.append(LoaderResult(name, size, speed, other, speed / other))
    return results


def _endless(rows: Dataset[Any], batch_size: int, device: torch.device) -> Iterator[list[Tensor]]:
    loader = DataLoader(rows, batch_size, shuffle=True, drop_last=True)
    while True:
        for batch in loader:
            yield [part.to(device) for part in batch]


def _draw(source: Iterator[Any], batches: int) -> None:
    for _ in islice(source, batches):
        pass
