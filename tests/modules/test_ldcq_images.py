"""Pictures: a β-VAE that compresses them, and a first stage that sees them through it."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from lit_offrl.__main__ import main
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import Transitions
from lit_offrl.errors import ConfigError
from lit_offrl.modules import ImageVAEModule, LDCQStage1Module, load_module
from lit_offrl.randomness import ShardedGenerator

SIDE, ROWS, LENGTH = 16, 200, 20


def make_columns(largest=255.0):
    """Ground below a horizon whose height varies, under a sky whose brightness does."""
    random = np.random.default_rng(0)
    heights, light = random.uniform(2, SIDE - 2, ROWS), random.uniform(0.3, 0.9, ROWS)
    below = np.arange(SIDE) >= heights[:, None]
    pixels = np.where(below, 0.1, light[:, None])[:, :, None, None]
    frames = np.broadcast_to(pixels, (ROWS, SIDE, SIDE, 3)) * [1.0, 0.6, 0.2]
    return {
        "observations": (largest * frames).reshape(ROWS, -1).astype(np.float32),
        "actions": np.stack([heights / SIDE, light], axis=1).astype(np.float32),
        "rewards": np.zeros(ROWS, np.float32),
        "timeouts": np.arange(ROWS) % LENGTH == LENGTH - 1,
    }


@pytest.fixture
def file(folder):
    with h5py.File("frames.hdf5", "w") as file:
        for name, column in make_columns().items():
            file[name] = column
    return "frames.hdf5"


def lit(model, *options):
    words = ["fit", "--model", model, "--data", "D4RLDataModule"]
    words += ["--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    words += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    words += ["--data.init_args.batch_size", "16", "--model.init_args.width", "8"]
    return main([*words, *options])


def test_trained_pictures_come_back_better_than_the_mean_picture():
    torch.manual_seed(0)
    data = OfflineDataset.from_columns(make_columns())
    module = ImageVAEModule(3 * SIDE**2, 2, latent_dim=8, width=32)
    low, high = (data.column("observations").min(), data.column("observations").max())
    module.normalizer.fit(np.array([[low] * 3 * SIDE**2, [high] * 3 * SIDE**2]))
    view = Transitions().bind(data)
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    for step in range(120):
        module.noise = ShardedGenerator(0, step)
        batch = view.batch(view.rows[module.noise.integers(0, len(view.rows), (32,))])
        optimizer.zero_grad()
        torch.stack(list(module.losses(batch).values())).sum().backward()
        optimizer.step()
    frames = torch.from_numpy(np.array(data.column("observations")))
    features = module.features(frames.view(10, 20, -1))
    assert features.shape == (10, 20, 8) and not features.requires_grad
    error = (module.reconstruct(features).view_as(frames) - frames).square().mean()
    of_mean = (frames - frames.mean(0)).square().mean()
    assert error < 0.6 * of_mean


def test_both_stages_from_the_command_line(file, capsys):
    data = ("--data.init_args.dataset", file, "--data.init_args.env_id", "Pendulum-v1")
    run = ("--trainer.max_steps", "2", "--checkpoint.dirpath")
    assert lit("ImageVAEModule", *data, *run, "vae", "--model.init_args.latent_dim", "4") == 0
    assert "no evaluation: ImageVAEModule only compresses frames" in capsys.readouterr().out
    vae = load_module("vae/last.ckpt")
    low, high = vae.normalizer.low, vae.normalizer.high
    assert (low == low[0]).all() and (high == high[0]).all() and low[0] < 30 and high[0] > 200

    small = ("--model.init_args.horizon", "3", "--model.init_args.gru_layers", "1")
    small += (
        "--trainer.precision",
        "bf16-mixed",
        "--evaluation.episodes",
        "0",
        "--model.init_args.image_encoder",
        "vae/last.ckpt",
    )
    assert lit("LDCQStage1Module", *data, *run, "one", *small) == 0
    # its own checkpoint acts without the other's, and training has left those weights alone
    Path("vae/last.ckpt").unlink()
    module = load_module("one/last.ckpt")
    assert module.state_dim == 4 and module.images is not None
    for name, value in vae.state_dict().items():
        assert torch.equal(module.images.state_dict()[name], value), name
    frames = make_columns()["observations"][:5]
    acted = module.policy(sample_latents=False).act(frames)
    assert acted.shape == (5, 2) and np.isfinite(acted).all()
    assert module.normalize(torch.from_numpy(frames)).shape == (5, 4)
    world = module.world(module.normalize(torch.from_numpy(frames)), torch.zeros(5, 16))
    assert module.denormalize(world).shape == frames.shape


def test_each_frame_of_the_data_is_encoded_once(file, monkeypatch):
    data = ("--data.init_args.dataset", file, "--evaluation.episodes", "0")
    vae = ("--model.init_args.latent_dim", "4", "--trainer.max_steps", "1")
    assert lit("ImageVAEModule", *data, *vae, "--checkpoint.dirpath", "vae") == 0
    encoded, seen = [], []
    plain, ours = ImageVAEModule.features, LDCQStage1Module.states

    def encode(self, frames):
        encoded.append(frames[..., 0].numel())
        return plain(self, frames)

    def states(self, batch):
        found = ours(self, batch)
        apart = (found - plain(self.images, batch.observations)).abs()
        seen.append((apart * batch.mask[:, :, None]).max().item())
        return found

    monkeypatch.setattr(ImageVAEModule, "features", encode)
    monkeypatch.setattr(LDCQStage1Module, "states", states)
    small = ("--model.init_args.horizon", "3", "--model.init_args.gru_layers", "1")
    small += (
        "--model.init_args.image_encoder",
        "vae/last.ckpt",
        "--model.init_args.partial",
        "all",
    )
    for steps, every_frame in ((3, ROWS + 1), (5, 1)):  # a second run finds them stored
        encoded.clear()
        run = ("--trainer.max_steps", str(steps), "--checkpoint.dirpath", f"one-{steps}")
        more = ("--trainer.limit_val_batches", "0", "--data.init_args.validation_fraction", "0")
        assert lit("LDCQStage1Module", *data, *small, *run, *more) == 0
        assert sum(encoded) == every_frame + steps * 16  # the frame after each window, B = 16
    encoded.clear()
    later = ("--trainer.max_steps", "2", "--checkpoint.dirpath", "two", *more)
    later += ("--model.init_args.widths", "[8,4,8]", "--model.init_args.stage1", "one-3/last.ckpt")
    assert lit("LDCQStage2Module", *data, *later) == 0  # whose posteriors are of stored frames
    assert sum(encoded) == 1 + 2 * 16  # the first state of each window
    assert len(seen) > 8 and max(seen) < 1e-5


def test_what_are_no_pictures_is_refused(file):
    with pytest.raises(ConfigError, match="6913 numbers, which are no RGB frames"):
        ImageVAEModule(6913)
    with pytest.raises(ConfigError, match="no RGB frames whose side"):
        ImageVAEModule(3 * 12**2)
    with pytest.raises(ConfigError, match="normalize is for states"):
        LDCQStage1Module(3 * SIDE**2, 2, image_encoder="any.ckpt", normalize=True)
    assert lit("ImageVAEModule", "--data.init_args.dataset", file, "--trainer.max_steps", "1",
               "--evaluation.episodes", "0", "--checkpoint.dirpath", "vae") == 0  # fmt: skip
    with pytest.raises(ConfigError, match="has observation_dim 768, this stage 192"):
        LDCQStage1Module(192, 2, image_encoder="vae/last.ckpt")
