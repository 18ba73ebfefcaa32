"""How long a job has taken, over all the processes that it was done in.

The file holds ``[begin, end]`` of each process, in seconds since the epoch. Where both the process
and its parent were killed, nobody has recorded the end: the last modification of the files that the
job writes as it goes stands for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_offrl.common.files import write_whole


@dataclass(frozen=True)
class WallTime:
    """The processes of one job and their times.

    Attributes:
        path: The file.
        signs: Files that the job writes as it goes.
    """

    path: Path
    signs: tuple[Path, ...]

    def begin(self) -> None:
        """Record that a process begins now."""
        self._write([*self.intervals(), (time.time(), None)])

    def end(self) -> None:
        """Record that the last process ends now."""
        intervals: list[tuple[float, float | None]] = [*self._read()]
        if intervals:
            intervals[-1] = (intervals[-1][0], time.time())
            self._write(intervals)

    def intervals(self) -> list[tuple[float, float]]:
        """Return begin and end of each process; a missing end is the last sign of life."""
        return [
            (begin, max(begin, self._last_sign()) if end is None else end)
            for begin, end in self._read()
        ]

    def seconds(self) -> float:
        """Return the sum over all processes."""
        return sum(end - begin for begin, end in self.intervals())

    def __len__(self) -> int:
        return len(self._read())

    def _last_sign(self) -> float:
        return max((sign.stat().st_mtime for sign in self.signs if sign.exists()), default=0.0)

    def _read(self) -> list[tuple[float, float | None]]:
        try:
            return [(float(begin), end) for begin, end in json.loads(self.path.read_text())]
        except (OSError, ValueError, TypeError):
            return []

    def _write(self, intervals: Sequence[tuple[float, float | None]]) -> None:
        write_whole(self.path, json.dumps(intervals) + "\n")
