"""Metrics that callbacks watch are looked for before hours are spent."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lit_offrl.callbacks.best import LOSSES
from lit_offrl.callbacks.checkpoints import Checkpoints
from lit_offrl.callbacks.curves import Curves
from lit_offrl.callbacks.lookup import find_callback, settings
from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.common.quiet import say
from lit_offrl.modules.base import OfflineModule


class MonitorCheck(Callback):
    """Refuses to watch metrics that the run will not have.

    ``EarlyStopping``, ``ModelCheckpoint`` and ``checkpoint.keep: best`` name one by ``monitor``.
    Lightning would notice at the first validation, or train on without ever stopping. Here one
    batch is validated before the first step, as Lightning's sanity check; losses of networks that
    are trained later, and metrics in the module's ``late_metrics``, are known without it. A resumed
    run knows the metrics of its curves.

    Raises:
        ConfigError: naming what watches, its monitor and the metrics that there are.
    """

    def __init__(self) -> None:
        self._watching: list[Any] = []  # EarlyStopping and ModelCheckpoint
        self._seen: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask for a sanity check, if there is anything to find out."""
        self._watching = [
            each
            for each in settings(trainer).callbacks
            if isinstance(each, EarlyStopping | ModelCheckpoint) and each.monitor is not None
        ]
        self._seen = set()
        watching = [*self._watching, *self._best_monitor(trainer)]
        if stage == "fit" and watching and not settings(trainer).fast_dev_run:
            settings(trainer).num_sanity_val_steps = trainer.num_sanity_val_steps or 1

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what a validation measures."""
        self._seen = set(trainer.callback_metrics)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for each monitor."""
        validates = bool(sum(trainer.num_val_batches))
        known = self._known(trainer, pl_module, validates)
        for monitor in self._best_monitor(trainer):
            metrics = sorted({LOSSES, *(one for one in known if one.startswith("val/"))})
            if validates and monitor not in metrics:
                raise ConfigError(
                    f"checkpoint.monitor '{monitor}' is no metric of the validations of "
                    f"{type(pl_module).__name__}.{nearest(monitor, metrics)} Use "
                    f"{', '.join(metrics)}."
                )
        for each in self._watching:
            name, stops = type(each).__name__, isinstance(each, EarlyStopping)
            if stops and not each._check_on_train_epoch_end:
                self._require_validations(trainer, name, validates)
            if each.monitor in known:
                continue
            own = "val/" if validates else "train/"
            there = ", ".join(sorted(one for one in known if one.startswith(own)))
            line = (
                f"trainer.callbacks: {name} monitors '{each.monitor}', which is no metric of "
                f"{type(pl_module).__name__}.{nearest(str(each.monitor), known)} Use {there}"
            )
            if stops and not each.strict:
                say(f"{line}; strict is false, so the run goes on")
            else:
                raise ConfigError(f"{line}.")

    def _best_monitor(self, trainer: Trainer) -> list[str]:
        """Return the metric that ``checkpoint.keep: best`` goes by, unless there is surely one."""
        checkpoints = find_callback(trainer, Checkpoints)
        monitor = None if checkpoints is None else checkpoints.best_monitor
        return [] if monitor in (None, LOSSES) else [monitor]

    def _known(self, trainer: Trainer, module: LightningModule, validates: bool) -> set[str]:
        """Return the names of all metrics that the run has, or may come to have."""
        curves = find_callback(trainer, Curves)
        names = self._seen | (set(curves.history) if curves is not None else set())
        found = {name.partition("/")[2] for name in names if name.startswith(("val/", "train/"))}
        late: set[str] = set()
        if isinstance(module, OfflineModule):
            found |= {f"loss/{name}" for name in module.parameter_groups()}
            late = set(module.late_metrics)
        prefixes = ("val", "train") if validates else ("train",)
        return {f"{prefix}/{name}" for prefix in prefixes for name in found} | late

    def _require_validations(self, trainer: Trainer, name: str, validates: bool) -> None:
        if not validates:
            raise ConfigError(
                f"trainer.callbacks: {name} looks at validations, and this fit has none: set "
                "data.init_args.validation_fraction above 0, or its check_on_train_epoch_end to "
                "true."
            )
        interval: Any = trainer.val_check_batch
        if trainer.check_val_every_n_epoch is None and 0 < trainer.max_steps:
            batches = trainer.max_steps * trainer.accumulate_grad_batches
            if isinstance(interval, int) and interval > batches:
                say(
                    f"{name} never looks: the first validation would come after {interval:,} "
                    f"batches, and the run has {batches:,}; lower trainer.val_check_interval"
                )
