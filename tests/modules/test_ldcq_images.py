"""Pictures: a β-VAE that compresses them, and a first stage that sees them through it."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from lit_offrl.__main__ import main
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.datamodules import OfflineDataModule
from lit_offrl.datasets.hdf5 import write_hdf5
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import Transitions
from lit_offrl.modules import (
    ImageVAEModule,
    LDCQStage1Module,
    LDCQStage2Module,
    LDCQStage3Module,
    load_module,
)
from tests.helpers import unchecked

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


@unchecked()
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


def data_of(path, following=False, turned=False):
    """A datamodule of frames, every second episode of which ends in a true terminal."""
    columns = make_columns()
    even = np.arange(ROWS) // LENGTH % 2 == 0
    columns["terminals"] = columns["timeouts"] & even
    columns["timeouts"] &= ~even
    if turned:
        columns["observations"] = columns["observations"][::-1].copy()
    if following:  # of other frames than the rows have
        columns["next_observations"] = 0.5 * columns["observations"]
    write_hdf5(path, columns)
    return OfflineDataModule(path, batch_size=16, validation_fraction=0.2)


def run(module, data, steps, ckpt_path=None):
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


@pytest.fixture
def pictures(folder):
    """Make an image encoder of the data above, then a first stage on it."""

    def make(data, seed=0):
        torch.manual_seed(seed)
        vae = ImageVAEModule(3 * SIDE**2, 2, latent_dim=4, width=8)
        own = OfflineDataModule(data.spec.origin, batch_size=16)
        run(vae, own, 1).save_checkpoint(f"vae{seed}.ckpt")
        sizes = {"horizon": 3, "latent_dim": 2, "width": 8, "gru_layers": 1}
        return LDCQStage1Module(3 * SIDE**2, 2, **sizes, image_encoder=f"vae{seed}.ckpt")

    return make


@pytest.fixture
def encoded(monkeypatch):
    """How many frames each call encoded."""
    counts, plain = [], ImageVAEModule.features

    def features(self, frames):
        counts.append(frames[..., 0].numel())
        return plain(self, frames)

    monkeypatch.setattr(ImageVAEModule, "features", features)
    return counts


@pytest.mark.parametrize("following", [False, True])
def test_no_step_sees_a_frame_and_losses_are_those_of_the_frames(pictures, encoded, following):
    data = data_of("frames.hdf5", following)
    module = pictures(data)
    for number, every_frame in ((1, ROWS * (1 + following)), (2, 0), (3, 0)):
        encoded.clear()
        seen = []
        losses = module.losses
        module.losses = lambda batch, losses=losses, seen=seen: seen.append(batch) or losses(batch)
        trainer = run(module, data_of("frames.hdf5", following), 2)
        assert sum(encoded) == every_frame  # once, though snippets overlap, and found again
        assert len(seen) > 2  # also in validation
        for batch in seen:
            assert batch.observations.shape[1:] == (3, 4) and batch.next_observations.shape[1:] == (
                4,
            )
        del module.losses

        data = trainer.datamodule
        if number > 1:
            module.posteriors_from = "online"
        if number > 2:
            module.latents = "online"
        rows = data.train_view().rows
        found = []
        for view in (data.train_view(), module.view().bind(data.dataset)):
            module.seed_noise(0)
            found.append(module.eval().losses(view.batch(rows)))
        torch.testing.assert_close(*found)

        acted = trainer.predict(module, data)[0]
        assert acted["observations"].shape[1] == 3 * SIDE**2  # acting is by frames
        assert acted["actions"].shape[1] == 2 and acted["actions"].isfinite().all()

        trainer.save_checkpoint(f"{number}.ckpt")
        if number == 1:
            small = {"widths": (8, 4, 8), "width": 8, "diffusion_steps": 20}
            module = LDCQStage2Module(3 * SIDE**2, 2, stage1="1.ckpt", **small)
        elif number == 2:
            small = {"state_hidden": (8,), "latent_hidden": (8,), "joined": (8, 4)}
            module = LDCQStage3Module(3 * SIDE**2, 2, stage2="2.ckpt", num_latents=4, **small)


def test_features_are_of_the_data_and_the_encoder_at_hand(pictures):
    def same(module, data):
        dataset, view = data.dataset, data.whole_view()
        expected = module.images.features(torch.tensor(dataset.column("observations")))
        torch.testing.assert_close(view.batch(view.rows).observations[:, 0], expected[view.rows])

    data = data_of("frames.hdf5")
    first, second = pictures(data), pictures(data, seed=1)
    trainer = run(first, data, 2)
    same(first, data)
    trainer.save_checkpoint("first.ckpt")
    other = data_of("other.hdf5", turned=True)
    trainer.validate(first, other)
    same(first, other)
    run(second, data, 1)
    same(second, data)
    # and of a resumed run, which goes on as if it had never stopped
    resumed, unbroken = pictures(data), pictures(data)
    run(resumed, data_of("frames.hdf5"), 4, ckpt_path="first.ckpt")
    run(unbroken, data_of("frames.hdf5"), 4)
    for name, value in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_what_are_no_pictures_is_refused(file):
    with pytest.raises(ConfigError, match="6913 numbers, so they are no RGB frames"):
        ImageVAEModule(6913)
    with pytest.raises(ConfigError, match="no RGB frames whose side"):
        ImageVAEModule(3 * 12**2)
    with pytest.raises(ConfigError, match=r"latent_dim is 768: give a number in \[1, 767\]"):
        ImageVAEModule(3 * SIDE**2, latent_dim=3 * SIDE**2)
    with pytest.raises(ConfigError, match="normalize is for states"):
        LDCQStage1Module(3 * SIDE**2, 2, image_encoder="any.ckpt", normalize=True)
    assert lit("ImageVAEModule", "--data.init_args.dataset", file, "--trainer.max_steps", "1",
               "--evaluation.episodes", "0", "--checkpoint.dirpath", "vae") == 0  # fmt: skip
    with pytest.raises(ConfigError, match="has observation_dim 768, this stage 192"):
        LDCQStage1Module(192, 2, image_encoder="vae/last.ckpt")
