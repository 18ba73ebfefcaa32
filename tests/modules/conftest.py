"""Small data of a walk in the plane, tiny modules, and a Trainer that is quiet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from lit_offrl.datamodules import OfflineDataModule
from lit_offrl.datasets.hdf5 import write_hdf5
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.modules import DVFModule, LDCQStage1Module, LDCQStage2Module

EPISODES, LENGTH = 8, 9
TINY = {
    "width": 8,
    "blocks": 1,
    "heads": 2,
    "latents": 2,
    "history": 2,
    "diffusion_steps": 4,
    "sampling_steps": 2,
    "num_samples": 3,
    "hidden": (8,),
    "gamma": 0.9,
    "learning_rate": 1e-2,
}


def make_columns(without: tuple[str, ...] = (), scale: float = 1.0) -> dict[str, np.ndarray]:
    """Columns of 8 episodes of 9 steps; every second one ends in a true terminal."""
    random = np.random.default_rng(0)
    rows = EPISODES * LENGTH
    ends = np.arange(rows) % LENGTH == LENGTH - 1
    even = np.arange(rows) // LENGTH % 2 == 0
    columns = {
        "observations": scale * random.normal(size=(rows, 2)).astype(np.float32),
        "actions": random.uniform(-1, 1, (rows, 1)).astype(np.float32),
        "rewards": random.normal(size=rows).astype(np.float32),
        "terminals": ends & even,
        "timeouts": ends & ~even,
        "policy": even.astype(np.float32),
    }
    return {name: column for name, column in columns.items() if name not in without}


@pytest.fixture
def columns() -> Callable[..., dict[str, np.ndarray]]:
    return make_columns


@pytest.fixture
def tiny() -> Callable[..., DVFModule]:
    """Build a small DVFModule for the data above, with a fitted normaliser."""

    def build(action_dim: int = 1, **options) -> DVFModule:
        torch.manual_seed(0)
        low, high = ((-1.0,), (1.0,)) if action_dim else (None, None)
        module = DVFModule(2, action_dim, low, high, **{**TINY, **options})
        module.normalizer.fit(make_columns()["observations"])
        return module

    return build


@pytest.fixture
def whole_batch() -> Callable:
    """Make one batch of all valid rows of the data above, as the module's own view sees them."""

    def make(module: DVFModule, **options):
        view = module.view().bind(OfflineDataset.from_columns(make_columns(**options)))
        uniforms = torch.rand(len(view.rows), 1, generator=torch.Generator().manual_seed(1))
        return view.batch(view.rows, uniforms)

    return make


@pytest.fixture
def awake() -> Callable:
    """Move all weights at random, as training would: a new denoiser answers 0 to everything."""

    def wake(net: torch.nn.Module) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        return net

    return wake


@pytest.fixture
def fit(tmp_path) -> Callable[..., Trainer]:
    """Train a module on the data above in a real Trainer; returns the Trainer."""

    def run(module, steps: int, *callbacks, validate=False, ckpt_path=None, **options) -> Trainer:
        path = tmp_path / f"data{len(list(tmp_path.iterdir()))}.hdf5"
        write_hdf5(path, make_columns(**options), {"action_low": [-1.0], "action_high": [1.0]})
        data = OfflineDataModule(
            str(path), batch_size=16, validation_fraction=0.25 if validate else 0
        )
        trainer = Trainer(
            max_steps=steps,
            callbacks=list(callbacks),
            accelerator="cpu",
            logger=False,
            default_root_dir=tmp_path,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if validate else 0,
        )
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return trainer

    return run


@pytest.fixture
def save(fit, tmp_path) -> Callable[..., Path]:
    """Train as ``fit`` does and write a checkpoint; returns its path."""

    def run(module, steps: int, *callbacks, name="run.ckpt", **options) -> Path:
        trainer = fit(module, steps, *callbacks, **options)
        trainer.save_checkpoint(tmp_path / name)
        return tmp_path / name

    return run


@pytest.fixture
def stages(save) -> Callable[..., Path]:
    """Make tiny checkpoints of LDCQ's stages 1 and 2 on the data above; returns a path."""

    def make(number: int = 1, steps: int = 2, **options) -> Path:
        torch.manual_seed(0)
        if number == 1:
            sizes = {"horizon": 3, "latent_dim": 2, "width": 8, "gru_layers": 1}
            stage = LDCQStage1Module(2, 1, (-1.0,), (1.0,), **{**sizes, **options})
            return save(stage, steps, name="stage1.ckpt")
        sizes = {"widths": (8, 4, 8), "width": 8, "diffusion_steps": 20, "learning_rate": 1e-2}
        stage2 = LDCQStage2Module(2, 1, stage1=str(make()), **{**sizes, **options})
        return save(stage2, steps, name="stage2.ckpt")

    return make
