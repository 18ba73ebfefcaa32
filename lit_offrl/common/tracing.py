"""Whether code runs to be written down as a graph, which holds for any number of rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_TRACED = ContextVar("traced", default=False)


def traced() -> bool:
    """Whether what runs is written down as a graph.

    Then the number of rows is a symbol: code that is faster for few of them, or for many, has to
    take one way for all, and ``tensor.shape[0]`` has to stand for ``len(tensor)``, a plain number.
    """
    return _TRACED.get()


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Let ``traced`` be true within the block."""
    token = _TRACED.set(True)
    try:
        yield
    finally:
        _TRACED.reset(token)
