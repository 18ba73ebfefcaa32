"""When checkpoints are written, and where the files of a run go."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lit_offrl.callbacks.best import FILE, LOSSES, Best, Mode
from lit_offrl.callbacks.every import EveryNSteps
from lit_offrl.callbacks.lookup import find_callback, settings
from lit_offrl.common import signals
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import make_folder, sweep, whole_file
from lit_offrl.common.quiet import say
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.checkpoint_form import CHECKPOINTS


class WholeFileIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file and then replaces the former one by it.

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
            noting = _Noting(stream)
            try:
                torch.save(checkpoint, cast(IO[bytes], noting))
            except RuntimeError:
                if noting.error is None:
                    raise
                raise noting.error from None  # torch says nothing of the disk


class _Noting:
    """A stream that keeps the error of a write, which torch turns into one of its own."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write."""
        try:
            return self._stream.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Write what is held back."""
        try:
            self._stream.flush()
        except OSError as error:
            self.error = error
            raise


class Checkpoints(EveryNSteps, ModelCheckpoint):
    """``last.ckpt`` every N optimiser steps, at the end, and when a signal asks to stop.

    Which checkpoint counts is not chosen by hand: it is the last one, or with ``keep: best`` also
    the best one by a metric of validations, ``best.ckpt``. A checkpoint is written only
    between two steps, after the validation that belongs to its step, and replaces the former one
    whole or not at all; so whatever kills a run, the file resumes to the same weights.

    An exception writes nothing: the weights may be half-way through a step.

    Args:
        dirpath: Folder of the run. The default is a new ``checkpoints/MODULE-DATASET-seedSEED``, or
            for a resumed run the folder of its checkpoint.
        every_n_train_steps: Number N of optimiser steps between two checkpoints, at least 1.
        keep: Which files are kept: ``last`` alone; ``all`` adds a ``step-STEP.ckpt`` each time; and
            ``best`` adds ``best.ckpt``, the checkpoint of the best validation so far.
        monitor: Metric that ``best`` is chosen by: one of validations, such as ``val/loss/actor``,
            or ``val/loss``, the sum of the method's losses on held-out episodes.
        mode: Whether the lowest (``min``) or the highest (``max``) value of the metric is the best.

    Raises:
        ConfigError: N is not positive, or no metric is there for ``best``.
        FileError: The folder cannot be made, or a checkpoint cannot be written.
    """

    state_key = CHECKPOINTS  # whatever the options: a resumed run may differ

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_train_steps: int = 1000,
        keep: Literal["last", "all", "best"] = "last",
        monitor: str = LOSSES,
        mode: Mode = "min",
    ) -> None:
        if every_n_train_steps < 1:
            raise ConfigError(f"every_n_train_steps is {every_n_train_steps}: give at least 1.")
        super().__init__(
            dirpath=dirpath,
            filename="step-{step}",
            auto_insert_metric_name=False,
            save_last=True,
            save_top_k=-1 if keep == "all" else 0,
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,
        )
        if keep != "best" and (monitor, mode) != (LOSSES, "min"):
            raise ConfigError(f"checkpoint.monitor is {monitor} ({mode}): it goes with keep: best.")
        self.interval = every_n_train_steps
        self._best = Best(monitor, mode) if keep == "best" else None
        self.namesake: Path | None = None
        """The folder of an earlier run of the same name, where this one's got a number."""
        self.hold: Callable[[Path], None] | None = None
        """Keeps other fits out of the run's folder; called by the first process."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder."""
        if stage == "fit":
            if self.dirpath is None:
                name = run_name(pl_module, getattr(settings(trainer).datamodule, "spec", None))
                self.dirpath = str(trainer.strategy.broadcast(_folder(trainer, name)))
                if Path(self.dirpath).name != name:
                    self.namesake = Path(self.dirpath).with_name(name)
            make_folder(Path(self.dirpath))
            if trainer.is_global_zero and self.hold is not None:
                self.hold(Path(self.dirpath))
            if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
                trainer.strategy.checkpoint_io = WholeFileIO()
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The step that the run begins at needs no new checkpoint."""
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step
        _begin_a_new_epoch_after_a_whole_one(trainer)
        if self._best is None or settings(trainer).fast_dev_run:
            return
        if not sum(trainer.num_val_batches):
            raise ConfigError(
                "checkpoint.keep best goes by validations, of which this run has none: hold"
                " episodes out with data.init_args.validation_fraction."
            )
        if self._best.value is not None and self.best_path is None:
            say(f"{FILE} of step {self._best.step} is not in {self.dirpath}: the next validation"
                " begins anew.")  # fmt: skip
            self._best.value = None

    @property
    def best_monitor(self) -> str | None:
        """The metric that the best checkpoint is chosen by, with ``keep: best``."""
        return None if self._best is None else self._best.monitor

    @property
    def best_path(self) -> Path | None:
        """The file of the best checkpoint so far, if there is one."""
        path = Path(self.dirpath or "", FILE)
        return path if self._best is not None and path.is_file() else None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this step's batch asked for it, and the best so far if this is it."""
        if trainer.sanity_checking:
            return
        if self._best is not None and not settings(trainer).fast_dev_run:
            self._save_best(trainer, self._best)
        super().on_validation_end(trainer, pl_module)

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        self.save_now(trainer)

    def _save_best(self, trainer: Trainer, best: Best) -> None:
        try:
            is_best = best.improves(trainer)
        except ConfigError:
            self.save_now(trainer)  # a misspelt name costs no steps
            raise
        if is_best:
            trainer.save_checkpoint(Path(self.dirpath or "", FILE))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: steps count here, epochs do not."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of a run that ended before its last step (early stopping, a time limit)."""
        self.save_now(trainer)
        if self._best is None or settings(trainer).fast_dev_run:
            return
        if self._best.value is None:
            say(f"no {FILE}: there was no validation; lower trainer.val_check_interval.")
        else:
            say(f"{FILE}: step {self._best.step}, {self._best.rule} {self._best.value:.4g}.")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Nothing: ``GracefulStop`` knows whether the weights are between two steps."""

    def save_now(self, trainer: Trainer) -> None:
        """Save, unless this step is saved already; all processes must call this."""
        self._due = None
        if settings(trainer).fast_dev_run or trainer.global_step == self._last_global_step_saved:
            return
        module = trainer.lightning_module
        if isinstance(module, OfflineModule):  # before Lightning takes the new path for the last
            module.require_finite_weights()
        with signals.held():
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)

    def state_dict(self) -> dict[str, Any]:
        """Which checkpoint is the best so far, with ``keep: best``; nothing of Lightning's own."""
        return {} if self._best is None else {"best": self._best.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back which checkpoint is the best so far."""
        if self._best is not None and "best" in state_dict:
            self._best.load_state_dict(state_dict["best"])


def _begin_a_new_epoch_after_a_whole_one(trainer: Trainer) -> None:
    """Count the epoch that a resumed run begins with, where the former one was whole.

    Lightning takes a checkpoint of an epoch's last batch to be from within the epoch: it would
    neither count the next one as begun nor call ``on_train_epoch_start`` for it.
    """
    loop = settings(trainer).fit_loop
    epochs = loop.epoch_progress.total
    if loop.restarted_mid_epoch and epochs.started == epochs.processed:
        loop.reset_restart_stage()


def run_name(module: LightningModule, spec: DatasetSpec | None) -> str:
    """Return ``MODULE-DATASET-seedSEED``, a name for a run in folders and in MLflow.

    Of a dataset such as ``minari:D4RL/door/human-v2`` it makes no folders in folders.
    """
    data = [] if spec is None else [re.sub(r"[/\\:]+", "-", spec.name)]
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
    name = re.sub(r"[/\\\0]", "-", name)  # a dataset's name is data: it leads to no other folder
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
