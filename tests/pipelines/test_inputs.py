"""What a training depends on."""

import hashlib

import pytest

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.pipelines.inputs import data_sha256, resolved_config


def test_files_and_options_make_one_tree(folder):
    (folder / "a.yaml").write_text("model: {class_path: A, init_args: {x: 1, y: [1]}}\n")
    (folder / "b.yaml").write_text("model: {init_args: {y: [2, 3]}}\ntrainer: {max_steps: 5}\n")
    files = [folder / "a.yaml", folder / "b.yaml"]
    assert resolved_config(files, {"model.init_args.x": 2, "trainer.devices": 1}) == {
        "model": {"class_path": "A", "init_args": {"x": 2, "y": [2, 3]}},
        "trainer": {"max_steps": 5, "devices": 1},
    }
    (folder / "short.yaml").write_text("model: BCModule\n")
    assert resolved_config([folder / "short.yaml"], {"model.init_args.x": 1}) == {
        "model": {"class_path": "BCModule", "init_args": {"x": 1}}
    }


@pytest.mark.parametrize(
    ("bytes_", "said"),
    [
        (b"- model", "holds no mapping of options"),
        (b"name: 2024-13-45", "is no YAML: month must be in 1..12"),
        (b"\x89HDF", "is no YAML: 'utf-8' codec can't decode"),
        (b"{model: [", "is no YAML: while parsing"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_config_is_said_in_one_line(folder, bytes_, said):
    path = folder / "wrong.yaml"
    if bytes_ is not None:
        path.write_bytes(bytes_)
    with pytest.raises(ConfigError) as caught:
        resolved_config([path], {})
    text = str(caught.value)
    assert text.startswith(f"{path}: {said}") and "\n" not in text


def test_the_data_are_known_by_their_bytes(d4rl_file):
    digest = hashlib.sha256(d4rl_file.read_bytes()).hexdigest()
    assert data_sha256({"data": {"init_args": {"dataset": str(d4rl_file)}}}) == digest
    assert data_sha256({"data": {"init_args": {"dataset": "minari:x/y-v0"}}}) is None
    assert data_sha256({"data": "PyBulletDataModule"}) is None
    with pytest.raises(DatasetError, match="lit-offrl datasets download maze2d-umaze-v1"):
        data_sha256({"data": {"init_args": {"dataset": "maze2d-umaze-v1"}}})
    with pytest.raises(DatasetError, match="Did you mean"):
        data_sha256({"data": {"init_args": {"dataset": "maze2d-umaz-v1"}}})
