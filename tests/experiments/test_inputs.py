"""What a training depends on."""

import hashlib

import pytest

from lit_offrl.common.errors import DatasetError
from lit_offrl.experiments.inputs import data_sha256, require_data


def test_the_data_are_known_by_their_bytes(d4rl_file):
    digest = hashlib.sha256(d4rl_file.read_bytes()).hexdigest()
    assert data_sha256({"data": {"init_args": {"dataset": str(d4rl_file)}}}) == digest
    assert data_sha256({"data": {"init_args": {"dataset": "minari:x/y-v0"}}}) is None
    assert data_sha256({"data": "PyBulletDataModule"}) is None
    for name, message in {
        "maze2d-umaze-v1": "lit-offrl datasets download maze2d-umaze-v1",
        "maze2d-umaz-v1": "Did you mean",
    }.items():
        config = {"data": {"init_args": {"dataset": name}}}
        assert data_sha256(config) is None
        with pytest.raises(DatasetError, match=message):
            require_data(config)
