"""When checkpoints are written, and where the files of a run go."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lit_offrl.callbacks.interruption import Interrupted
from lit_offrl.callbacks.lookup import find_callback, settings, validation_follows
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.errors import ConfigError
from lit_offrl.files import make_folder, sweep, whole_file


class WholeFileIO(TorchCheckpointIO):
    """Writes a checkpoint beside the former one and then puts it in its place.

    Lightning writes it to the folder for temporary files and moves it, which where that is another
    file system is a copy over the former one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            FileError: it cannot be written; what was there is there still.
        """
        with whole_file(Path(path)) as temporary, temporary.open("wb") as stream:
            torch.save(checkpoint, stream)


class Checkpoints(ModelCheckpoint):
    """``last.ckpt`` every N optimiser steps, at the end, and when a signal asks to stop.

    Which checkpoint counts is not chosen by hand: it is the last one. A checkpoint is written only
    between two steps, after the validation that belongs to its step, and replaces the former one
    whole or not at all; so whatever kills a run, the file resumes to the same weights.

    Any other exception writes nothing: the weights may be half-way through a step.

    Args:
        dirpath: the run's folder; by default a new ``checkpoints/MODULE-DATASET-seedSEED``, or when
            a run is resumed the folder that its checkpoint lies in.
        every_n_train_steps: N.
        keep: ``last`` keeps one file, ``all`` also a file ``step-STEP.ckpt`` each time.

    Raises:
        ConfigError: N is not positive.
        FileError: the folder cannot be made, or a checkpoint not be written.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_train_steps: int = 1000,
        keep: Literal["last", "all"] = "last",
    ) -> None:
        if every_n_train_steps < 1:
            raise ConfigError(f"every_n_train_steps is {every_n_train_steps}: give at least 1.")
        super().__init__(
            dirpath=dirpath,
            filename="step-{step}",
            auto_insert_metric_name=False,
            save_last=True,
            save_top_k=0 if keep == "last" else -1,
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,
        )
        self._due = False
        self.namesake: Path | None = None
        """The folder of an earlier run of the same name, where this one's got a number."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder."""
        if stage == "fit":
            if self.dirpath is None:
                name = run_name(pl_module, getattr(settings(trainer).datamodule, "spec", None))
                self.dirpath = str(trainer.strategy.broadcast(_folder(trainer, name)))
                if Path(self.dirpath).name != name:
                    self.namesake = Path(self.dirpath).with_name(name)
            make_folder(Path(self.dirpath))
            if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
                trainer.strategy.checkpoint_io = WholeFileIO()
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The step that the run begins at needs no new checkpoint."""
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step
        self._due = False

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save if it is time, or wait for the validation that belongs to this step."""
        step = trainer.global_step
        if step == self._last_global_step_saved:
            return  # saved already, or gradients are still being accumulated
        self._due = step % self._every_n_train_steps == 0 or step == trainer.max_steps
        if self._due and not validation_follows(trainer):
            self.save_now(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this step's batch asked for it."""
        if self._due and not trainer.sanity_checking:
            self.save_now(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: steps count here, epochs do not."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of a run that ended before its last step (early stopping, a time limit)."""
        self.save_now(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save if a signal asked to stop, which ends no fit within a step that moves weights."""
        if isinstance(exception, Interrupted):
            self.save_now(trainer)
            exception.checkpoint = self.last_model_path

    def save_now(self, trainer: Trainer) -> None:
        """Save, unless this step is saved already; all processes must call this."""
        self._due = False
        if settings(trainer).fast_dev_run or trainer.global_step == self._last_global_step_saved:
            return
        candidates = self._monitor_candidates(trainer)
        self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what Lightning would keep here is about the best checkpoint."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to take back."""


def run_name(module: LightningModule, spec: DatasetSpec | None) -> str:
    """Return ``MODULE-DATASET-seedSEED``, a name for a run in folders and in MLflow."""
    data = [] if spec is None else [spec.name]
    return "-".join([type(module).__name__, *data, f"seed{getattr(module, 'seed', 0)}"])


def run_folder(trainer: Trainer) -> Path:
    """Return the folder that holds the files of a run: config, records, figures, checkpoints."""
    checkpoints = find_callback(trainer, Checkpoints)
    if checkpoints is None or checkpoints.dirpath is None:
        return Path(trainer.default_root_dir)
    return Path(checkpoints.dirpath)


def _folder(trainer: Trainer, name: str) -> str:
    """Find a run's folder, making it where it is new, so that no two runs take the same."""
    if not trainer.is_global_zero:
        return ""  # the first process decides for all
    root = Path(trainer.default_root_dir) / "checkpoints"
    number = 1
    while True:
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            sweep(folder)  # an earlier run of the name may have been killed while it saved
            number += 1
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be made ({error.strerror}).") from error
        else:
            return str(folder.resolve())
