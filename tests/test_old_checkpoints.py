"""Checkpoints of before the redesign load, act as they did, and go on training as they did.

``old_checkpoints/README.md`` says how they were made and what lies beside each.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_offrl.common.renames import renames_of
from lit_offrl.modules import load_module

OLD = Path(__file__).parent / "old_checkpoints"
NAMES = sorted(path.stem for path in OLD.glob("*.zip"))
STEPS = 5  # to which the fits of 3 steps went on


def stored(name, member):
    """What was measured when the checkpoint was made."""
    with zipfile.ZipFile(OLD / f"{name}.zip") as file:
        return np.load(io.BytesIO(file.read(member)))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """A working directory as it was when the checkpoints were made: data, and a folder for each."""
    folder = tmp_path_factory.mktemp("old")
    for path in OLD.glob("*.hdf5"):
        (folder / path.name).write_bytes(path.read_bytes())
    for name in NAMES:
        with zipfile.ZipFile(OLD / f"{name}.zip") as file:
            file.extract("last.ckpt", folder / name)
    return folder


def test_every_method_has_a_checkpoint(unpacked):
    import lit_offrl.modules as modules

    classes = {type(load_module(unpacked / name / "last.ckpt")).__name__ for name in NAMES}
    # methods that are younger than the checkpoints
    since = {"TD3BCModule", "BCQModule", "DecisionTransformerModule", "DiffuserModule"}
    since |= {"DecisionDiffuserModule", "ReBRACModule", "FQLModule", "IFQLModule"}
    methods = {each for each in modules.__all__ if each.endswith("Module")} - {"OfflineModule"}
    assert classes == methods - since


@pytest.mark.parametrize("name", NAMES)
def test_acts_as_it_did(name, unpacked):
    module = load_module(unpacked / name / "last.ckpt")
    assert not renames_of(type(module)).keys() & module.hparams.keys()
    assert module.hparams.get("tau", 0.1) == 0.1
    if name == "image_vae":  # which has no policy
        return
    acted = stored(name, "actions.npy")
    size = module.observation_dim
    observations = np.random.default_rng(1).uniform(-1, 1, (acted.shape[1], size))
    observations = observations.astype(np.float32)
    torch.manual_seed(0)
    policy = module.policy(**({"goal": [0.0, 0.0]} if name.endswith("goals") else {}))
    policy.reset()
    acts = [policy.act(observations), policy.act(observations + np.float32(0.1))]
    np.testing.assert_allclose(np.stack(acts), acted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_resumes_as_it_did(name, unpacked, undrawn, tmp_path, monkeypatch):
    from lit_offrl.__main__ import main

    monkeypatch.chdir(unpacked)
    words = ["fit", "--ckpt_path", f"{name}/last.ckpt", "--trainer.max_steps", str(STEPS)]
    words += ["--checkpoint.dirpath", str(tmp_path), "--trainer.accelerator", "cpu"]
    words += ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    assert main(words) == 0
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    values = stored(name, "resumed.npz")
    assert set(state) == set(values)
    for key, value in values.items():
        flat = state[key].flatten()
        some = flat[:: max(1, -(-len(flat) // 8))].numpy()
        np.testing.assert_allclose(some, value, rtol=1e-5, atol=1e-6, err_msg=key)
