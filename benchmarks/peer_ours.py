"""This library's own loops, as ``lit-offrl fit`` runs them, told apart into steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.peer_turns import Pace
from lit_offrl import modules
from lit_offrl.callbacks import Curves, Duration, FiniteGuard, GracefulStop
from lit_offrl.callbacks.progress import StepProgress
from lit_offrl.cli.main import TRAINER_DEFAULTS
from lit_offrl.common.quiet import quiet
from lit_offrl.datamodules import OfflineDataModule
from lit_offrl.modules import OfflineModule

_ENDLESS = 10**9


class Fit(NamedTuple):
    """What is fitted to which rows."""

    kind: str
    """The method's class."""
    options: dict[str, Any]
    rows: Path
    batch_size: int
    gradient_clip: float | None = None

    def data(self) -> OfflineDataModule:
        """All rows of the file."""
        return OfflineDataModule(
            str(self.rows),
            batch_size=self.batch_size,
            validation_fraction=0.0,
            data_dir=str(self.rows.parent),
        )

    def module(self, data: OfflineDataModule) -> OfflineModule:
        """The method with random weights."""
        spec = data.spec
        torch.manual_seed(0)
        bounds: tuple[Any, ...] = (spec.action_low, spec.action_high)
        kind = getattr(modules, self.kind)
        made: OfflineModule = kind(spec.observation_dim, spec.action_dim, *bounds, **self.options)
        return made


class _Steps(Callback):
    """Tells of optimiser steps, of which one batch's end may stand for several."""

    sees_calls = True

    def __init__(self, pace: Pace) -> None:
        self._pace, self._done = pace, 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Tell of those since the last time."""
        number, self._done = trainer.global_step - self._done, trainer.global_step
        if number:
            self._pace.step(number)


def trainer(fit: Fit, precision: str, *callbacks: Callback, **options: Any) -> Trainer:
    """The Trainer of ``lit-offrl fit``, without validation, logger and checkpoints."""
    quiet()
    defaults: dict[str, Any] = {
        **TRAINER_DEFAULTS,
        **{"max_steps": _ENDLESS, "limit_val_batches": 0, "accelerator": "cpu", "devices": 1},
        **{"logger": False, "enable_checkpointing": False, "enable_model_summary": False},
    }
    return Trainer(
        **defaults | options,
        precision=precision,  # type: ignore[arg-type]
        gradient_clip_val=fit.gradient_clip,
        callbacks=[FiniteGuard(), Curves(), GracefulStop(), Duration(), *callbacks],
    )


def run_fit(pace: Pace, fit: Fit, precision: str) -> None:
    """Fit without end, with all that Lightning and the callbacks do around a step."""
    data = fit.data()
    trainer(fit, precision, StepProgress(), _Steps(pace)).fit(fit.module(data), data)


def run_plain(pace: Pace, fit: Fit) -> None:
    """The same steps in a plain loop: what Lightning and the callbacks cost is the difference."""
    data = fit.data()
    data.setup("fit")
    assert data.dataset is not None
    module, number = fit.module(data), 0
    module.normalizer.fit(data.dataset.columns["observations"])
    module.train()
    optimizer, loader = module.configure_optimizers(), data.train_dataloader()
    while True:
        for batch in loader:  # an epoch
            pace.step()
            module.seed_noise(number)
            loss = torch.stack(list(module.losses(batch).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            module.after_step()
            number += 1


def save_stage(fit: Fit, path: Path) -> None:
    """Store a stage of LDCQ after one step, for the next one to be built on."""
    data = fit.data()
    made = trainer(fit, "32-true", max_steps=1, enable_progress_bar=False)
    made.fit(fit.module(data), data)
    made.save_checkpoint(path)


def run_decision(pace: Pace, fit: Fit, number: int) -> None:
    """The best of n latents in a state, as LDCQ's policy chooses it."""
    data = fit.data()
    module = fit.module(data).eval()
    assert isinstance(module, modules.LDCQStage3Module)
    state = torch.randn(1, data.spec.observation_dim)
    while True:
        pace.step()
        module.choose(state, number, module.how)
