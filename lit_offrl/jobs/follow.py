"""Watching jobs on a terminal or in a log, and stopping them by signals."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live

from lit_offrl.common import signals

LOOK_SECONDS = 0.5


class Executor(Protocol):
    """Who works on jobs."""

    @property
    def way_on(self) -> str:
        """How to go on after a stop."""

    def done(self) -> bool:
        """Whether nothing is left to wait for."""

    def stop(self) -> str:
        """Stop gracefully; return what to say."""

    def kill(self) -> None:
        """Stop at once."""


class Shown(Protocol):
    """What is known of jobs."""

    def table(self) -> RenderableType:
        """All of it."""


def console_of_stdout() -> Console:
    """Return a console; where stdout is no terminal, one that takes it for none.

    Whatever FORCE_COLOR says, which notebooks set: a table cannot move there.
    """
    return Console() if sys.stdout.isatty() else Console(width=160, force_terminal=False)


def follow(begin: Callable[[], Executor], board: Shown, console: Console, command: str) -> int:
    """Show the progress until all is done; return 0, or 128 + the number of a signal.

    Args:
        begin: begins the work, where signals are heard already, and returns who works.
        board: what is shown.
        console: where.
        command: begins messages.
    """
    moving = console.is_terminal
    live = Live(console=console, auto_refresh=False)
    with signals.collected() as received, live if moving else nullcontext():
        executor = begin()
        answered = 0
        while not executor.done():
            if len(received) > answered:
                if answered:
                    executor.kill()
                else:
                    print(f"{command}: {executor.stop()}", file=sys.stderr)
                answered = len(received)
            if moving:
                live.update(board.table(), refresh=True)
            time.sleep(LOOK_SECONDS)
        if moving:
            live.update(board.table(), refresh=True)
        else:
            console.print(board.table())
    if received:
        name = signal.Signals(received[0]).name
        print(f"{command}: stopped by {name}; {executor.way_on}.", file=sys.stderr)
        return 128 + received[0]
    return 0
