"""SIGTERM, SIGINT and SIGUSR1: heard from a command's first line to its last, by one handler.

    the first      Interrupted is raised where the main thread is; within ``held()`` it waits for
                   the end of the block, and in training for the end of the step; if that takes
                   seconds, a line says so
    a second       ends the process at once

The exit code is 128 + the signal's number. SLURM is often configured to send SIGUSR1 as a warning.

Nothing heavy is imported here: the handler has to be in place before torch is.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = tuple(
    signal.Signals[name]
    for name in ("SIGTERM", "SIGINT", "SIGUSR1")
    if name in signal.Signals.__members__
)
EXIT_CODES = tuple(128 + number for number in SIGNALS)

# A terminal, `timeout` and `srun` may each deliver one wish twice, to the process and to its group.
_ONE_WISH_SECONDS = 1.0
_CLOSING_SECONDS = 4.0
_PATIENCE_SECONDS = 3.0  # within which most steps end


class Interrupted(SystemExit):
    """A signal, given by its number, asked the process to stop. The exit code is 128 + that number.

    Not an ``Exception``, so that nobody on the way takes it for an error of theirs. With ``agreed``
    all processes of a training raise it at this same place, so that they can save together.
    """

    def __init__(
        self, number: int, step: int | None = None, kept: str = "", *, agreed: bool = False
    ) -> None:
        super().__init__(128 + number)
        self.number = number
        self.step = step  # optimiser steps taken, where there was a training
        self.kept = kept  # what is, where there is no checkpoint
        self.agreed = agreed
        self.checkpoint: str | None = None  # the file that was saved

    def __str__(self) -> str:
        by = f"stopped by {signal.Signals(self.number).name}"
        if self.step is None:
            return f"{by}."
        kept = f"saved {self.checkpoint}" if self.checkpoint else self.kept or "nothing saved"
        return f"{by} after step {self.step}; {kept}."


@dataclass
class _State:
    listening: bool = False
    received: int = 0  # the first signal's number
    since: float = 0.0  # when it came
    held: int = 0  # blocks entered that are not to be interrupted
    abrupt: bool = False  # nothing has begun that would have to be tidied up
    exit_code: int | None = None  # of a process whose outcome is settled
    closing: threading.Timer | None = None


state = _State()
"""What is known of signals so far; for others to read."""


# ---- a command -----------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(*, process: bool = False) -> Iterator[None]:
    """Hear signals within the block; inside another such block, and in other threads, do nothing.

    Afterwards they go where they went before, unless the ``process`` ends with the block: they are
    answered until then.
    """
    global state
    if state.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    state = _State(listening=True)
    if process:
        atexit.register(_leave)  # the first to be registered is the last to be called
        for number in SIGNALS:
            signal.signal(number, _hear)
        yield
        return
    with _answered_by(_hear):
        try:
            yield
        finally:
            if state.closing is not None:
                state.closing.cancel()
            state.listening = False


@contextlib.contextmanager
def _answered_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextlib.contextmanager
def abruptly() -> Iterator[None]:
    """Let a signal end the process within the block, where nothing has begun: imports.

    An exception amid the imports of extension modules may be lost, or come out as another.
    """
    state.abrupt = state.listening
    try:
        yield
    finally:
        state.abrupt = False


def settle(code: int) -> int:
    """Return the exit code of a process, which signals no longer change."""
    state.exit_code = code
    return code


def end_within(seconds: float = _CLOSING_SECONDS) -> None:
    """See that a process which a signal has stopped, and which has saved, ends in any case.

    A later call sets another time.
    """
    if not state.listening or is_child():
        return
    if state.closing is not None:
        state.closing.cancel()
    code = 128 + state.received if state.exit_code is None else state.exit_code
    state.closing = threading.Timer(seconds, os._exit, (code,))
    state.closing.daemon = True
    state.closing.start()


# ---- what is going on ----------------------------------------------------------------------------


def received() -> int:
    """Return the number of the signal that has come, or 0."""
    return state.received


def check() -> None:
    """Stop if a signal has come, also where its exception has been swallowed on the way.

    Raises:
        Interrupted: one has.
    """
    if state.received:
        raise Interrupted(state.received)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let a signal wait until the end of the block, which is short or looks for signals itself.

    Raises:
        Interrupted: at the block's end, if one has come within it.
    """
    before = received()
    hold()
    try:
        yield
    finally:
        release()
    if not (state.held or before or is_child()):
        check()


def hold() -> None:
    """Let signals wait from here on, for as long as the caller looks for them."""
    state.held += 1


def release() -> None:
    """End what ``hold`` began."""
    state.held = max(0, state.held - 1)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Let a signal not wait within the block, though it is inside one that makes signals wait.

    Raises:
        Interrupted: wherever the block is, or before it.
    """
    depth, state.held = state.held, 0
    try:
        check()
        yield
    finally:
        state.held = depth


def is_child() -> bool:
    """Whether Lightning's first process has started this one, and so answers for it."""
    rank = os.environ.get("LOCAL_RANK", "0")
    return rank != "0" and "TORCHELASTIC_RUN_ID" not in os.environ


def kill_children(children: list[Any]) -> None:
    """End processes that this one has started, and must not be outlived by."""
    killed = [*children]
    children.clear()  # Lightning, which watches the same list, is not to be alarmed
    for child in killed:
        with contextlib.suppress(OSError, ValueError):
            child.kill()


@contextlib.contextmanager
def collected() -> Iterator[list[int]]:
    """Collect signals within the block in a list, for a caller that reacts to them itself."""
    found: list[int] = []
    since = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if not found or time.monotonic() - since > _ONE_WISH_SECONDS:
            found.append(number)
        since = time.monotonic()

    with _answered_by(note):
        yield found


# ---- the handler ---------------------------------------------------------------------------------


def _hear(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if state.received:
        if now - state.since > _ONE_WISH_SECONDS:
            _end(number, f"ended at once by a second signal, {signal.Signals(number).name}")
        return
    state.received, state.since = number, now
    if state.abrupt:
        _end(number, f"stopped by {signal.Signals(number).name}")
    elif state.exit_code is not None:
        end_within()
    elif state.held:
        if not is_child():
            waiting = threading.Timer(_PATIENCE_SECONDS, _say_that_it_waits, (number,))
            waiting.daemon = True
            waiting.start()
    elif is_child():  # it waits for the others somewhere, and the first process ends it
        with contextlib.suppress(OSError):
            os.kill(os.getppid(), number)
    else:
        raise Interrupted(number)


def _say_that_it_waits(number: int) -> None:
    if state.listening and state.held and state.received:
        _write(
            f"{signal.Signals(number).name} is heard, and what is under way, such as a training"
            " step, is ended first; a second signal ends the process at once"
        )


def _end(number: int, why: str) -> None:
    _write(why)
    os._exit(128 + number)


def _write(line: str) -> None:
    with contextlib.suppress(OSError):
        stream = sys.__stderr__.fileno() if sys.__stderr__ else 2
        os.write(stream, f"lit-offrl: {line}.\n".encode())


def _leave() -> None:
    """Let the outcome stand: from here on nothing of Python's is left that could answer a signal.

    A process that a signal has stopped does not spend seconds on freeing what it holds.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if state.received and state.exit_code is not None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os._exit(state.exit_code)


def _forget_in_a_fork() -> None:
    """A forked process, such as one of ``ddp_fork``, dies of signals; its parent answers them."""
    if state.listening:
        state.listening = False
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all alike


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_a_fork)
