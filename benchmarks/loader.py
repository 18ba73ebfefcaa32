"""Rows a second of the tensor-indexed views, beside PyTorch's map-style DataLoader and d3rlpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import find_tensors, held_bytes, measure
from benchmarks.made_up import make_dataset, make_maze
from benchmarks.map_style import MapStyleFutureStates, MapStyleSnippets, MapStyleTransitions
from benchmarks.peer import d3rlpy_speeds
from lit_offrl.datasets.sampler import RowOrder, TrainLoader
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import FutureStates, Snippets, Transitions, View


@dataclass(frozen=True)
class LoaderResult:
    """Rows a second of a view, of the map-style loader, and how many times faster the view is.

    ``memory_ratio`` counts the columns and all that view and order hold beside them, an epoch's
    order among it, in columns. d3rlpy's numbers are None where it was not requested or has no
    counterpart.
    """

    data: str
    view: str
    batch_size: int
    rows_per_second: float
    map_style_rows_per_second: float
    ratio: float
    memory_ratio: float
    d3rlpy_rows_per_second: float | None = None
    d3rlpy_ratio: float | None = None


class _Candidate(NamedTuple):
    data: str
    dataset: OfflineDataset
    name: str
    view: View
    map_style: Dataset[tuple[Tensor, ...]]
    peer_window: int | None = None
    """Steps of what d3rlpy samples: 0 for a transition; None where it does not run."""


def run_loader(
    *,
    device: torch.device,
    seed: int = 0,
    rows: int = 1_000_000,
    batch_sizes: Sequence[int] = (128, 256),
    history: int = 8,
    horizon: int = 30,
    batches: int = 200,
    budget: float = 1.5,
    peer_python: Path | None = None,
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
        horizon: steps of ``Snippets``.
        batches: timed at once; the map-style loader makes a tenth.
        budget: seconds of each measurement.
        peer_python: the Python of an environment with d3rlpy, which samples from the same rows.
    """
    hopper, maze = make_dataset(rows, seed), make_maze(rows, seed)
    steps, future, snippets = Transitions(), FutureStates(history=history), Snippets(horizon)
    slow_future = MapStyleFutureStates(hopper, future, seed)
    candidates = (
        _Candidate("hopper", hopper, "Transitions", steps, MapStyleTransitions(hopper, steps)),
        _Candidate("hopper", hopper, f"FutureStates(history={history})", future, slow_future),
        _Candidate("maze2d", maze, "Transitions", steps, MapStyleTransitions(maze, steps), 0),
        _Candidate(
            *("maze2d", maze, f"Snippets({horizon})", snippets),
            *(MapStyleSnippets(maze, snippets), horizon),
        ),
    )
    results: list[LoaderResult] = []
    jobs: dict[tuple[int, int], int] = {}  # of d3rlpy: which result they stand beside
    for candidate in candidates:
        bound = candidate.view.bind(candidate.dataset, device)
        for size in batch_sizes:
            order = RowOrder(bound.spans, size, seed, device=device)
            ours = iter(TrainLoader(bound, order, 1 << 40, lambda: 0))
            theirs = _endless(candidate.map_style, size, device)
            fewer = max(1, batches // 10)
            draws = [partial(_draw, ours, batches), partial(_draw, theirs, fewer)]
            for source in (ours, theirs):
                next(source)  # makes the permutation
            fast, slow = measure(draws, device, budget=budget)
            speed, other = batches * size / fast.seconds, fewer * size / slow.seconds
            if candidate.peer_window is not None:
                jobs[candidate.peer_window, size] = len(results)
            results.append(
                LoaderResult(
                    *(candidate.data, candidate.name, size, speed, other, speed / other),
                    _memory_ratio(candidate.dataset, bound, order),
                )
            )
    if peer_python is not None:
        speeds = d3rlpy_speeds(peer_python, maze, list(jobs), budget=budget)
        for place, speed in zip(jobs.values(), speeds, strict=True):
            ours_speed = results[place].rows_per_second
            results[place] = replace(
                results[place], d3rlpy_rows_per_second=speed, d3rlpy_ratio=ours_speed / speed
            )
    return results


def _memory_ratio(dataset: OfflineDataset, *held: object) -> float:
    columns = sum(column.nbytes for column in dataset.columns.values())
    extra = held_bytes(held, beside=dataset.columns.values())
    on_cpu = not any(tensor.is_cuda for tensor in find_tensors(held))
    return (columns * on_cpu + extra) / columns


def _endless(rows: Dataset[Any], batch_size: int, device: torch.device) -> Iterator[list[Tensor]]:
    loader = DataLoader(rows, batch_size, shuffle=True, drop_last=True)
    while True:
        for batch in loader:
            yield [part.to(device) for part in batch]


def _draw(source: Iterator[Any], batches: int) -> None:
    for _ in islice(source, batches):
        pass
