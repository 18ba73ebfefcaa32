"""Rows through the ``d4rl`` package: a made-up one, and the real one where it is installed."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import h5py
import numpy as np
import pytest

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.datasets.catalog import CATALOG, resolve
from lit_offrl.datasets.d4rl_package import PackagedSource


@pytest.fixture
def package(monkeypatch, tmp_path):
    """``gym`` and ``d4rl`` whose environments return what is in a file, as the real ones do."""

    def install(name, columns):
        path = tmp_path / f"{name}.hdf5"
        with h5py.File(path, "w") as file:
            for key, values in columns.items():
                file[key] = values

        def get_dataset():
            with h5py.File(path) as file:
                found = {}
                file.visititems(
                    lambda key, node: (
                        found.update({key: node[()]}) if isinstance(node, h5py.Dataset) else None
                    )
                )
                return found

        def make(asked):
            assert asked == name
            environment = SimpleNamespace(get_dataset=get_dataset, dataset_filepath=str(path))
            return SimpleNamespace(unwrapped=environment)

        gym = ModuleType("gym")
        gym.make = make
        monkeypatch.setitem(sys.modules, "gym", gym)
        monkeypatch.setitem(sys.modules, "d4rl", ModuleType("d4rl"))
        return path

    return install


def same(one, other):
    assert list(one.columns) == list(other.columns)
    for name, values in one.columns.items():
        np.testing.assert_array_equal(values, other.columns[name])
    np.testing.assert_array_equal(one.episodes, other.episodes)
    for field in ("name", "env_id", "max_episode_steps", "ref_min_score", "ref_max_score"):
        assert getattr(one.spec, field) == getattr(other.spec, field)
    for field in ("handling", "action_low", "action_high", "why_no_env"):
        assert getattr(one.spec, field) == getattr(other.spec, field)


TASKS = {"antmaze-umaze-v2": (29, 8), "maze2d-large-v1": (4, 2), "maze2d-umaze-dense-v1": (4, 2)}


@pytest.mark.parametrize("name", TASKS)
def test_rows_are_those_of_the_file_read_directly(package, tmp_path, name):
    random, count = np.random.default_rng(0), 12
    sizes = TASKS[name]
    columns = {
        "observations": random.normal(size=(count, sizes[0])),
        "actions": random.uniform(-1, 1, (count, sizes[1])),
        "rewards": np.zeros(count),
        "terminals": np.zeros(count, bool),
        "infos/goal": np.repeat([[1, 1], [2, 2], [3, 3]], 4, axis=0),
        "infos/qpos": np.zeros((count, 15)),
        "metadata/algorithm": "none",
    }
    if "antmaze" in name:
        columns["terminals"][3:6] = True
        columns["timeouts"] = np.arange(count) % 6 == 5
    package(name, columns)
    direct = resolve(name, tmp_path).read()
    same(PackagedSource(name).read(), direct)
    assert direct.spec.handling


def test_names_and_faults_are_those_of_the_catalogue(package):
    with pytest.raises(DatasetError, match=r"d4rl:maze2d-lrge-v1: .* 'maze2d-large-v1'"):
        PackagedSource("maze2d-lrge-v1").read()
    with pytest.raises(DatasetError, match="antmaze-umaze-v0: is refused"):
        PackagedSource("antmaze-umaze-v0").read()
    path = package("maze2d-large-v1", {"observations": np.zeros((3, 4))})
    with pytest.raises(DatasetError, match="d4rl:maze2d-large-v1: has neither 'terminals'"):
        PackagedSource("maze2d-large-v1").read()
    path.write_text("broken")
    with pytest.raises(DatasetError, match="d4rl:maze2d-large-v1: the package cannot read it"):
        PackagedSource("maze2d-large-v1").read()


def test_without_the_package_the_way_round_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "d4rl", None)
    with pytest.raises(ConfigError, match=r"lit-offrl datasets download hopper-medium-v2") as said:
        PackagedSource("hopper-medium-v2").read()
    assert "\n" not in str(said.value)


def test_the_real_package_and_the_file_agree(tmp_path):
    """Both ways on a file where the real package looks first, so that it downloads nothing."""
    pytest.importorskip("d4rl", reason="the package d4rl (Python < 3.11, mujoco_py) is missing")
    from d4rl.offline_env import set_dataset_path

    set_dataset_path(str(tmp_path))
    name, count, random = "bullet-hopper-medium-v0", 2000, np.random.default_rng(0)
    with h5py.File(tmp_path / CATALOG[name].file, "w") as file:
        file["observations"] = random.normal(size=(count, 15)).astype(np.float32)
        file["actions"] = random.uniform(-1, 1, (count, 3)).astype(np.float32)
        file["rewards"] = random.normal(size=count).astype(np.float32)
        file["terminals"] = np.arange(count) % 100 == 99
        file["timeouts"] = np.zeros(count, bool)
    same(PackagedSource(name).read(), resolve(name, tmp_path).read())
