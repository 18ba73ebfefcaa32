"""The folders that a fit works in, which no second fit may work in meanwhile."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import refusals
from lit_offrl.experiments.process import folder_lock

LOCK = ".fit.lock"


class Folders(contextlib.ExitStack):
    """Holds the locks of folders until it is closed, and other fits may come in.

    Two fits that write one ``last.ckpt`` would replace each other's weights, and two that go on
    from one checkpoint would log to one MLflow run. Of several processes of a fit the first one
    holds the locks. A sweep's lock on its cell is another file.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: set[Path] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        """Locks stay with the process that holds them."""
        return Folders, (), {"_held": self._held}

    def hold(self, folder: Path) -> None:
        """Keep other fits out of a folder, which is made if it is not there.

        Raises:
            ConfigError: another fit works in it.
            FileError: it cannot be written to.
        """
        if getattr(rank_zero_only, "rank", 0) or folder.resolve() in self._held:
            return
        with refusals(folder, "made"):
            lock = self.enter_context(folder_lock(folder, LOCK))
        if lock is None:
            raise ConfigError(
                f"{folder}: another fit is at work in this folder, and would replace this one's "
                "checkpoints: wait for it or end it, or give another --checkpoint.dirpath."
            )
        self._held.add(folder.resolve())
