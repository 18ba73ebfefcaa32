"""robomimic's files: keys, filter keys, ends, next states, and faulty files."""

import json
import math

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_offrl.__main__ import main
from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.datasets.cache import ColumnCache
from lit_offrl.datasets.robomimic import RobomimicOptions, RobomimicSource
from lit_offrl.datasets.robomimic_writing import write_robomimic
from lit_offrl.datasets.sources import find_source
from lit_offrl.datasets.views import Transitions

LENGTHS = {"demo_0": 3, "demo_2": 4, "demo_10": 2}


def write(path, **changes):
    """Write demonstrations as robosuite's are, of three keys and one of pictures."""
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for name, rows in LENGTHS.items():
            demo = data.create_group(name)
            demo.attrs["num_samples"] = rows
            for key, shape in (("eef", (3,)), ("object", (2, 2)), ("gripper", ())):
                states = random.normal(size=(rows + 1, *shape))
                demo[f"obs/{key}"], demo[f"next_obs/{key}"] = states[:-1], states[1:]
            demo["obs/view"] = np.zeros((rows, 8, 8, 3), np.uint8)
            demo["next_obs/view"] = np.zeros((rows, 8, 8, 3), np.uint8)
            demo["actions"] = random.uniform(-1, 1, (rows, 2))
            demo["rewards"] = (np.arange(rows) == rows - 1).astype(np.float64)
            demo["dones"] = (np.arange(rows) == rows - 1).astype(np.int64) * (name != "demo_2")
            demo["states"] = np.zeros((rows, 5))
        data.attrs["total"] = sum(LENGTHS.values())
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {}})
        file["mask/train"] = np.array(["demo_10", "demo_0"], dtype="S")
        file["mask/valid"] = np.array(["demo_2"], dtype="S")
        for key, value in changes.items():
            key = key.replace("__", "/")
            if key in file:
                del file[key]
            if value is not None:
                file[key] = value
    return path


def read(path, cache=None, **options):
    options = {"observations": ("eef", "object")} | options
    return RobomimicSource(str(path), RobomimicOptions(**options), cache=cache).read()


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "demos.hdf5")


def test_keys_are_put_behind_each_other_in_the_order_given(path):
    dataset = read(path, observations=("object", "gripper", "eef"))
    with h5py.File(path) as file:
        for kind, column in (("obs", "observations"), ("next_obs", "next_observations")):
            expected = []
            for name, rows in LENGTHS.items():  # by number: 0, 2, 10
                keys = [f"data/{name}/{kind}/{key}" for key in ("object", "gripper", "eef")]
                parts = [file[key][()].reshape(rows, -1) for key in keys]
                expected.append(np.concatenate(parts, axis=1))
            found = dataset.columns[column]
            np.testing.assert_array_equal(found, np.concatenate(expected).astype(np.float32))
        actions = np.concatenate([file[f"data/{name}/actions"][()] for name in LENGTHS])
    np.testing.assert_array_equal(dataset.columns["actions"], actions.astype(np.float32))
    assert dataset.columns["rewards"].tolist() == [0, 0, 1, 0, 0, 0, 1, 0, 1]
    assert np.flatnonzero(dataset.columns["terminals"]).tolist() == [2, 8]
    assert np.flatnonzero(dataset.columns["timeouts"]).tolist() == [6]
    assert any("view (8 × 8 × 3, picture)" in notice for notice in dataset.spec.notices)


def test_dones_within_a_demonstration_end_an_episode_or_are_ignored(tmp_path):
    path = write(tmp_path / "x.hdf5", data__demo_2__dones=np.array([0, 1, 0, 0]))
    assert read(path).episodes.tolist() == [[0, 3], [3, 5], [5, 7], [7, 9]]
    ignored = read(path, dones="ignore")
    assert not ignored.columns["terminals"].any()
    assert ignored.episodes.tolist() == [[0, 3], [3, 7], [7, 9]]


def test_filter_keys_choose_and_validate(path):
    assert read(path, mask="train").episode_lengths.tolist() == [3, 2]
    dataset = read(path, mask="train", validation_mask="valid")
    assert dataset.columns["validation"].tolist() == [False] * 3 + [True] * 4 + [False] * 2
    others = read(path, validation_mask="train").columns["validation"]
    assert others.tolist() == [True] * 3 + [False] * 4 + [True] * 2
    assert any("filter keys train, valid" in notice for notice in read(path).spec.notices)


def test_a_repeated_last_state_makes_no_transition(tmp_path):
    """As robomimic's own conversion of D4RL writes it."""
    states = np.arange(14, dtype=np.float32).reshape(7, 2)
    columns = {"observations": states, "actions": states, "terminals": np.arange(7) == 2}
    path = write_robomimic(tmp_path / "x.hdf5", columns, [3, 4])
    dataset = RobomimicSource(str(path)).read()
    assert "next_observations" not in dataset.columns
    view = Transitions().bind(dataset, "cpu")
    assert view.rows.tolist() == [0, 1, 2, 3, 4, 5]
    following = states[[1, 2, 3, 4, 5, 6, 0]].copy()
    following[2] = 100  # which is known there
    columns = columns | {"next_observations": following, "next_unknown": np.arange(7) == 6}
    dataset = RobomimicSource(str(write_robomimic(tmp_path / "y.hdf5", columns, [3, 4]))).read()
    assert np.flatnonzero(dataset.columns["next_unknown"]).tolist() == [6]
    assert dataset.columns["next_observations"][2].tolist() == [100, 100]


def test_cached_columns_are_those_of_the_file(path, tmp_path, monkeypatch):
    cache = ColumnCache(tmp_path / "cache")
    first = read(path, cache)
    monkeypatch.setattr(RobomimicSource, "_columns", None)
    second = read(path, cache)
    assert second.spec == first.spec
    for name, values in first.columns.items():
        np.testing.assert_array_equal(second.columns[name], values)
    with pytest.raises(TypeError):  # of other keys there is no entry yet
        read(path, cache, observations=("eef",))


def test_info_and_check_on_the_command_line(path, capsys):
    assert main(["datasets", "info", str(path), "--observations", "eef,object"]) == 0
    said = capsys.readouterr().out
    assert "train (2), valid (1)" in said and "Lift" in said and "eef (3)" in said
    assert main(["datasets", "check", f"robomimic:{path}"]) == 0
    assert "3: 2 end in a terminal, 1 in a timeout" in capsys.readouterr().out


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), data=st.data())
def test_no_view_crosses_an_episodes_end(lengths, data, tmp_path_factory):
    lengths = [3, *lengths]
    episode = np.repeat(np.arange(len(lengths)), lengths)
    state = np.stack([episode, np.arange(len(episode))], axis=1).astype(np.float32)
    ends = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    terminals = np.zeros(len(episode), bool)
    terminals[np.cumsum(lengths) - 1] = ends
    columns = {"observations": state, "actions": state, "terminals": terminals}
    path = tmp_path_factory.mktemp("views") / "x.hdf5"
    dataset = RobomimicSource(str(write_robomimic(path, columns, lengths))).read()
    assert dataset.episode_lengths.tolist() == lengths
    view = Transitions().bind(dataset, "cpu")
    batch = view.batch(view.rows, None)
    assert (batch.next_observations[:, 0] == batch.observations[:, 0]).all()
    assert sorted(view.rows.tolist()) == [
        row for row in range(len(episode)) if terminals[row] or row + 1 not in np.cumsum(lengths)
    ]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"observations": ("eff",)}, "Did you mean 'eef'"),
        ({"observations": ("view",)}, "'view' is of pictures"),
        ({"observations": ("eef", "eef")}, "'eef' is named twice"),
        ({"observations": None}, "say with observations which of eef .3., gripper .1., object"),
        ({"mask": "trains"}, "Did you mean 'train'"),
        ({"mask": "train", "validation_mask": "train"}, "is in mask and in validation_mask"),
        ({"dones": "timeouts"}, "dones is 'timeouts'; choose terminals or ignore"),
    ],
)
def test_options_that_do_not_fit_are_named(path, options, said):
    with pytest.raises(ConfigError, match=said):
        read(path, **options)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"data": None}, "has no group 'data'"),
        ({"data__other": np.zeros(3)}, "'data/other' is no demonstration"),
        ({"data__demo_2__obs": None}, "'data/demo_2/obs/eef' is not there"),
        ({"data__demo_0__obs": None}, "'data/demo_0/obs' is not there"),
        ({"data__demo_2__actions": None}, "'data/demo_2/actions' is not there"),
        ({"data__demo_2__actions": np.zeros((9, 2))}, "says 4 as 'num_samples' and has 9 actions"),
        ({"data__demo_2__actions": np.zeros((4, 3))}, r"demo_2/actions' has shape \(4, 3\)"),
        ({"data__demo_2__obs__eef": np.zeros((4, 9))}, r"\(4, 9\), where \(4, 3\) is needed"),
        ({"data__demo_2__rewards": np.zeros(3)}, r"demo_2/rewards' has shape \(3,\)"),
        ({"data__demo_2__rewards": np.array([b"a"] * 4)}, "has dtype .S1, not numbers"),
        (
            {"data__demo_2__rewards": np.array([0, 0, math.nan, 0])},
            "'data/demo_2/rewards' has NaN in row 2",
        ),
        ({"data__demo_2__dones": np.arange(4)}, "demo_2/dones' has 2, no 0 or 1, in row 2"),
        ({"mask__train": np.array([b"demo_7"])}, "'mask/train' names 'demo_7', which is unknown"),
        ({"mask__train": np.zeros(3)}, "'mask/train' names '0.0'"),
        ({"data__demo_2__actions": h5py.SoftLink("/data/demo_0/actions")}, "is a link, which is"),
        ({"data__demo_2__obs": h5py.ExternalLink("/etc/x.h5", "/")}, "is a link, which is not"),
    ],
)  # fmt: skip
def test_files_that_are_not_as_they_should_be(tmp_path, changes, said):
    path = write(tmp_path / "x.hdf5", **changes)
    with pytest.raises(DatasetError, match=said) as caught:
        read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_damaged_file_is_named(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"cannot be opened .truncated"):
        find_source(f"robomimic:{path}")


def test_rows_that_were_never_written(path):
    with h5py.File(path, "a") as file:
        demo = file["data/demo_2"]
        del demo["actions"], demo.attrs["num_samples"]
        demo.create_dataset("actions", (1 << 28, 2), "f4", chunks=(1 << 16, 2))
        for key in ("obs/eef", "obs/object", "next_obs/eef", "next_obs/object", "rewards", "dones"):
            shape = demo[key].shape[1:]
            del demo[key]
            demo.create_dataset(key, (1 << 28, *shape), "f4", chunks=(1 << 12, *shape))
    with pytest.raises(DatasetError, match=r"does not fit into memory|were never written"):
        read(path)


def test_an_existing_file_is_not_replaced(path):
    with pytest.raises(ConfigError, match="is there already"):
        write_robomimic(path, {"observations": np.zeros((2, 1)), "actions": np.zeros((2, 1))}, [2])
