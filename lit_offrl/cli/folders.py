"""The folders that a fit works in, which no second fit may work in meanwhile."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_offrl.common.errors import ConfigError, FileError
from lit_offrl.experiments.process import folder_lock

LOCK = ".fit.lock"


class Folders:
    """Holds the locks of folders until it is closed.

    Two fits that write one ``last.ckpt`` would replace each other's weights, and two that go on
    from one checkpoint would log to one MLflow run. Of several processes of a fit the first one
    holds the locks. A sweep's lock on its cell is another file.
    """

    def __init__(self) -> None:
        self._locks = contextlib.ExitStack()
        self._held: set[Path] = set()

    def close(self) -> None:
        """Let other fits in."""
        self._locks.close()

    def __getstate__(self) -> dict[str, Any]:
        """Locks stay with the process that holds them."""
        return {"_locks": contextlib.ExitStack(), "_held": self._held}

    def hold(self, folder: Path) -> None:
        """Keep other fits out of a folder, which is made if it is not there.

        Raises:
            ConfigError: another fit works in it.
            FileError: it cannot be written to.
        """
        if getattr(rank_zero_only, "rank", 0) or folder.resolve() in self._held:
            return
        try:
            lock = self._locks.enter_context(folder_lock(folder, LOCK))
        except OSError as error:
            why = error.strerror or error
            raise FileError(f"{folder}: cannot be made ({why}): choose another place.") from None
        if lock is None:
            raise ConfigError(
                f"{folder}: another fit is at work in this folder, and would replace this one's "
                "checkpoints: wait for it or end it, or give another --checkpoint.dirpath."
            )
        self._held.add(folder.resolve())
