"""How long a job has taken, over all the processes that it was done in.

The file holds ``[begin, end]`` of each process, in seconds since the epoch. Where both the process
and its parent were killed, nobody has recorded the end: the last modification of the files that the
job writes as it goes stands for it.
"""

from __future__ import annotations

import json
import time
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
        write_whole(self.path, json.dumps([*self.intervals(), (time.time(), None)]) + "\n")

    def end(self) -> None:
        """Record that the last process ends now."""
        if found := self.intervals():
            found[-1] = (found[-1][0], time.time())
            write_whole(self.path, json.dumps(found) + "\n")

    def intervals(self) -> list[tuple[float, float]]:
        """Return begin and end of each process; a missing end is the last sign of life."""
        last = max((sign.stat().st_mtime for sign in self.signs if sign.exists()), default=0.0)
        try:
            found = [(float(begin), end) for begin, end in json.loads(self.path.read_text())]
        except (OSError, ValueError, TypeError):
            return []
        return [(begin, max(begin, last) if end is None else end) for begin, end in found]

    def seconds(self) -> float:
        """Return the sum over all processes."""
        return sum(end - begin for begin, end in self.intervals())
