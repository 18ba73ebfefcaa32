"""All of LDCQ on its paper's random walk (appendix D), where a policy's best return is known.

The data step by ±(0.8 … 1), never by less, and an end is 10 away: steps of 1 reach it after 10 and
earn 1, steps of 0.8 after 13 and earn −2.
"""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer

from lit_offrl.__main__ import main
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.datamodules import OfflineDataModule
from lit_offrl.evaluation.evaluate import evaluate_module
from lit_offrl.modules import LDCQStage1Module, LDCQStage2Module, LDCQStage3Module, load_module

WALK = (1, 1, (-1.0,), (1.0,))


@pytest.fixture
def train(folder, data_directory):
    """Train a module on random walks; returns its checkpoint's path."""
    collect = ["collect", "--env", "lit_offrl/random-walk-v0", "--planner", "steps"]
    assert main([*collect, "--steps", "4000", "--output", "walk.hdf5"]) == 0

    def run(module, steps):
        trainer = Trainer(
            max_steps=steps,
            gradient_clip_val=1.0,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=OfflineDataModule("walk.hdf5", batch_size=128))
        path = f"{type(module).__name__}.ckpt"
        trainer.save_checkpoint(path)
        return path

    return run


@pytest.mark.slow
def test_ldcq_walks_straight_to_an_end_by_steps_of_the_data(train):
    torch.manual_seed(0)
    vae = LDCQStage1Module(
        *WALK, horizon=1, width=32, gru_layers=1, latent_dim=2, learning_rate=5e-3, decay="cosine"
    )
    stage1 = train(vae, 200)
    prior = LDCQStage2Module(
        *WALK, stage1=stage1, width=32, diffusion_steps=20, learning_rate=3e-3, decay="cosine"
    )
    stage2 = train(prior, 400)
    critics = LDCQStage3Module(
        *WALK, stage2=stage2, num_latents=10, state_hidden=(32,), latent_hidden=(32,),
        joined=(32, 32), tau=0.05, learning_rate=5e-3, decay="cosine",
    )  # fmt: skip
    module = load_module(train(critics, 400))

    places = torch.linspace(-8, 8, 9)[:, None]
    rows = places.repeat_interleave(100, 0)
    drawn = module.propose(places, 100, module.how, ShardedGenerator(0))
    small = module.first.decode(rows, drawn.flatten(0, 1)).abs() < 0.75
    mean, std = module.first.prior(module.first.normalize(rows))
    gaussian = module.first.decode(rows, mean + std * ShardedGenerator(1).normal(mean.shape))
    assert small.float().mean() < 0.05  # the diffusion prior keeps to the two modes
    assert (gaussian.abs() < 0.75).float().mean() > 0.4  # the Gaussian fills the gap

    returns = evaluate_module(module, episodes=10, seed=0).returns
    assert min(returns) >= -3.0
