"""The loader on memory-mapped columns of maze2d's sizes, from few rows to a hundred million.

Beside it stands the simplest gather in NumPy, which indexes each column with row numbers that are
at hand, while the loader also draws them, each once an epoch. Both are timed from memory, and once
after the system has forgotten the files.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from benchmarks.machine import measure, processor_clock
from lit_offrl.common.files import free_bytes
from lit_offrl.datasets.sampler import RowOrder, TrainLoader
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset
from lit_offrl.datasets.views import Transitions

_CPU = torch.device("cpu")
_EPISODE = 400
_CHUNK = 1_000_000  # rows written at once
_COLUMNS: dict[str, tuple[int, ...]] = {"observations": (4,), "actions": (2,), "rewards": ()}
_FLAGS = ("terminals", "timeouts")
_ROW_BYTES = 4 * (4 + 2 + 1) + 2


@dataclass(frozen=True)
class MappedResult:
    """Seconds of a batch by the number of rows, of the processor where it is not said otherwise.

    Attributes:
        rows: N, each of 30 bytes.
        together: A batch in calls of many, from memory, without the order's start.
        fastest: Its fastest turn, which other processes disturbed least.
        alone: The same, a batch at a time.
        order: An epoch's order, as a share of each of its batches.
        numpy: The gather in NumPy, a batch at a time, from memory.
        ratio: Of ``together`` with the order's share to ``numpy``.
        cold: The first batches in calls of many, after the files were forgotten.
        cold_wall: The same by the wall's clock, which waits for the disk.
        numpy_cold: The first batches of the gather in NumPy, after the files were forgotten.
        numpy_cold_wall: The same by the wall's clock.
    """

    rows: int
    together: float
    fastest: float
    alone: float
    order: float
    numpy: float
    ratio: float
    cold: float
    cold_wall: float
    numpy_cold: float
    numpy_cold_wall: float


class _Together:
    """As many batches a call as it is told, cut into views as training does."""

    alone = False

    def __init__(self, count: int) -> None:
        self._count = count

    def take(self, most: int) -> int:
        """Return the number of a call's batches."""
        return min(most, self._count)

    def split(self, rows: Any) -> Any:
        """Cut the batches apart, and return the last."""
        parts = [part.tensor_split(self._count) for part in rows if part is not None]
        return [part[-1] for part in parts]


def run_mapped(
    *,
    sizes: Sequence[int] = (10**5, 10**6, 10**7, 10**8),
    batch_size: int = 256,
    together: int = 100,
    cold_batches: int = 100,
    budget: float = 2.0,
    seed: int = 0,
) -> Iterator[MappedResult]:
    """Make files of each size in the folder for temporary files, and measure; on one thread.

    A size for which the disk has no room is left out.

    Args:
        sizes: rows of the files.
        batch_size: rows of a batch.
        together: batches of a call.
        cold_batches: the first ones after the files were forgotten, which are timed once.
        budget: seconds of each measurement from memory.
        seed: of the order.
    """
    for rows in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if _ROW_BYTES * rows > free_bytes(folder):
                continue
            _write(folder, rows)
            yield _measure(folder, rows, batch_size, together, cold_batches, budget, seed)
            gc.collect()


def _measure(
    folder: Path, rows: int, size: int, together: int, cold: int, budget: float, seed: int
) -> MappedResult:
    spans = Transitions().bind(_open(folder)).spans
    order = RowOrder(spans, size, seed)
    begun = time.process_time()
    order.rows(0)
    share = (time.process_time() - begun) * size / len(spans)
    given = np.random.default_rng(seed).integers(0, len(spans) - 1, (1000, size))

    def ours(count: int) -> Callable[[int], None]:
        view = Transitions().bind(_open(folder))
        batches = iter(TrainLoader(view, order, 1 << 40, lambda: 0, calls=_Together(count)))
        return lambda number: _draw(batches, number // count)

    def theirs() -> Callable[[int], None]:
        columns, done = _open(folder).columns, iter(range(1 << 60))

        def draw(number: int) -> None:
            for _ in range(number):
                _gather(columns, given[next(done) % len(given)])

        return draw

    cold = max(1, cold // together) * together
    times = []
    for make in (lambda: ours(together), theirs):
        _forget(folder)
        draw = make()
        wall, processor = time.perf_counter(), time.process_time()
        draw(cold)
        times += [(time.process_time() - processor) / cold, (time.perf_counter() - wall) / cold]
        del draw
    draws = [ours(together), ours(1), theirs()]
    for path in folder.iterdir():
        np.load(path, mmap_mode="r").sum()  # into memory
    most = 10 * together

    def turn(draw: Callable[[int], None]) -> Callable[[], None]:
        return lambda: draw(most)

    for draw in draws:
        draw(most)
    found = measure([turn(draw) for draw in draws], _CPU, budget=budget, now=processor_clock)
    many, alone, numpy = (each.seconds / most for each in found)
    fastest, ratio = found[0].fastest / most, (many + share) / numpy
    return MappedResult(rows, many, fastest, alone, share, numpy, ratio, *times)


def _draw(batches: Iterator[Any], calls: int) -> None:
    for _ in islice(batches, calls):
        pass


def _gather(columns: Any, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    following = columns["observations"][rows + 1]
    names = ("observations", "actions", "rewards", "terminals")
    return (*(columns[name][rows] for name in names), following)


def _write(folder: Path, rows: int) -> None:
    """Columns as the cache keeps them: a ``.npy`` each; what the numbers are does not matter."""
    random = np.random.default_rng(0)
    noise = random.standard_normal((min(rows, _CHUNK), 4), dtype=np.float32)
    for name in (*_COLUMNS, *_FLAGS):
        flag, shape = name in _FLAGS, _COLUMNS.get(name, ())
        dtype = np.bool_ if flag else np.float32
        path = folder / f"{name}.npy"
        column = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(rows, *shape))
        for begin in range(0, rows, _CHUNK):
            part = column[begin : begin + _CHUNK]
            if not flag:
                part[:] = noise[: len(part), : shape[0]] if shape else noise[: len(part), 0]
        if name == "timeouts":
            column[_EPISODE - 1 :: _EPISODE] = True
            column[-1] = True
        column.flush()


def _open(folder: Path) -> OfflineDataset:
    columns = {
        path.stem: np.asarray(np.load(path, mmap_mode="r")) for path in sorted(folder.iterdir())
    }
    rows = len(columns["timeouts"])
    starts = np.arange(0, rows, _EPISODE)
    episodes = np.stack([starts, np.append(starts[1:], rows)], axis=1)
    return OfflineDataset.from_checked(columns, DatasetSpec("made up", 4, 2), {}, episodes, False)


def _forget(folder: Path) -> None:
    """Have the system drop the files' pages; it keeps those of mappings that are still open."""
    gc.collect()
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def mapped_table(results: Sequence[MappedResult]) -> Table:
    """One line a number of rows."""
    heads = ["rows", "in calls of 100", "fastest", "one at a time", "order", "NumPy", "ratio"]
    heads += ["cold: processor", "wall", "NumPy cold: processor", "wall"]
    table = Table(*heads, title="A batch of 256 memory-mapped rows of maze2d's columns")
    for r in results:
        times = (r.together, r.fastest, r.alone, r.order, r.numpy)
        cold = (r.cold, r.cold_wall, r.numpy_cold, r.numpy_cold_wall)
        table.add_row(
            f"{r.rows:,}",
            *(f"{each * 1e6:,.0f} µs" for each in times),
            f"{r.ratio:.2f}",
            *(f"{each * 1e6:,.0f} µs" for each in cold),
        )
    table.caption = (
        "processor time on one thread; order: an epoch's permutation, shared out to its batches\n"
        "NumPy: each column indexed with rows that are at hand, a batch at a time\n"
        "ratio: calls of 100 with the order's share to NumPy\n"
        "cold: the first 100 batches after the system's cache of the files was emptied"
    )
    return table
