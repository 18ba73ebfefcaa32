"""Predictions go to a file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_offrl.common.files import require_replaceable, whole_file


class PredictionWriter(Callback):
    """Writes what ``predict_step`` returns, one array a key, as an ``.npz`` file.

    With several processes each writes its own rows, to ``NAME.rank0.npz`` and so on. A file that is
    there is replaced if it has earlier predictions.

    Args:
        path: Path of the file that is written.
    """

    def __init__(self, path: str = "predictions.npz") -> None:
        self.path = Path(path)
        self._parts: list[dict[str, torch.Tensor]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that the file can be written.

        Raises:
            FileError: it cannot, or another file is there.
        """
        require_replaceable(self._place(trainer), "file of predictions", _is_predictions)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Keep a batch."""
        self._parts.append({name: value.cpu() for name, value in outputs.items()})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, whole or not at all, and say where."""
        import numpy as np

        arrays: dict[str, Any] = {
            name: torch.cat([part[name] for part in self._parts]).numpy() for name in self._parts[0]
        }
        self._parts = []
        path = self._place(trainer)
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
        rows = len(next(iter(arrays.values())))
        print(f"predictions: {path} ({rows} rows: {', '.join(arrays)})")

    def _place(self, trainer: Trainer) -> Path:
        if trainer.world_size == 1:
            return self.path
        return self.path.with_suffix(f".rank{trainer.global_rank}{self.path.suffix}")


def _is_predictions(path: Path) -> bool:
    """Whether a file has what ``OfflineModule.predict_step`` returns, and nothing besides."""
    try:
        with zipfile.ZipFile(path) as file:
            return set(file.namelist()) == {"observations.npy", "actions.npy"}
    except (OSError, zipfile.BadZipFile):
        return False
