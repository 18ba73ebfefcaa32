"""The one contract that every module passes; an algorithm's own entry is a line of ``MODULES``."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lit_offrl.evaluation.evaluate import evaluate_module
from lit_offrl.modules import OfflineModule, load_module

# Options that make a module small; ``lit`` trains it on Pendulum-like data of 20 short episodes.
# What follows a colon only tells two entries of one module apart.
DVF = (
    "--model.init_args.width 16 --model.init_args.blocks 1 --model.init_args.latents 4"
    " --model.init_args.hidden [16] --model.init_args.num_samples 2 --model.init_args.history 2"
    " --model.init_args.diffusion_steps 8 --model.init_args.sampling_steps 2"
    " --trainer.gradient_clip_val 100"
)
DENOISER = "--model.init_args.width 16 --model.init_args.blocks 1 --model.init_args.hidden [8]"
MODULES = {
    "BCModule": "--model.init_args.hidden [8]",
    "CQLModule": "--model.init_args.hidden [8,8] --model.init_args.num_actions 3",
    "IQLModule": "--model.init_args.hidden [8] --model.init_args.dropout 0.1",
    "AWRModule": "--model.init_args.hidden [8] --model.init_args.bootstrap false",
    "ACGModule": "--model.init_args.hidden [8] --model.init_args.representation one_hot",
    "DiffusionBCModule": "--model.init_args.width 16 --model.init_args.blocks 1",
    "IDQLModule": f"{DENOISER} --model.init_args.num_samples 3",
    "DQLModule": f"{DENOISER} --model.init_args.num_samples 3",
    "ACDModule": f"{DENOISER} --model.init_args.act_mode acd_f --model.init_args.num_samples 3",
    "LDCQStage1Module": "--model.init_args.horizon 5 --model.init_args.width 16"
    " --model.init_args.gru_layers 1 --model.init_args.latent_dim 2",
    "DVFModule": DVF,
    "DVFModule:cached": f"{DVF} --model.init_args.values cached --model.init_args.warmup_steps 2",
}
CASES = [(name, "PyBulletDataModule") for name in MODULES]
CASES += [(name, "D4RLDataModule") for name in ("BCModule", "CQLModule")]


@pytest.fixture(params=CASES, ids="-".join)
def fit(request, lit):
    """Train the module under test; returns its last checkpoint."""
    case, data = request.param

    def run(name, *options):
        options = (*MODULES[case].split(), *options)
        assert lit("--checkpoint.dirpath", name, *options, module=run.module, data=data) == 0
        return Path(name) / "last.ckpt"

    run.module = case.partition(":")[0]
    return run


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_fits_scores_saves_loads_and_predicts(fit, folder, capsys):
    from lit_offrl.__main__ import main

    path = fit("run", "--evaluation.episodes", "2")
    assert "Pendulum-v1, 2 episodes" in capsys.readouterr().out

    module = load_module(path)
    assert isinstance(module, OfflineModule) and type(module).__name__ == fit.module
    assert all(value.isfinite().all() for value in weights(path).values())
    observations = np.random.default_rng(0).normal(size=(5, 3))
    actions = module.policy().act(observations)
    assert actions.shape == (5, 1) and actions.dtype == np.float32
    assert np.abs(actions).max() <= 2.0

    records = [evaluate_module(load_module(path), episodes=2, seed=1) for _ in range(2)]
    assert records[0].returns == records[1].returns

    assert main(["predict", "--ckpt_path", str(path), "--trainer.accelerator", "cpu"]) == 0
    with np.load("predictions.npz") as predicted:
        assert len(predicted["actions"]) == len(predicted["observations"]) > 0
        seen = predicted["observations"]
        again, once_more = (module.policy().act(seen) for _ in range(2))
        if np.array_equal(again, once_more):  # a policy that samples would not repeat itself
            np.testing.assert_allclose(predicted["actions"], again, rtol=1e-4, atol=1e-5)


def test_resumes_bit_for_bit(fit, same_state):
    options = ("--trainer.log_every_n_steps", "1", "--trainer.max_steps")
    whole = fit("whole", *options, "6")
    cut = fit("cut", *options, "3")
    fit("cut", *options, "6", "--ckpt_path", str(cut))
    same_state(whole, cut)


def test_two_processes_train_as_one_with_their_batches_joined(fit):
    common = ("--trainer.max_steps", "4", "--data.init_args.batch_size")
    alone = weights(fit("alone", *common, "32"))
    # Forked rather than started anew: imports take longer than these steps.
    two = ("--trainer.strategy", "ddp_fork", "--trainer.devices", "2")
    together = weights(fit("together", *common, "16", *two))
    for name, value in alone.items():
        torch.testing.assert_close(
            together[name], value, rtol=1e-4, atol=2e-5, msg=lambda text: f"{name}: {text}"
        )


def test_trains_in_bfloat16(fit):
    path = fit("run", "--trainer.precision", "bf16-mixed")
    full = weights(fit("full"))
    half = weights(path)
    assert any(not torch.equal(half[name], full[name]) for name in full)
    assert all(value.isfinite().all() for value in half.values())
