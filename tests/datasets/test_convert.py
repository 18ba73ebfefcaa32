"""Datasets from one format into another: the very same numbers, or a line and nothing written."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_offrl.__main__ import main
from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.datasets.convert import convert_dataset, find_target
from lit_offrl.datasets.environments import ENVIRONMENTS, REFERENCES, scored_quantity
from lit_offrl.datasets.recording_formats import to_d4rl
from lit_offrl.datasets.recordings import Recording, read_recording
from lit_offrl.datasets.sources import find_source

FORMATS = ("{}/a.hdf5", "lerobot:{}/b", "robomimic:{}/c.hdf5", "minari:own/{}-v0")


@pytest.fixture
def minari_root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def made(lengths, random, *, next_states="none", rewards=True, wide=False, infos=True, ends=None):
    """Numbers of every kind; the last states of half of the episodes are known where any are."""
    rows, last = sum(lengths), np.cumsum(lengths) - 1
    kind = np.float64 if wide else np.float32
    columns = {"observations": random.normal(size=(rows, 3)).astype(kind)}
    columns["actions"] = random.uniform(-1, 1, (rows, 2)).astype(kind)
    if rewards:
        columns["rewards"] = random.normal(size=rows).astype(kind)
    columns["terminals"] = np.zeros(rows, bool)
    columns["terminals"][last] = random.random(len(lengths)) < 0.5 if ends is None else ends
    columns["timeouts"] = np.isin(np.arange(rows), last) & ~columns["terminals"]
    if next_states != "none":
        following = np.concatenate([columns["observations"][1:], columns["observations"][:1]])
        following[last] = random.normal(size=(len(lengths), 3)).astype(kind)
        if next_states == "some":
            unknown = np.isin(np.arange(rows), last[::2])
            following[unknown] = columns["observations"][unknown]
            columns["next_unknown"] = unknown
        columns["next_observations"] = following
    if infos:
        columns["infos/qpos"] = random.normal(size=(rows, 4))
        columns["infos/buttons"] = random.integers(0, 9, (rows, 2))
        columns["infos/one"] = random.integers(0, 9, rows).astype(np.uint8)
        columns["infos/column"] = random.random((rows, 1)).astype(np.float32) < 0.5
    note = {"action_low": [-1.0, -1.0], "action_high": [1.0, 1.0], "max_episode_steps": 50}
    return Recording(columns, note, "made")


@settings(max_examples=4, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 5), min_size=2, max_size=4),
    seed=st.integers(0, 2**16),
    next_states=st.sampled_from(["none", "some", "all"]),
    rewards=st.booleans(),
    wide=st.booleans(),
)
def test_through_all_formats_every_number_and_its_type_stay(
    lengths, seed, next_states, rewards, wide, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("chain")
    random = np.random.default_rng(seed)
    recording = made(lengths, random, next_states=next_states, rewards=rewards, wide=wide)
    to_d4rl(recording, folder, "first.hdf5")
    before, place = os.environ.get("MINARI_DATASETS_PATH"), str(folder / "first.hdf5")
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    try:
        for form in (*FORMATS[1:], FORMATS[0]):
            target = form.format("x" if form.startswith("minari") else folder)
            convert_dataset(find_source(place), target)
            found = read_recording(find_source(target))
            recording.refuse_difference(found, target)
            assert found.columns.keys() == recording.columns.keys()
            assert recording.note.items() <= found.note.items()
            assert found.lengths.tolist() == lengths
            place = target
    finally:
        os.environ.pop("MINARI_DATASETS_PATH")
        if before is not None:
            os.environ["MINARI_DATASETS_PATH"] = before


def test_ogbenchs_files_come_back_to_the_bit(ogbench_files, tmp_path, minari_root):
    base, place = "pointmaze-medium-navigate-v0", str(ogbench_files() / "{}.npz")
    place = place.format("pointmaze-medium-navigate-v0")
    first = Path(place)
    targets = [form.format(tmp_path if "{}/" in form else "x") for form in FORMATS]
    for target in (*targets, str(tmp_path / f"{base}.npz")):
        convert_dataset(find_source(place), target)
        place = target
    for name in (base, f"{base}-val"):
        with (
            np.load(first.with_name(f"{name}.npz")) as old,
            np.load(tmp_path / f"{name}.npz") as new,
        ):
            assert sorted(old.files) == sorted(new.files)
            for key in old.files:
                assert old[key].dtype == new[key].dtype
                np.testing.assert_array_equal(old[key], new[key])
    assert find_source(str(tmp_path / "a.hdf5")).read().columns["validation"].sum() == 6


def test_scores_of_success_stay_scores_of_success(
    ogbench_files, tmp_path, minari_root, monkeypatch
):
    folder = ogbench_files()
    monkeypatch.setenv("LIT_OFFRL_DATA", str(folder))
    place = "pointmaze-medium-navigate-singletask-task1-v0"
    wanted = find_source(place).header()
    assert (wanted.score_of, wanted.ref_min_score, wanted.ref_max_score) == ("success", 0.0, 1.0)
    for form in FORMATS:
        target = form.format(tmp_path if "{}/" in form else "x")
        convert_dataset(find_source(place), target)
        place = target
        found = find_source(place).header()
        for name in ("env_id", *REFERENCES):
            assert getattr(found, name) == getattr(wanted, name), (target, name)


def test_references_without_a_word_are_read_as_the_environments_own(tmp_path):
    facts = ENVIRONMENTS["lit_offrl/cube-single-singletask-task2-v0"]
    assert scored_quantity(None, (0.0, 1.0), facts, "x") == "success"
    assert scored_quantity(None, (0.0, 2.0), facts, "x") == "return"
    assert scored_quantity(None, (0.0, 1.0), None, "x") == "return"
    assert scored_quantity("return", (0.0, 1.0), facts, "x") == "return"
    recording = made([3, 4], np.random.default_rng(0))
    to_d4rl(recording, tmp_path, "first.hdf5")
    with h5py.File(tmp_path / "first.hdf5", "a") as file:
        file.attrs.update(ref_min_score=0.0, ref_max_score=1.0, score_of="wins")
    with pytest.raises(DatasetError, match="'score_of' is 'wins': write return or success"):
        find_source(str(tmp_path / "first.hdf5")).header()


def test_goals_policies_and_unlabelled_rewards_stay_where_there_is_a_place(tmp_path, minari_root):
    recording = made([3, 4], np.random.default_rng(0))
    more = {"goals": np.ones((7, 2), np.float32), "policy": np.arange(7, dtype=np.float32)}
    more["reward_mask"] = np.arange(7) < 3
    recording = Recording({**recording.columns, **more}, recording.note, "made")
    to_d4rl(recording, tmp_path, "first.hdf5")
    source = find_source(str(tmp_path / "first.hdf5"))
    for target in (f"lerobot:{tmp_path}/b", "minari:own/x-v0"):
        convert_dataset(source, target)
        recording.refuse_difference(read_recording(find_source(target)), target)
    with pytest.raises(DatasetError, match="robomimic has no place for the column 'goals'"):
        convert_dataset(source, f"robomimic:{tmp_path}/c.hdf5")
    assert not (tmp_path / "c.hdf5").exists()


@pytest.mark.parametrize(
    "change, target, said",
    [
        ({}, "{}/cube-single-play-v0.npz", "'env_id' names none"),
        ({"env_id": "lit_offrl/pointmaze-medium-v0"}, "{}/x.npz", "no place for the column 'rewa"),
        ({"repeat": True}, "robomimic:{}/x.hdf5", "column 'next_observations' would be lost"),
        ({"shift": True}, "minari:own/x-v0", "Minari's next states are those of the next row"),
    ],
)
def test_what_would_train_other_rows_is_refused(change, target, said, tmp_path, minari_root):
    recording = made([3, 4], np.random.default_rng(0), next_states="all", infos=False)
    columns, note = dict(recording.columns), dict(recording.note)
    if "env_id" in change:
        note["env_id"] = change["env_id"]
        columns = {k: v[:, :2] if v.ndim == 2 else v for k, v in columns.items()}
        del columns["next_observations"]
    if "repeat" in change:  # a robot that stood still on each last row
        columns["next_observations"] = columns["next_observations"].copy()
        columns["next_observations"][[2, 6]] = columns["observations"][[2, 6]]
    if "shift" in change:
        columns["next_observations"] = columns["next_observations"] + 1
    to_d4rl(Recording(columns, note, "made"), tmp_path, "first.hdf5")
    before = sorted(tmp_path.rglob("*.*"))
    with pytest.raises(DatasetError, match=said) as caught:
        convert_dataset(find_source(str(tmp_path / "first.hdf5")), target.format(tmp_path))
    assert "\n" not in str(caught.value)
    assert [p for p in sorted(tmp_path.rglob("*.*")) if p.is_file()] == before


@pytest.mark.parametrize("form", FORMATS)
def test_an_interrupted_conversion_leaves_nothing(form, tmp_path, minari_root, monkeypatch):
    to_d4rl(made([3, 4], np.random.default_rng(0)), tmp_path, "first.hdf5")
    target = form.format("x" if form.startswith("minari") else tmp_path / "out")
    source = find_source(str(tmp_path / "first.hdf5"))

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Recording, "refuse_difference", stop)
        with pytest.raises(KeyboardInterrupt):
            convert_dataset(source, target)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [tmp_path / "first.hdf5"]
    convert_dataset(source, target)
    with pytest.raises(ConfigError, match="is there already: name another place"):
        convert_dataset(source, target)


def test_a_difference_is_named_with_its_row():
    one = made([3, 4], np.random.default_rng(0))
    rewards, actions = one.columns["rewards"], one.columns["actions"]
    for name, values, said in (
        ("rewards", rewards.astype(np.float64), "'rewards' would be float64"),
        ("rewards", rewards + (np.arange(7) == 5), "'rewards' would differ in row 5"),
        ("actions", actions[:, :1], r"of shape \(7, 1\), and is float32 of shape \(7, 2\)"),
    ):
        other = Recording({**one.columns, name: values}, {}, "other")
        with pytest.raises(DatasetError, match=said):
            one.refuse_difference(other, "x")
    fewer = {k: v for k, v in one.columns.items() if k != "rewards"}
    with pytest.raises(DatasetError, match="'rewards' would be lost"):
        one.refuse_difference(Recording(fewer, {}, "x"), "x")
    without = {k: v for k, v in one.columns.items() if not k.startswith("infos/")}
    one.refuse_difference(Recording(without, {}, "x"), "x")  # which no method reads


@pytest.mark.parametrize(
    "text", ["data", "x.csv", "lerobot:", "robomimic:folder", "minari:/x", "minari:../x-v0", ""]
)
def test_targets_that_are_none(text, minari_root):
    with pytest.raises(ConfigError, match=r"names no format to write|is no id of Minari's"):
        find_target(text)


def test_the_command_says_what_was_written_and_left_out(tmp_path, minari_root, capsys):
    path = tmp_path / "first.hdf5"
    to_d4rl(made([3, 4], np.random.default_rng(0), ends=[True, False]), tmp_path, path.name)
    with h5py.File(path, "a") as file:
        file["metadata/weights"] = np.zeros((2, 2))
        file["infos/nan"] = np.full(7, np.nan)
    assert main(["datasets", "convert", str(path), f"lerobot:{tmp_path}/b"]) == 0
    said = capsys.readouterr().out
    assert "episodes: 2: 1 end in a terminal" in said and "infos/qpos (float64)" in said
    assert "infos/nan, metadata/weights: left out" in said
    assert "timestamps count 10 frames a second" in said
    assert main(["datasets", "convert", str(path), "minari:no id"]) == 2
    assert "minari:no id: cannot be written" in capsys.readouterr().err
    assert main(["datasets", "convert", str(path), f"{tmp_path}/c.hdf5", "--reward", "r"]) == 2
    assert "--reward goes only with a log in CSV or Parquet" in capsys.readouterr().err
