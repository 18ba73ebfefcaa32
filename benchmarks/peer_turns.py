"""Loops that stand still between turns: each in a process of its own, timed there when asked.

A loop, ours or a peer's, calls ``Pace.step`` after each of its steps and knows nothing else of the
benchmark. So the very code that trains is timed, sampling and all, and two loops can take turns.
"""

from __future__ import annotations

import contextlib
import cProfile
import gc
import multiprocessing
import os
import pstats
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

Kind = Literal["time", "work", "shares", "calls"]
_PATIENCE = 600.0  # seconds for an answer; the first one waits for imports and data, too
_SHOWN = 6  # shares that are told


class LoopFailure(Exception):
    """A loop has ended; the message says why."""


class Work(NamedTuple):
    """What a step is made of."""

    flops: float
    """Of its matrix products."""
    parameters: int
    """Numbers that its optimisers move."""


class Loop(Protocol):
    """A loop that goes on when it is asked."""

    def time(self, steps: int) -> float:
        """Seconds of the processor that a step takes, over at least so many of them."""

    def work(self, steps: int) -> Work:
        """What a step is made of, a mean over at least so many of them."""


# ---- in the loop's process ---------------------------------------------------------------------


class _Measure(Protocol):
    def end(self, steps: int) -> Any:
        """What was measured, of so many steps."""


class _Time:
    def __init__(self) -> None:
        self._begin = time.process_time()

    def end(self, steps: int) -> float:
        return (time.process_time() - self._begin) / steps


class _Work:
    def __init__(self) -> None:
        self._counter = FlopCounterMode(display=False)
        self._counter.__enter__()

    def end(self, steps: int) -> Work:
        self._counter.__exit__(None, None, None)
        return Work(self._counter.get_total_flops() / steps, count_parameters())


class _Shares:
    """Shares of the time by operation; what is in none is Python's, between them."""

    def __init__(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU])
        self._profile.__enter__()
        self._begin = time.perf_counter()

    def end(self, steps: int) -> dict[str, float]:
        whole = time.perf_counter() - self._begin
        self._profile.__exit__(None, None, None)
        spent = {
            event.key.removeprefix("aten::").lstrip("_"): event.self_cpu_time_total * 1e-6 / whole
            for event in self._profile.key_averages()
            if not event.key.startswith("Optimizer.")  # what is around the operations of a step
        }
        largest = sorted(spent, key=spent.__getitem__, reverse=True)[:_SHOWN]
        shares = {name: spent.pop(name) for name in largest}
        between = max(0.0, 1.0 - sum(shares.values()) - sum(spent.values()))
        return shares | {"other operations": sum(spent.values()), "Python between them": between}


class _Calls:
    """Shares of the time by the package whose function ran, for what is no operation of torch's."""

    def __init__(self) -> None:
        self._profile = cProfile.Profile()
        self._profile.enable()

    def end(self, steps: int) -> dict[str, float]:
        self._profile.disable()
        spent: dict[str, float] = {}
        for (file, _, function), (_, _, own, _, _) in _stats(self._profile).items():
            name = _package(file, function)
            spent[name] = spent.get(name, 0.0) + own
        whole = sum(spent.values())
        largest = sorted(spent, key=spent.__getitem__, reverse=True)[:_SHOWN]
        return {name: spent[name] / whole for name in largest}


def _stats(made: cProfile.Profile) -> dict[tuple[str, int, str], tuple[Any, ...]]:
    stats: dict[tuple[str, int, str], tuple[Any, ...]] = pstats.Stats(made).stats  # type: ignore[attr-defined]
    return stats


def _package(file: str, function: str) -> str:
    if file == "~":  # a function in C
        return "torch's operations" if "torch" in function or "Tensor" in function else "Python"
    parts = Path(file).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1].removesuffix(".py")
    return next((name for name in ("lit_offrl", "benchmarks") if name in parts), "Python")


_MEASURES: dict[Kind, Callable[[], _Measure]] = {
    **{"time": _Time, "work": _Work},
    **{"shares": _Shares, "calls": _Calls},
}


def count_parameters() -> int:
    """Numbers that the optimisers of this process move."""
    moved = {
        id(parameter): parameter.numel()
        for held in gc.get_objects()
        if issubclass(type(held), torch.optim.Optimizer)
        for group in held.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    }
    return sum(moved.values())


class Pace:
    """Told of each step by a loop, it measures what it was asked for and waits between turns.

    Args:
        connection: to the benchmark.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._measure: _Measure | None = None
        self._wanted = self._done = 0

    def step(self, number: int = 1) -> None:
        """Count steps that were done; the first call only says that the loop is ready."""
        if self._measure is not None:
            self._done += number
            if self._done < self._wanted:
                return
            self._connection.send(self._measure.end(self._done))
        try:
            kind, self._wanted = self._connection.recv()
        except EOFError:  # there are no more turns
            os._exit(0)
        self._done, self._measure = 0, _MEASURES[kind]()


def _run(connection: Connection, folder: Path, start: Callable[[Pace], None]) -> None:
    """Run a loop until its process is ended, and send why it has ended by itself."""
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is for processes, and would outlive this one
    os.chdir(folder)
    with Path("said.txt").open("w") as said:  # a loop may print what it likes
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(said.fileno(), stream.fileno())
        sys.stdout = sys.stderr = said
        gc.collect()
        gc.freeze()  # what was imported for another loop costs this one nothing
        try:
            start(Pace(connection))
            reason = "it ended by itself"
        except BaseException as error:
            named = isinstance(error, LoopFailure)
            reason = " ".join((str(error) if named else f"{type(error).__name__}: {error}").split())
        with contextlib.suppress(OSError):
            connection.send(LoopFailure(reason))


# ---- in the benchmark's process ----------------------------------------------------------------


class ProcessLoop:
    """A loop in a process of its own.

    Args:
        start: runs it, telling a ``Pace`` of each step; must be picklable.
        folder: the loop's working directory.
    """

    def __init__(self, start: Callable[[Pace], None], folder: Path) -> None:
        # a server that has computed nothing yet and has imported what most loops need: forking
        # this process, whose autograd may have threads, would not be safe
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.peer_ours"])
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_run, args=(other, folder, start), daemon=True)
        self._process.start()
        other.close()

    def ask(self, kind: Kind, steps: int) -> Any:
        """Let the loop take at least so many steps, and return what was measured.

        Raises:
            LoopFailure: it has ended.
        """
        try:
            with contextlib.suppress(BrokenPipeError):  # then it has said why
                self._connection.send((kind, steps))
            if not self._connection.poll(_PATIENCE):
                raise LoopFailure(f"no step was done in {_PATIENCE:.0f} s")
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(10)
            raise LoopFailure(f"its process ended with code {self._process.exitcode}") from None
        if isinstance(answer, LoopFailure):
            raise answer
        return answer

    def time(self, steps: int) -> float:
        """Seconds of the processor that a step takes, over at least so many of them."""
        return float(self.ask("time", steps))

    def work(self, steps: int) -> Work:
        """What a step is made of, a mean over at least so many of them."""
        return Work(*self.ask("work", steps))

    def shares(self, steps: int, kind: Literal["shares", "calls"] = "shares") -> dict[str, float]:
        """Where the time goes: by operation of torch's, or by package."""
        return dict(self.ask(kind, steps))

    def close(self) -> None:
        """End its process."""
        self._connection.close()
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextlib.contextmanager
def process_loop(start: Callable[[Pace], None]) -> Iterator[ProcessLoop]:
    """Run a loop in a process and an empty folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        loop = ProcessLoop(start, Path(folder))
        try:
            yield loop
        finally:
            loop.close()
