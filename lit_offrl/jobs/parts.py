"""How long a job has taken, over all the processes that it was done in.

The file holds ``[begun, ended]`` of each, in seconds since the epoch. Where both the process and
whoever watched it were killed, nobody has seen the end: the last sign of life in its files counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_offrl.common.files import write_whole


@dataclass(frozen=True)
class Parts:
    """The parts of one job.

    Attributes:
        path: the file.
        signs: files that the job writes as it goes.
    """

    path: Path
    signs: tuple[Path, ...]

    def begin(self) -> None:
        """A part begins now."""
        self._write([*self.closed(), (time.time(), None)])

    def end(self) -> None:
        """The last part ends now."""
        parts: list[tuple[float, float | None]] = [*self._read()]
        if parts:
            parts[-1] = (parts[-1][0], time.time())
            self._write(parts)

    def closed(self) -> list[tuple[float, float]]:
        """All parts with their ends; of one without, the last sign of life."""
        return [
            (begun, max(begun, self._last_sign()) if ended is None else ended)
            for begun, ended in self._read()
        ]

    def seconds(self) -> float:
        """Sum of all parts."""
        return sum(ended - begun for begun, ended in self.closed())

    def __len__(self) -> int:
        return len(self._read())

    def _last_sign(self) -> float:
        return max((sign.stat().st_mtime for sign in self.signs if sign.exists()), default=0.0)

    def _read(self) -> list[tuple[float, float | None]]:
        try:
            return [(float(begun), ended) for begun, ended in json.loads(self.path.read_text())]
        except (OSError, ValueError, TypeError):
            return []

    def _write(self, parts: Sequence[tuple[float, float | None]]) -> None:
        write_whole(self.path, json.dumps(parts) + "\n")
