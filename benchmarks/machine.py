"""The machine: what it is, how long something takes on it, how fast it multiplies matrices."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

_UNITS = {
    **{"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512-bf16"},
    **{"amx_bf16": "AMX-bf16", "asimd": "NEON", "sve": "SVE", "bf16": "bf16"},
}


class Timing(NamedTuple):
    """Median seconds of a call, how many calls were timed, and the seconds of the fastest."""

    seconds: float
    repeats: int
    fastest: float


def describe(device: torch.device) -> dict[str, Any]:
    """Name the machine; its load too, since a busy one measures other people's work."""
    cuda = device.type == "cuda"
    return {
        "cpu": _processor("model name") or platform.processor() or platform.machine(),
        "units": " ".join(processor_units()) or "unknown",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def processor_units() -> list[str]:
    """What the processor computes with that decides how fast products are, by Linux's words."""
    flags = (_processor("flags") or _processor("Features")).split()
    return [name for flag, name in _UNITS.items() if flag in flags]


def _processor(field: str) -> str:
    """A field of the first processor; empty where the system does not say."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith(field):
            return line.partition(":")[2].strip()
    return ""


def clock(device: torch.device) -> float:
    """Seconds, once everything that the device was told to do is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def processor_clock(device: torch.device) -> float:
    """Seconds that this process has computed; those of the wall where that says less.

    One thread computes as long on a busy machine as on an idle one, but for the caches it shares.
    Of several threads the times would add up, and a GPU's are not in it.
    """
    if device.type == "cuda" or torch.get_num_threads() > 1:
        return clock(device)
    return time.process_time()


def measure(
    runs: Sequence[Callable[[], object]],
    device: torch.device,
    *,
    budget: float = 3.0,
    most: int = 30,
    now: Callable[[torch.device], float] = clock,
) -> list[Timing]:
    """Time calls that the caller has warmed up: each once, then in turns while time is left.

    In turns, so that a disturbance falls on all of them and their ratios stand.

    Args:
        runs: what to time.
        device: where it computes.
        budget: seconds for each, after which no further round begins.
        most: rounds at most.
        now: the clock of the calls.
    """
    taken: list[list[float]] = [[] for _ in runs]
    begin = clock(device)
    while not taken[0] or (clock(device) - begin < budget * len(runs) and len(taken[0]) < most):
        for run, times in zip(runs, taken, strict=True):
            before = now(device)
            run()
            times.append(now(device) - before)
    return [Timing(median(times), len(times), min(times)) for times in taken]


def product_speed(
    rows: int,
    inner: int,
    columns: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    budget: float,
    now: Callable[[torch.device], float] = clock,
) -> float:
    """FLOP/s of a matrix product (rows × inner) (inner × columns).

    Of the best time, not the median: a peak is what other processes did not disturb.

    Args:
        rows: of the left matrix.
        inner: its columns.
        columns: of the right one.
        device: where to multiply.
        dtype: of both.
        budget: seconds for all products.
        now: the clock of a product.
    """
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(inner, columns, device=device).to(dtype)
    out = left @ right
    fastest, end = float("inf"), clock(device) + budget
    while clock(device) < end:
        begin = now(device)
        torch.mm(left, right, out=out)
        fastest = min(fastest, now(device) - begin)
    return 2 * rows * inner * columns / fastest


def matrix_peak(
    device: torch.device,
    dtype: torch.dtype,
    *,
    budget: float = 1.5,
    now: Callable[[torch.device], float] = clock,
) -> float:
    """FLOP/s of the fastest square matrix product, on this device with these threads."""
    sizes = (4096, 8192) if device.type == "cuda" else (512, 1024)
    share = budget / len(sizes)
    return max(product_speed(n, n, n, device, dtype, budget=share, now=now) for n in sizes)


def find_tensors(held: object) -> list[torch.Tensor]:
    """Every tensor in an object's attributes, containers and their objects, each once."""
    found: dict[int, torch.Tensor] = {}
    visited: set[int] = set()
    todo = [held]
    while todo:
        item = todo.pop()
        if id(item) in visited:
            continue
        visited.add(id(item))
        if isinstance(item, torch.Tensor):
            found[id(item)] = item
        elif isinstance(item, Mapping):
            todo += item.values()
        elif isinstance(item, list | tuple):
            todo += item
        elif type(item).__module__.startswith("lit_offrl"):
            todo += vars(item).values()
    return list(found.values())


def held_bytes(held: object, beside: Iterable[np.ndarray] = ()) -> int:
    """Bytes of the memory of all tensors in an object, but for memory that ``beside`` shares."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in find_tensors(held)
    }
    shared = {array.ctypes.data for array in beside}
    return sum(size for address, size in storages.items() if address not in shared)
