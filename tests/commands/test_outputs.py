"""No command's output takes the place of one of its inputs, or of what is not its own."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lit_offrl.__main__ import main
from lit_offrl.callbacks.predictions import PredictionWriter
from lit_offrl.common.errors import FileError
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.modules.bc import BCModule
from lit_offrl.modules.checkpoints import load_module

EVALUATE = ["evaluate", "--ckpt_path", "policy.safetensors", "--episodes", "1", "--no-mlflow"]
EXPORT = ["export", "--ckpt_path", "policy.safetensors", "--format"]
COLLECT = ["collect", "--kind", "policy", "--env", "HopperBulletEnv-v0", "--overwrite"]
OTHER = "is another file of this command"
THERE = "is there already and is no earlier"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    module = BCModule(15, 3, [-1.0] * 3, [1.0] * 3, hidden=[8])
    module.spec = DatasetSpec("some-data", 15, 3, env_id="HopperBulletEnv-v0")
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    folder = tmp_path_factory.mktemp("made")
    torch.save(checkpoint, folder / "last.ckpt")
    return load_module(folder / "last.ckpt").policy().export(folder, format="safetensors")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, weights):
    """A folder with an exported policy, which evaluate and export read, and a user's own files."""
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "policy.safetensors": weights.read_bytes(),
        "README.md": (weights.parent / "README.md").read_bytes(),
        "film.mp4": b"\x89HDF\r\n\x1a\n",
        "data.hdf5": b"\x89HDF\r\n\x1a\n",
        "mine/README.md": b"# Mine\n",
        "mine/notes.md": b"# Notes\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def contents():
    return {path: path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*EVALUATE, "--output", "policy.safetensors"], f"policy.safetensors: {OTHER}"),
        ([*EVALUATE, "--output", "data.hdf5"], f"data.hdf5: {THERE} evaluation record"),
        ([*EVALUATE, "--output", "new.mp4", "--video", "new.mp4"], f"new.mp4: {OTHER}"),
        ([*EVALUATE, "--output", "r.json", "--video", "film.mp4"], f"film.mp4: {THERE} mp4"),
        ([*EXPORT, "safetensors", "--output", "."], f"policy.safetensors: {OTHER}"),
        ([*EXPORT, "onnx", "--output", "mine"], f"README.md: {THERE} exported policy"),
        (["claims", "--output", "mine/notes.md"], f"notes.md: {THERE} page of claims"),
        (
            [*COLLECT, "--policy", "policy.safetensors", "--output", "policy.safetensors"],
            f"policy.safetensors: {OTHER}",
        ),
        (["claims", "--output", ""], "argument --output: it is empty"),
    ],
)
def test_what_is_not_the_commands_own_output_stays(words, said, capsys):
    before = contents()
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert contents() == before


def test_own_outputs_are_replaced():
    short = ["--max_episode_steps", "2", "--output", "record.json"]
    for words in ([*EVALUATE, *short], [*EXPORT, "safetensors", "--output", "policy"]):
        assert main(words) == main(words) == 0


def test_predictions_replace_predictions_alone():
    trainer, writer = SimpleNamespace(world_size=1), PredictionWriter("found.npz")
    np.savez("found.npz", observations=[1.0], actions=[1.0])
    writer.on_predict_start(trainer, None)
    for arrays in ({"terminals": [1.0]}, None):
        if arrays is None:
            Path("found.npz").write_bytes(b"\x89HDF")
        else:
            np.savez("found.npz", observations=[1.0], actions=[1.0], **arrays)
        with pytest.raises(FileError, match=rf"^found\.npz: {THERE} file of predictions"):
            writer.on_predict_start(trainer, None)
