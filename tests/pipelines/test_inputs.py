"""What a training depends on."""

import hashlib

import pytest

from lit_offrl.common.errors import DatasetError
from lit_offrl.pipelines.inputs import data_sha256


def test_the_data_are_known_by_their_bytes(d4rl_file):
    digest = hashlib.sha256(d4rl_file.read_bytes()).hexdigest()
    assert data_sha256({"data": {"init_args": {"dataset": str(d4rl_file)}}}) == digest
    assert data_sha256({"data": {"init_args": {"dataset": "minari:x/y-v0"}}}) is None
    assert data_sha256({"data": "PyBulletDataModule"}) is None
    with pytest.raises(DatasetError, match="lit-offrl datasets download maze2d-umaze-v1"):
        data_sha256({"data": {"init_args": {"dataset": "maze2d-umaze-v1"}}})
    with pytest.raises(DatasetError, match="Did you mean"):
        data_sha256({"data": {"init_args": {"dataset": "maze2d-umaz-v1"}}})
