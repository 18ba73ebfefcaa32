"""What a training depends on."""

import hashlib
import threading
import time

import pytest

from lit_offrl.common.errors import DatasetError
from lit_offrl.datasets import cache
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


def test_workers_that_begin_at_once_hash_the_data_once(d4rl_file, tmp_path, monkeypatch):
    real, calls, found = cache.file_sha256, [], []

    def slow(path):
        calls.append(path)
        time.sleep(0.2)
        return real(path)

    monkeypatch.setattr(cache, "file_sha256", slow)
    data = {"dataset": str(d4rl_file), "cache_dir": str(tmp_path / "cache")}
    config = {"data": {"init_args": data}}
    threads = [threading.Thread(target=lambda: found.append(data_sha256(config))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and found == [real(d4rl_file)] * 4
