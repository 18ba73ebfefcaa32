"""OGBench's files as episodes, and as the package itself reads them."""

import importlib
import importlib.util
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.datasets import ogbench
from lit_offrl.datasets.cache import ColumnCache
from lit_offrl.datasets.catalog import CATALOG, resolve
from lit_offrl.datasets.environments import ENVIRONMENTS
from lit_offrl.datasets.ogbench import OGBENCH, OGBenchSource
from lit_offrl.datasets.ogbench_tasks import ENV_TASKS, FAMILIES, TASKS, data_name
from lit_offrl.datasets.reading import Reading
from lit_offrl.datasets.split import split_episodes
from lit_offrl.datasets.views import Snippets, Transitions

BASE = "pointmaze-medium-navigate"
needs_ogbench = pytest.mark.skipif(
    importlib.util.find_spec("ogbench") is None, reason="the package ogbench is not installed"
)


@pytest.fixture(scope="session")
def written(ogbench_files):
    return ogbench_files()


# ---- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file", "env", "task"),
    [
        ("cube-single-play-v0", "cube-single-play-v0", "cube-single-v0", None),
        (
            "cube-double-noisy-singletask-v0",
            "cube-double-noisy-v0",
            "cube-double-singletask-v0",
            2,
        ),
        (
            "puzzle-4x4-play-singletask-task5-v0",
            "puzzle-4x4-play-v0",
            "puzzle-4x4-singletask-task5-v0",
            5,
        ),
        (
            "antmaze-giant-stitch-singletask-v0",
            "antmaze-giant-stitch-v0",
            "antmaze-giant-singletask-v0",
            1,
        ),
        ("antsoccer-arena-navigate-singletask-v0", None, "antsoccer-arena-singletask-v0", 4),
        ("scene-play-singletask-v0", None, "scene-singletask-v0", 2),
        ("puzzle-3x3-play-singletask-v0", None, "puzzle-3x3-singletask-v0", 4),
        ("humanoidmaze-large-navigate-singletask-v0", None, "humanoidmaze-large-singletask-v0", 1),
    ],
)
def test_names_of_the_catalogue(name, file, env, task):
    entry = OGBENCH[name]
    assert entry.env_id == f"lit_offrl/{env}" and ENV_TASKS[env].task == task
    assert data_name(name).env_id == env
    assert file is None or data_name(name).file == file == entry.base
    spec = entry.spec()
    assert ("rewards" in spec.columns) == (task is not None)
    assert (spec.ref_min_score, spec.ref_max_score, spec.score_of) == (0.0, 1.0, "success")
    assert spec.max_episode_steps == ENVIRONMENTS[entry.env_id].max_episode_steps
    assert entry.url.endswith(f"/{entry.base}.npz")


def test_every_file_has_seven_names():
    files = sum(len(family.data) for family in FAMILIES.values())
    assert files == 8 + 11 + 6 + 4 + 2 * 9 and len(OGBENCH) == 7 * files
    assert not OGBENCH.keys() & CATALOG.keys()
    for name in OGBENCH:
        assert OGBENCH[name].files[0] == f"{data_name(name).file}.npz"


@pytest.mark.parametrize("name", ["cube-single-v0", "cube-play-v0", "cube-single-play", "x-v0"])
def test_what_is_no_name_of_data(name):
    assert data_name(name) is None


@needs_ogbench
def test_facts_are_those_of_the_package():
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("ogbench")
    importlib.import_module("lit_offrl.envs")
    for name, (family, _) in ENV_TASKS.items():
        assert gymnasium.spec(name).max_episode_steps == family.max_episode_steps, name
        assert gymnasium.spec(f"lit_offrl/{name}").max_episode_steps == family.max_episode_steps


# ---- reading ---------------------------------------------------------------------------------


def transitions(dataset, validation):
    chosen = dataset.columns["validation"][dataset.episodes[:, 0]] == validation
    view = Transitions().bind(dataset.take_episodes(np.flatnonzero(chosen)))
    return view.batch(view.rows)


@needs_ogbench
@pytest.mark.parametrize("task", ["", "-task1", "-task3"])
def test_transitions_are_those_of_the_package(written, task):
    package = pytest.importorskip("ogbench")
    name = f"{BASE}-singletask{task}-v0"
    found = resolve(name, written).read(require=("rewards",))
    _, *expected = package.make_env_and_datasets(name, dataset_dir=str(written))
    for wanted, validation in zip(expected, (False, True), strict=True):
        batch = transitions(found, validation)
        for key in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(batch, key), wanted[key])
        np.testing.assert_array_equal(~batch.terminals, wanted["masks"])
        going_on = ~batch.terminals.numpy()  # behind a terminal state nothing is looked at
        following = wanted["next_observations"][going_on]
        np.testing.assert_array_equal(batch.next_observations[going_on], following)


@needs_ogbench
def test_a_row_is_rewarded_and_ends_by_its_own_state(written):
    found = resolve(f"{BASE}-singletask-task1-v0", written).read()
    solved = np.zeros(30, bool)
    solved[[6, 7, 8, 21, 22, 23]] = True
    np.testing.assert_array_equal(found.columns["rewards"], solved - 1.0)
    ends = np.arange(30) % 6 == 5
    np.testing.assert_array_equal(found.columns["terminals"], solved & ~ends)
    np.testing.assert_array_equal(found.columns["timeouts"], ends)
    starts = found.episodes[:, 0].tolist()
    assert starts == [0, 6, 7, 8, 9, 12, 18, 22, 23, 24]
    assert "task 1" in " ".join(found.spec.handling)


def test_without_a_task_rows_have_no_rewards_and_need_no_package(written, monkeypatch):
    monkeypatch.setattr(ogbench, "relabel", None)
    found = resolve(f"{BASE}-v0", written).read()
    assert set(found.columns) == {
        *("observations", "actions", "terminals", "timeouts", "validation"),
    }
    assert found.episode_lengths.tolist() == [6] * 5 and not found.episode_terminated.any()
    assert len(Transitions().bind(found).rows) == 25  # an episode of 6 rows is 5 transitions
    split = split_episodes(found, 0.5, 0)
    assert split.train.tolist() == [0, 1, 2, 3] and split.held_out.tolist() == [4]


def test_without_the_package_a_task_is_one_line(written, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(ogbench.importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=r"need the package ogbench: run .*\[ogbench\]"):
        resolve(f"{BASE}-singletask-v0", written).read()


@needs_ogbench
def test_relabelling_leaves_the_global_generator_alone(written):
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    resolve(f"{BASE}-singletask-v0", written).read()
    assert np.random.random() == expected  # noqa: NPY002


def test_columns_are_cached_for_each_pair_of_files_and_each_task(written, tmp_path, monkeypatch):
    shutil.copytree(written, tmp_path / "data")
    cache = ColumnCache(tmp_path / "cache")
    source = resolve(f"{BASE}-v0", tmp_path / "data", Reading(cache=cache))
    first = source.read()
    assert isinstance(first.columns["observations"].base, np.memmap)
    with monkeypatch.context() as patch:
        patch.setattr(OGBenchSource, "_read", None)
        again = source.read()
    assert again.spec == first.spec and len(cache.entries()) == 1
    for name, values in first.columns.items():
        np.testing.assert_array_equal(again.columns[name], values)
    path = tmp_path / "data" / f"{BASE}-v0-val.npz"
    arrays = dict(np.load(path))
    np.savez(path, **(arrays | {"actions": arrays["actions"] / 2}))
    half = source.read()
    np.testing.assert_array_equal(half.columns["actions"][24:], first.columns["actions"][24:] / 2)
    assert len(cache.entries()) == 2
    assert [each.name for each in cache.folder.iterdir() if each.name.startswith(".")] == []


def test_memory_stays_small_while_a_file_is_read(ogbench_files, tmp_path):
    """A file of 40 MB is read with less than a quarter of that in memory."""
    import tracemalloc

    rows = 4_000
    wide = np.random.default_rng(0).normal(size=(rows, 1250)).astype(np.float64)
    ends = np.arange(rows) % 100 == 99
    np.savez(tmp_path / "x.npz", observations=wide, terminals=ends)
    del wide
    with ogbench.NpzFile(tmp_path / "x.npz", ["observations"]) as file:
        tracemalloc.start()
        column = ogbench._column("observations", [file], tmp_path)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert column.shape == (rows, 1250) and column.dtype == np.float32
    assert most < rows * 1250 * 8 / 2


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    solved=st.integers(0, 2**30),
    horizon=st.integers(2, 4),
)
def test_no_view_crosses_an_episodes_end(tmp_path_factory, lengths, solved, horizon):
    """Each observation is (file, recording, step): its next one is known."""
    folder = tmp_path_factory.mktemp("property")
    count = sum(lengths)
    if count < 2:
        return
    which = np.array([bool(solved >> row & 1) for row in range(count)])
    recording = np.repeat(np.arange(len(lengths)), lengths)
    step = np.concatenate([np.arange(length) for length in lengths])
    ends = np.zeros(count, bool)
    ends[np.cumsum(lengths) - 1] = True
    states = np.stack([recording, step], axis=1).astype(np.float32)
    arrays = {"observations": states, "actions": states / 9, "terminals": ends, "qpos": states}
    for ending in ("", "-val"):
        np.savez(folder / f"{BASE}-v0{ending}.npz", **arrays)

    def relabel(env_id, privileged, where):
        assert env_id == "lit_offrl/pointmaze-medium-singletask-v0"
        return np.tile(which - 1.0, 2).astype(np.float32), np.tile(which, 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ogbench, "relabel", relabel)
        found = resolve(f"{BASE}-singletask-v0", folder).read()
    assert found.columns["validation"].sum() == count == len(found) / 2
    # a row is a transition unless it ends its recording, and bootstraps unless it is solved
    if not ends.all():
        view = Transitions().bind(found)
        rows = view.rows.numpy()
        np.testing.assert_array_equal(rows, np.flatnonzero(~np.tile(ends, 2)))
        batch = view.batch(view.rows)
        np.testing.assert_array_equal(batch.terminals, np.tile(which, 2)[rows])
        forward = batch.next_observations - batch.observations
        expected = np.stack([np.zeros(len(rows)), ~batch.terminals], axis=1)
        np.testing.assert_array_equal(forward, expected)
    try:
        snippets = Snippets(horizon=horizon).bind(found)
    except DatasetError:  # none is that long
        return
    batch = snippets.batch(snippets.rows)
    forward = (batch.observations[:, 1:] - batch.observations[:, :-1])[batch.mask[:, 1:]]
    assert (forward[:, 0] == 0).all() and (forward[:, 1] == 1).all()
    goes_on = batch.next_observations[~batch.terminals]  # after n = H steps of the same recording
    begun = batch.observations[~batch.terminals, 0]
    np.testing.assert_array_equal(goes_on - begun, np.tile([0, horizon], (len(begun), 1)))
    passed = snippets.rows[:, None].numpy() + np.arange(horizon)
    assert not (np.tile(ends, 2)[np.minimum(passed, 2 * count - 1)] & batch.mask.numpy()).any()


# ---- broken files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"actions": None}, r"no array 'actions' \(it has observations, qpos, qvel, terminals\)"),
        ({"terminals": None}, "no array 'terminals'"),
        ({"qpos": None}, "no array 'qpos'"),
        ({"observations": np.zeros((24, 3), np.float32)}, r"\(24, 3\), where .* has \(24, 2\)"),
        ({"observations": np.zeros((24, 8, 8, 3), np.uint8)}, r"\(24, 8, 8, 3\), where"),
        ({"actions": np.zeros((23, 2), np.float32)}, "'actions' has 23 rows and .* has 24"),
        ({"qpos": np.zeros((25, 2), np.float32)}, "'qpos' has 25 rows and .* has 24"),
        ({"actions": np.zeros((24, 2), np.int32)}, "'actions' has dtype int32, where .* float32"),
        ({"terminals": np.zeros(24, np.float32)}, "'terminals' has dtype float32, where .* bool"),
        ({"terminals": np.zeros((24, 1), bool)}, r"'terminals' has shape \(24, 1\)"),
        ({"terminals": np.zeros(24, bool)}, "'terminals' is not True in its last row"),
        ({"observations": np.full((24, 2), np.nan, np.float32)}, "'observations' has NaN in row 0"),
        ({"qpos": np.full((24, 2), np.inf)}, "'qpos' has an infinite value in row 0"),
        ({"observations": np.full((24, 2), 1e300)}, "infinite value in row 0"),
    ],
)
def test_a_wrong_file_is_one_line(ogbench_files, tmp_path, changes, said):
    ogbench_files(tmp_path, **changes)
    for cache in (None, ColumnCache(tmp_path / "cache")):
        source = resolve(f"{BASE}-singletask-v0", tmp_path, Reading(cache=cache))
        with pytest.raises(DatasetError, match=said) as caught:
            source.read()
        assert str(caught.value).startswith(str(tmp_path / f"{BASE}-v0.npz"))
        assert "\n" not in str(caught.value)
    assert ColumnCache(tmp_path / "cache").entries() == []


def test_files_that_do_not_go_together(ogbench_files, tmp_path):
    ogbench_files(tmp_path)
    validation = tmp_path / f"{BASE}-v0-val.npz"
    arrays = dict(np.load(validation))
    np.savez(validation, **(arrays | {"qpos": np.zeros((6, 5), np.float32)}))
    with pytest.raises(DatasetError, match=r"'qpos' has rows of shape \(5,\), and .* of \(2,\)"):
        resolve(f"{BASE}-singletask-v0", tmp_path).read()
    validation.unlink()
    with pytest.raises(DatasetError, match=rf"is not on disk .*datasets download {BASE}-v0"):
        resolve(f"{BASE}-v0", tmp_path).read()


def test_a_full_disk_is_one_line(written, monkeypatch):
    monkeypatch.setattr("lit_offrl.datasets.scratch.free_bytes", lambda folder: 100)
    with pytest.raises(DatasetError, match=r"takes 0\.00 GB, and the disk has 0\.00 GB"):
        resolve(f"{BASE}-v0", written).read()


# ---- files of a user's own -------------------------------------------------------------------


def test_a_path_may_have_the_name_of_a_task(written):
    source = resolve(written / f"{BASE}-singletask-task3-v0.npz")
    assert source.name == f"{BASE}-singletask-task3-v0" and source.task == 3
    assert source.path == written / f"{BASE}-v0.npz" and source.entry is None
    assert source.header().env_id == "lit_offrl/pointmaze-medium-singletask-task3-v0"


def test_a_users_own_file_in_the_data_directory_has_names_too(written, tmp_path):
    for ending in ("", "-val"):
        own = tmp_path / f"pointmaze-medium-mine-v0{ending}.npz"
        shutil.copy(written / f"{BASE}-v0{ending}.npz", own)
    for name, task in (("mine-v0", None), ("mine-singletask-task4-v0", 4)):
        source = resolve(f"pointmaze-medium-{name}", tmp_path)
        assert (source.task, source.entry, source.on_disk) == (task, None, True)
        assert source.path == tmp_path / "pointmaze-medium-mine-v0.npz"
        assert source.name == f"pointmaze-medium-{name}"
    with pytest.raises(DatasetError, match="neither the name of a dataset nor a file"):
        resolve("pointmaze-medium-yours-v0", tmp_path)


def test_a_file_of_any_name_with_its_environment(written, tmp_path):
    for ending in ("", "-val"):
        shutil.copy(written / f"{BASE}-v0{ending}.npz", tmp_path / f"mine{ending}.npz")
    with pytest.raises(DatasetError, match="a NumPy archive"):
        resolve(tmp_path / "mine.npz")
    for env_id in ("pointmaze-medium-v0", "lit_offrl/pointmaze-medium-v0"):
        found = resolve(tmp_path / "mine.npz", reading=Reading(env_id=env_id)).read()
        assert found.spec.name == "mine" and found.spec.env_id == "lit_offrl/pointmaze-medium-v0"
    with pytest.raises(DatasetError, match=r"'observations' has shape \(24, 2\), where"):
        resolve(tmp_path / "mine.npz", reading=Reading(env_id="cube-single-v0")).header()
    with pytest.raises(ConfigError, match="Did you mean 'pointmaze-medium-v0'"):
        resolve(tmp_path / "mine.npz", reading=Reading(env_id="pointmaze-medum-v0"))
    with pytest.raises(ConfigError, match="format goes only with HDF5"):
        resolve(written / f"{BASE}-v0.npz", reading=Reading(format="d4rl"))
    with pytest.raises(ConfigError, match="is of lit_offrl/pointmaze-medium-v0"):
        resolve(f"{BASE}-v0", written, Reading(env_id="pointmaze-large-v0"))


def test_a_file_that_has_changed_since_its_download(written, tmp_path):
    from lit_offrl.datasets.sidecar import write_sidecar

    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    write_sidecar(tmp_path / f"{BASE}-v0-val.npz", {"sha256": "0" * 64})
    with pytest.raises(DatasetError, match=r"-val.npz: has changed since it was downloaded"):
        resolve(f"{BASE}-v0", tmp_path).read()


def test_names_are_of_tasks_that_exist():
    assert {task for _, task in ENV_TASKS.values()} == {None, *TASKS}
    with pytest.raises(DatasetError, match=f"Did you mean '{BASE}-singletask-task5-v0'"):
        resolve(f"{BASE}-singletask-task6-v0")
