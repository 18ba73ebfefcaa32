from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lit_offrl.common.errors import DatasetError
from lit_offrl.datasets.catalog import (
    CATALOG,
    Reading,
    bundled,
    default_data_dir,
    load_dataset,
    resolve,
)
from lit_offrl.datasets.environments import ENVIRONMENTS, env_id_from_name
from lit_offrl.datasets.hdf5 import write_hdf5
from lit_offrl.datasets.sidecar import write_sidecar


def test_the_twelve_of_pybullet_are_there_with_their_facts():
    tasks, kinds = ("hopper", "halfcheetah", "walker2d", "ant"), ("random", "medium", "mixed")
    twelve = {name: e for name, e in CATALOG.items() if e.family == "d4rl-pybullet"}
    assert set(twelve) == {f"{task}-bullet-{kind}-v0" for task in tasks for kind in kinds}
    sizes = {
        (entry.spec().observation_dim, entry.spec().action_dim)
        for entry in twelve.values()
        if entry.kind == "mixed"
    }
    assert sizes == {(15, 3), (26, 6), (22, 6), (28, 8)}
    for name, entry in twelve.items():
        spec = entry.spec()
        assert entry.env_id == spec.env_id == env_id_from_name(name)
        assert spec.max_episode_steps == 1000 and entry.format == "pybullet"
        assert spec.action_low == (-1.0,) * spec.action_dim
        assert "d4rl/infos.py" in spec.ref_source
        assert entry.url.endswith(f"/{name}.hdf5?dl=1") and entry.file == f"{name}.hdf5"
        assert entry.min_return <= entry.mean_return <= entry.max_return
        assert entry.regenerated_name not in CATALOG


FAMILIES = {"locomotion": 69, "maze2d": 20, "antmaze": 24, "adroit": 24, "kitchen": 3}
FAMILIES |= {"bullet": 24, "carla": 3, "flow": 4, "minigrid": 2, "d4rl-pybullet": 12}


def test_all_of_d4rl_is_there():
    assert Counter(entry.family for entry in CATALOG.values()) == FAMILIES
    assert len(CATALOG) == 173 + 12
    for name, entry in CATALOG.items():
        assert entry.name == name and entry.file.endswith(".hdf5")
        assert (entry.env_id is None) == (
            entry.why_no_env is not None
        )  # an environment, or a reason
        assert (entry.ref_min_score is None) == (entry.ref_max_score is None)
        assert entry.ref_min_score is None or entry.ref_min_score < entry.ref_max_score
    files = [entry.file for entry in CATALOG.values()]
    assert len(set(files)) == len(files)
    unscored = {name for name, entry in CATALOG.items() if entry.ref_min_score is None}
    assert unscored == {"ant-random-expert-v0", "carla-town-full-v0"}


def test_references_of_an_environment_are_those_of_its_data():
    """An env is scored in one way, whichever of its data a policy was trained on."""
    replaced = {"ant-random-expert-v0"}  # for which D4RL gives none
    for name, entry in CATALOG.items():
        if entry.env_id is None or name in replaced:
            continue
        facts = ENVIRONMENTS[entry.env_id]
        found = (entry.ref_min_score, entry.ref_max_score, entry.max_episode_steps)
        assert found == (facts.ref_min_score, facts.ref_max_score, facts.max_episode_steps), name
        assert (entry.observation_dim, entry.action_dim) == (
            facts.observation_dim,
            facts.action_dim,
        )


@pytest.mark.parametrize(
    ("name", "env_id"),
    [
        ("maze2d-large-v1", "lit_offrl/maze2d-large-v1"),
        ("maze2d-large-regenerated", "lit_offrl/maze2d-large-v1"),
        ("maze2d-large-dense-v1", None),
        ("maze2d-eval-large-v1", None),
        ("maze2d-umaze-v0", None),
        ("maze2d-umaze-sparse", None),
        ("maze2d-umaze-sparse-v1", "lit_offrl/maze2d-umaze-v1"),
        ("antmaze-umaze-diverse-v2", "lit_offrl/antmaze-umaze-diverse-v2"),
        ("antmaze-umaze-v2", "lit_offrl/antmaze-umaze-v2"),
        ("antmaze-medium-diverse", "lit_offrl/antmaze-medium-diverse-v2"),
        ("hopper-medium-replay-v2", "lit_offrl/hopper-v2"),
        ("hopper_medium_expert-v2", "lit_offrl/hopper-v2"),
        ("ant-random-v2", "lit_offrl/ant-v2"),
        ("door-human-v1", "lit_offrl/door-v0"),
        ("kitchen-mixed-v0", "lit_offrl/kitchen-mixed-v0"),
        ("hopper-bullet-mixed-v0", "HopperBulletEnv-v0"),
        ("bullet-maze2d-large-v0", None),
        ("carla-lane-v0", None),
        ("indoor-human", None),
    ],
)
def test_the_environment_is_guessed_from_a_name(name, env_id):
    assert env_id_from_name(f"{name}.hdf5") == env_id
    if name in CATALOG:
        assert CATALOG[name].env_id == env_id


def test_data_known_to_be_bad_are_refused_or_warned_of(tmp_path):
    refused = {name for name, entry in CATALOG.items() if entry.refusal}
    assert refused == {n for n in CATALOG if n.startswith("antmaze-") and n.endswith("-v0")}
    with pytest.raises(DatasetError, match=r"antmaze-umaze-v0: is refused: the timeouts .* -v2"):
        resolve("antmaze-umaze-v0", tmp_path).read()
    with pytest.raises(DatasetError, match="is not on disk"):
        resolve("antmaze-umaze-v0", tmp_path, Reading(accept_faults=True)).read()
    assert "issue 199" in CATALOG["antmaze-umaze-diverse-v2"].warning


def test_what_is_known_of_an_entry_without_a_simulator(tmp_path):
    spec = resolve("carla-lane-v0", tmp_path).header()
    assert (spec.observation_dim, spec.env_id) == (48 * 48 * 3, None)
    assert "simulator" in spec.why_no_env
    with pytest.raises(DatasetError, match=r"sizes are not known .* download flow-ring-random-v0"):
        resolve("flow-ring-random-v0", tmp_path).header()


def test_a_file_fetched_by_hand_may_keep_its_published_name(tmp_path, raw, columns_of):
    columns = columns_of([3, 2], ["terminal", "timeout"])
    columns["observations"] = np.zeros((5, 11), np.float32)
    columns["actions"] = np.zeros((5, 3), np.float32)
    del columns["next_observations"]
    raw(tmp_path / "hopper_medium-v2.hdf5", columns)
    source = resolve("hopper-medium-v2", tmp_path)
    data = source.read()
    assert source.on_disk and data.spec.name == "hopper-medium-v2"
    assert (data.spec.ref_max_score, data.spec.max_episode_steps) == (3234.3, 1000)
    assert source.header() == replace(data.spec, sha256=None)
    named = Reading(env_id="Hopper-v5")  # for which D4RL's references do not hold
    other = resolve("hopper-medium-v2", tmp_path, named).read().spec
    assert (other.env_id, other.ref_max_score) == ("Hopper-v5", None)


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


@pytest.mark.parametrize("file", ["maze2d-umaze-v0", "maze2d-umaze-sparse"])
def test_data_without_an_environment_get_none_by_their_files_name(tmp_path, raw, columns_of, file):
    columns = columns_of([3, 2], ["timeout", "timeout"], following=False)
    columns |= {"observations": np.zeros((5, 4)), "actions": np.zeros((5, 2))}
    raw(tmp_path / f"{file}.hdf5", columns)
    spec = resolve("maze2d-umaze-v0", tmp_path).read().spec
    assert (spec.env_id, spec.ref_max_score, spec.max_episode_steps) == (None, 62.6, 150)
    assert "-v1" in spec.why_no_env and spec.action_high == (1, 1)


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
