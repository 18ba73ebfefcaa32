from __future__ import annotations

import json

import numpy as np
import pytest

from lit_offrl.datasets.catalog import CATALOG, bundled, default_data_dir, load_dataset, resolve
from lit_offrl.datasets.environments import env_id_from_name
from lit_offrl.datasets.hdf5 import write_hdf5
from lit_offrl.datasets.sidecar import write_sidecar
from lit_offrl.errors import DatasetError


def test_the_twelve_are_there_with_their_facts():
    tasks, kinds = ("hopper", "halfcheetah", "walker2d", "ant"), ("random", "medium", "mixed")
    assert set(CATALOG) == {f"{task}-bullet-{kind}-v0" for task in tasks for kind in kinds}
    sizes = {
        name: (entry.spec().observation_dim, entry.spec().action_dim)
        for name, entry in CATALOG.items()
        if entry.kind == "mixed"
    }
    assert list(sizes.values()) == [(15, 3), (26, 6), (22, 6), (28, 8)]
    for name, entry in CATALOG.items():
        spec = entry.spec()
        assert entry.env_id == spec.env_id == env_id_from_name(name)
        assert spec.max_episode_steps == 1000 and entry.format == "pybullet"
        assert spec.action_low == (-1.0,) * spec.action_dim
        assert "d4rl/infos.py" in spec.ref_source
        assert entry.url.endswith(f"/{name}.hdf5?dl=1")
        assert entry.min_return <= entry.mean_return <= entry.max_return
        assert entry.regenerated_name not in CATALOG


def test_an_entry_that_is_not_on_disk_has_a_header_but_no_rows(tmp_path):
    source = resolve("ant-bullet-medium-v0", tmp_path)
    assert source.path == tmp_path / "ant-bullet-medium-v0.hdf5" and not source.on_disk
    assert source.header().observation_dim == 28
    with pytest.raises(DatasetError, match="lit-offrl datasets download ant-bullet-medium-v0"):
        source.read()


def test_an_entry_on_disk_is_read_as_the_catalogue_says(tmp_path, raw, shifted):
    observations = np.zeros((8, 15), np.float32)
    observations[:, 0] = shifted["observations"][:, 0]
    columns = shifted | {"observations": observations, "actions": np.zeros((8, 3), np.float32)}
    columns["actions"][3] = 0.5  # so that its layout alone would not give it away
    path = raw(tmp_path / "hopper-bullet-mixed-v0.hdf5", columns)
    data = load_dataset("hopper-bullet-mixed-v0", data_dir=tmp_path)
    assert data.columns["rewards"].tolist() == [7, 8, 9, 5, 6]
    assert data.spec.name == "hopper-bullet-mixed-v0"
    assert data.spec.env_id == "HopperBulletEnv-v0"
    assert resolve("hopper-bullet-mixed-v0", tmp_path).header().columns == data.spec.columns

    write_sidecar(path, {"sha256": data.spec.sha256})
    load_dataset("hopper-bullet-mixed-v0", data_dir=tmp_path)
    columns["rewards"][1] = 70
    raw(path, columns)
    with pytest.raises(DatasetError, match="has changed since it was downloaded"):
        load_dataset("hopper-bullet-mixed-v0", data_dir=tmp_path)


def test_files_are_found_by_path_and_by_name(tmp_path, columns_of, monkeypatch):
    columns = columns_of([3], ["terminal"])
    path = write_hdf5(tmp_path / "own-data.hdf5", columns)
    assert resolve(path).path == resolve(str(path)).path == path
    monkeypatch.setenv("LIT_OFFRL_DATA", str(tmp_path))
    assert default_data_dir() == tmp_path
    assert resolve("own-data").path == path
    assert len(load_dataset("own-data")) == 3
    monkeypatch.delenv("LIT_OFFRL_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / ".lit_offrl" / "datasets"
    assert resolve("~/own-data.hdf5").path == path


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("hoper-bullet-mixed-v0", "Did you mean 'hopper-bullet-mixed-v0'"),
        ("own-dat", "Did you mean 'own-data'"),
        ("zzzz", "lit-offrl datasets list"),
        ("{dir}/own-dta.hdf5", "no such file. Did you mean 'own-data.hdf5'"),
        ("{dir}/no/where.hdf5", "no such file. Check the path"),
        ("where.h5", "no such file"),
    ],
)
def test_what_is_not_there_names_what_is(tmp_path, wrong, expected):
    (tmp_path / "own-data.hdf5").touch()
    with pytest.raises(DatasetError, match=r"own|hoper|zzzz|where") as caught:
        resolve(wrong.format(dir=tmp_path), tmp_path)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_every_bundled_dataset_is_small_real_and_scored():
    for name, path in bundled().items():
        assert path.stat().st_size <= 2 * 1024**2
        data = load_dataset(name)
        assert resolve(name).bundled and data.spec.name == name
        assert data.spec.ref_max_score is not None and data.spec.max_episode_steps is not None
        assert {"env_id", "seed"} <= set(data.provenance)


def test_a_sidecar_is_plain_json(tmp_path):
    path = tmp_path / "x.hdf5"
    path.write_bytes(b"123")
    write_sidecar(path, {"sha256": "00"})
    assert json.loads((tmp_path / "x.hdf5.json").read_text())["size"] == 3
