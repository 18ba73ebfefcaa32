"""Cells on this machine: N workers, each with one cell at a time."""

from __future__ import annotations

import queue
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from lit_offrl.jobs.children import Children
from lit_offrl.sweeps.cell import CellFolder
from lit_offrl.sweeps.table import Board
from lit_offrl.sweeps.work import Choices, work_on


class LocalExecutor:
    """Works on cells in threads that wait for processes.

    Args:
        folders: of the cells, in the order to begin them.
        choices: what to do with failed and changed ones.
        board: is told what happens.
        workers: cells at a time.
        gpus: the workers' ``CUDA_VISIBLE_DEVICES``, in turn; none leaves it as it is.
    """

    way_on = "the same command goes on"

    def __init__(
        self,
        folders: Sequence[CellFolder],
        choices: Choices,
        board: Board,
        *,
        workers: int,
        gpus: Sequence[str] = (),
    ) -> None:
        self._children, self._board, self._choices = Children(), board, choices
        self._slots: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for number in range(workers):
            self._slots.put({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})
        self._pool = ThreadPoolExecutor(workers)
        self._futures = [self._pool.submit(self._work, folder) for folder in folders]

    def _work(self, folder: CellFolder) -> None:
        if self._children.stopping:
            return
        slot = self._slots.get()
        try:
            self._board.begins(folder)
            why = work_on(folder, self._choices, self._children, slot)
            self._board.ends(folder, why)
        finally:
            self._slots.put(slot)

    def done(self) -> bool:
        """Whether nothing is left to wait for.

        Raises:
            Exception: a fault of this library's in a worker.
        """
        if not all(future.done() for future in self._futures):
            return False
        for future in self._futures:
            future.result()
        return True

    def stop(self) -> str:
        """Ask every process to save and leave; return what to say."""
        self._children.stop()
        return "stopping: fits save and leave; a second signal kills them"

    def kill(self) -> None:
        """End every process at once."""
        self._children.stop(signal.SIGKILL)
