"""Minari's datasets, made here, through the real package."""

from __future__ import annotations

import json

import gymnasium
import h5py
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction

minari = pytest.importorskip("minari", reason="the package minari is not installed")

from minari.data_collector import EpisodeBuffer  # noqa: E402

from lit_offrl.datasets.cache import ColumnCache  # noqa: E402
from lit_offrl.datasets.minari import minari_source  # noqa: E402
from lit_offrl.errors import ConfigError, DatasetError  # noqa: E402

BOX = spaces.Box(-10, 10, (2,), np.float32)
PARTS = {"observation": BOX, "achieved_goal": BOX, "desired_goal": BOX}
LENGTHS = (3, 2, 4)


def states(number: int, steps: int) -> np.ndarray:
    return np.array([[number, step] for step in range(steps + 1)], np.float32)


def make(name: str, space: spaces.Space, *, env=None, actions=BOX, **options):
    """Three episodes: the first ends in a termination, the second in a truncation, one in none."""
    buffers = []
    for number, steps in enumerate(LENGTHS):
        seen = states(number, steps)
        if isinstance(space, spaces.Dict):
            seen = {"observation": seen, "achieved_goal": seen + 1, "desired_goal": seen * 0 + 5}
        last = np.arange(steps) == steps - 1
        discrete = isinstance(actions, spaces.Discrete)
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=seen,
                actions=np.zeros(steps, np.int64) if discrete else -states(number, steps)[:-1],
                rewards=np.arange(steps, dtype=np.float64),
                terminations=last & (number == 0),
                truncations=last & (number == 1),
            )
        )
    minari.create_dataset_from_buffers(
        name,
        buffers,
        env=env,
        action_space=actions,
        observation_space=space,
        data_format="hdf5",
        algorithm_name="none",
        author="none",
        author_email="none",
        code_permalink="none",
        **options,
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def test_vectors_become_rows_with_what_follows_each(folder):
    make("made/box-v0", BOX, env="Pendulum-v1", ref_min_score=-1.0, ref_max_score=9.0)
    source = minari_source("made/box-v0")
    data = source.read()
    assert data.episodes.tolist() == [[0, 3], [3, 5], [5, 9]]
    assert data.episode_terminated.tolist() == [True, False, False]
    assert data.columns["timeouts"].tolist() == [False] * 4 + [True] + [False] * 3 + [True]
    assert data.columns["observations"][3:5].tolist() == [[1, 0], [1, 1]]
    assert data.columns["next_observations"][3:5].tolist() == [[1, 1], [1, 2]]
    assert data.columns["actions"][8].tolist() == [-2, -3]
    assert data.columns["rewards"].tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]
    spec = data.spec
    assert spec.name == "minari:made/box-v0"  # never D4RL's name
    assert (spec.env_id, spec.max_episode_steps) == ("Pendulum-v1", 200)
    assert (spec.ref_min_score, spec.ref_max_score) == (-1, 9)
    assert spec.ref_source.startswith("Minari's metadata")
    header = source.header()
    assert (header.observation_dim, header.action_dim) == (2, 2)
    assert header.action_high == (10, 10) and set(header.columns) == set(data.columns)


def test_an_environment_with_options_of_its_own_is_not_named_by_its_id_alone(folder):
    made = {
        "options": gymnasium.make("Pendulum-v1", g=9.81),
        "wrapped": RescaleAction(gymnasium.make("Pendulum-v1"), -1, 1),
        "plain": gymnasium.make("Pendulum-v1"),
    }
    for name, env in made.items():
        make(f"made/{name}-v0", BOX, env=env.spec)
        found = minari_source(f"made/{name}-v0").header()
        assert found.max_episode_steps == 200
        if name == "plain":
            assert found.env_id == "Pendulum-v1" and found.why_no_env is None
        else:
            assert found.env_id is None
            assert "Pendulum-v1 was made with options of its own" in found.why_no_env


def test_of_dictionaries_it_must_be_said_which_parts(folder):
    make("made/goals-v0", spaces.Dict(PARTS))
    with pytest.raises(ConfigError, match=r"dictionaries of .*observation.*minari_observations"):
        minari_source("made/goals-v0")
    with pytest.raises(ConfigError, match=r"'desired_gaol' .* Did you mean 'desired_goal'"):
        minari_source("made/goals-v0", ["observation", "desired_gaol"])
    plain = minari_source("made/goals-v0", ["observation"]).read()
    assert plain.columns["goals"].tolist() == [[5, 5]] * 9
    both = minari_source("made/goals-v0", ["observation", "desired_goal"])
    data = both.read()
    assert data.columns["observations"][4].tolist() == [1, 1, 5, 5] and "goals" not in data.columns
    assert data.spec.handling == ("observations: observation + desired_goal",)
    assert data.spec.env_id is None and "dictionaries" in data.spec.why_no_env
    assert both.header().observation_dim == 4
    make("made/box-v0", BOX)
    with pytest.raises(ConfigError, match="no dictionary: leave minari_observations out"):
        minari_source("made/box-v0", ["observation"])


def test_it_is_cached_by_all_of_its_files(folder, tmp_path, monkeypatch):
    make("made/box-v0", BOX)
    cache = ColumnCache(tmp_path / "cache")
    first = minari_source("made/box-v0").read(cache)
    assert isinstance(first.columns["rewards"].base, np.memmap)
    assert first.spec == minari_source("made/box-v0").read().spec
    with monkeypatch.context() as patch:
        patch.setattr("lit_offrl.datasets.minari.MinariSource._episodes", None)  # not read again
        assert minari_source("made/box-v0").read(cache).spec == first.spec
    with h5py.File(folder / "made/box-v0/data/main_data.hdf5", "a") as file:
        file["episode_1/rewards"][0] = 7
    assert minari_source("made/box-v0").read(cache).columns["rewards"][3] == 7


def damaged(folder, key, change):
    make("made/box-v0", BOX)
    with h5py.File(folder / "made/box-v0/data/main_data.hdf5", "a") as file:
        change(file, key)


def drop(file, key):
    del file[key]


def shorten(file, key):
    values = file[key][:-1]
    del file[key]
    file[key] = values


def spoil(file, key):
    file[key][1] = np.nan


def put_group(file, key):
    del file[key]
    file.create_group(key)


@pytest.mark.parametrize(
    ("change", "key", "said"),
    [
        (drop, "episode_1", "'episode_1' of 3 is missing"),
        (drop, "episode_2/rewards", "'episode_2' of 3 is missing or cannot be read"),
        (put_group, "episode_0/actions", "'episode_0' of 3 is missing or cannot be read"),
        (shorten, "episode_1/actions", "'episode_1' has 1 rows of 'actions' for 2 rewards"),
        (shorten, "episode_2/observations", "'episode_2' has 3 rows of 'observations' for 4"),
        (spoil, "episode_1/rewards", "column 'rewards' has NaN in row 4"),
    ],
)
def test_what_is_broken_is_named_and_not_cached(folder, tmp_path, change, key, said):
    damaged(folder, key, change)
    cache = ColumnCache(tmp_path / "cache")
    with pytest.raises(DatasetError, match=r"^minari:made/box-v0 \(.*\): ") as caught:
        minari_source("made/box-v0").read(cache)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert cache.entries() == []


def test_what_is_not_there_or_of_another_kind(folder):
    with pytest.raises(DatasetError, match="minari download made/none-v0"):
        minari_source("made/none-v0")
    make("made/discrete-v0", BOX, actions=spaces.Discrete(3))
    with pytest.raises(DatasetError, match=r"its actions are Discrete\(3\)"):
        minari_source("made/discrete-v0").header()
    make("made/box-v0", BOX)
    facts = folder / "made/box-v0/data/metadata.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "env_spec": "Pendulum"}))
    with pytest.raises(DatasetError, match="minari:made/box-v0: cannot be opened"):
        minari_source("made/box-v0")
    facts.write_text("{")
    with pytest.raises(DatasetError, match="minari:made/box-v0: cannot be opened") as caught:
        minari_source("made/box-v0")
    assert "\n" not in str(caught.value)


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "minari", None)
    with pytest.raises(ConfigError, match=r"pip install 'lit-offrl\[minari\]'"):
        minari_source("made/box-v0")
