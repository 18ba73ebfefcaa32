"""LeRobot's folders: what the package lerobot wrote, labels, pictures' features, and memory."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_offrl.__main__ import main
from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.datasets.cache import ColumnCache
from lit_offrl.datasets.lerobot import LeRobotOptions, LeRobotSource
from lit_offrl.datasets.lerobot_writing import write_lerobot
from lit_offrl.datasets.sources import find_source
from lit_offrl.datasets.views import Snippets, Transitions

# Written by the package lerobot 0.4.4 from the numbers of `made` below; only its statistics of
# single episodes were left out.
MADE = Path(__file__).parents[1] / "lerobot_made"
LENGTHS = (4, 5, 3)
calls = []


def made():
    """The numbers that were given to lerobot, by feature."""
    random, rows = np.random.default_rng(0), []
    for _ in range(sum(LENGTHS)):
        rows.append(random.normal(size=4).astype("f4")), rows.append(random.normal(size=2))
        rows.append(random.uniform(-1, 1, 3).astype("f4")), rows.append(np.float32(random.normal()))
    names = ("state", "more", "action", "reward")
    return {name: np.array(rows[place::4]) for place, name in enumerate(names)}


def greys(frames):
    calls.append(frames.shape)
    assert frames.dtype == np.uint8
    return frames.reshape(len(frames), -1)[:, :2] / 10


def nothing(frames):
    return frames[:, 0, 0, 0]


def read(folder=MADE, cache=None, **options):
    return LeRobotSource(str(folder), LeRobotOptions(**options), cache=cache).read()


def test_what_lerobot_wrote_is_read_to_the_bit():
    dataset, given = read(), made()
    columns = dataset.columns
    np.testing.assert_array_equal(columns["observations"], given["state"])
    np.testing.assert_array_equal(columns["actions"], given["action"])
    np.testing.assert_array_equal(columns["rewards"], given["reward"])
    assert dataset.episodes.tolist() == [[0, 4], [4, 9], [9, 12]]
    assert np.flatnonzero(columns["terminals"]).tolist() == [3, 11]  # those that succeeded
    assert np.flatnonzero(columns["timeouts"]).tolist() == [8]
    said = "; ".join((*dataset.spec.notices, *dataset.spec.handling))
    assert "images.wrist (8 × 12 × 3, image), observation.images.top (64 × 96 × 3, video)" in said
    assert "not among the observations: observation.environment_state (2)" in said
    assert "has 2 tasks" in said


def test_observations_are_put_behind_each_other_in_the_order_given():
    names = ("observation.environment_state", "observation.state")
    given = made()
    expected = np.concatenate([given["more"], given["state"]], axis=1).astype(np.float32)
    dataset = read(observations=names, tasks="observations")
    np.testing.assert_array_equal(dataset.columns["observations"][:, :6], expected)
    assert dataset.columns["observations"][:, 6:].tolist() == [[1, 0]] * 9 + [[0, 1]] * 3
    goals = read(tasks="goals").columns["goals"]
    assert goals.tolist() == [[1, 0]] * 9 + [[0, 1]] * 3


@pytest.mark.parametrize("form", ["numbers", "json", "lines"])
def test_success_of_numbered_episodes(form, tmp_path):
    path = tmp_path / "good.txt"
    path.write_text("[1]" if form == "json" else "1\n")
    dataset = read(success=(1,) if form == "numbers" else str(path))
    assert np.flatnonzero(dataset.columns["terminals"]).tolist() == [8]
    assert np.flatnonzero(dataset.columns["rewards"]).tolist() == [8]
    assert dataset.columns["rewards"].max() == 1
    rewarded = read(success=(1,), reward="next.reward")
    np.testing.assert_array_equal(rewarded.columns["rewards"], made()["reward"])
    assert np.flatnonzero(rewarded.columns["terminals"]).tolist() == [8]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"observations": ("observation.stat",)}, "Did you mean 'observation.state'"),
        ({"observations": ("observation.images.top",)}, "is no vector of numbers"),
        ({"observations": ("action", "action")}, "names 'action' twice"),
        ({"reward": "observation.state"}, "where one number a frame is needed"),
        ({"success": (3,)}, "names episode 3"),
        ({"success": (1, 1)}, "names episode 1"),
        ({"success": "nowhere.txt"}, "no feature .* and no file"),
        ({"terminal": "frame_index"}, "'frame_index' has 2, where only 0 and 1"),
        ({"tasks": "words"}, "tasks is 'words'; choose ignore, observations or goals"),
        ({"frames": {"observation.state": "json.dumps"}}, "no image and no video"),
        ({"frames": {"observation.images.top": "json.nothing"}}, "'json.nothing' can be imported"),
    ],
)
def test_options_that_do_not_fit_are_named(options, said):
    with pytest.raises((ConfigError, DatasetError), match=said) as caught:
        read(**options)
    assert "\n" not in str(caught.value)


def test_features_of_images_and_videos_are_made_once(tmp_path):
    cache, name = ColumnCache(tmp_path / "cache"), f"{__name__}.greys"
    frames = {"observation.images.wrist": name, "observation.images.top": name}
    calls.clear()
    dataset = read(cache=cache, frames=frames)
    assert dataset.spec.observation_dim == 8
    grey = np.concatenate([6 * e + np.arange(n) for e, n in enumerate(LENGTHS)])
    found = dataset.columns["observations"]
    np.testing.assert_array_equal(found[:, :4], made()["state"])
    np.testing.assert_allclose(found[:, 4:6], np.stack([grey, grey], 1), atol=1e-6)
    np.testing.assert_allclose(found[:, 6:], np.stack([grey, grey], 1), atol=0.5)  # compressed
    assert sorted(shape for shape in calls if shape[0] > 1) == [(12, 8, 12, 3), (12, 64, 96, 3)]
    shutil.rmtree(tmp_path / "cache" / "index")
    for entry in (tmp_path / "cache").glob("*/entry.json"):
        entry.unlink()
    calls.clear()
    read(cache=cache, frames=frames)
    assert all(shape[0] == 1 for shape in calls)  # the first frame, for the number of features


def test_features_need_a_cache_and_one_row_of_numbers_a_frame(tmp_path):
    wrist = "observation.images.wrist"
    with pytest.raises(ConfigError, match="set cache to true"):
        read(frames={wrist: f"{__name__}.greys"})
    with pytest.raises(ConfigError, match=r"gives an array \(1,\) of frames \(1, 8, 12, 3\)"):
        read(frames={wrist: f"{__name__}.nothing"}, cache=ColumnCache(tmp_path))
    with pytest.raises(ConfigError, match="fails on frames"):
        read(frames={wrist: "json.dumps"}, cache=ColumnCache(tmp_path))


def test_cached_columns_are_those_of_the_files(tmp_path, monkeypatch):
    cache = ColumnCache(tmp_path)
    first = read(cache=cache)
    monkeypatch.setattr("lit_offrl.datasets.lerobot.LeRobotReader", None)
    second = read(cache=cache)
    assert second.spec == first.spec
    for name, values in first.columns.items():
        np.testing.assert_array_equal(second.columns[name], values)
    with pytest.raises(TypeError):  # of other options there is no entry yet
        read(cache=cache, success=(1,))


def test_a_name_of_the_hub_is_fetched(monkeypatch):
    asked = {}

    def fetch(name, **options):
        asked.update(options, name=name)
        return str(MADE)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    source = find_source("lerobot:org/robot@main")
    assert source.name == "lerobot:org/robot@main" and len(source.read()) == 12
    assert asked["name"] == "org/robot" and asked["revision"] == "main"
    assert asked["repo_type"] == "dataset" and asked["allow_patterns"] == ["meta/*", "data/*"]

    def refuse(name, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(DatasetError, match=r"no folder with a meta/info\.json, and cannot be had"):
        find_source("lerobot:org/robot")


def test_info_and_check_on_the_command_line(capsys):
    assert main(["datasets", "info", f"lerobot:{MADE}"]) == 0
    said = capsys.readouterr().out
    assert "0: push; 1: pull" in said and "observation.environment_state (2)" in said
    names = "observation.state,observation.environment_state"
    assert main(["datasets", "check", str(MADE), "--observations", names]) == 0
    said = capsys.readouterr().out
    assert "3: 2 end in a terminal, 1 in a timeout" in said and "12 × 6" in said


def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    """32 MB of numbers in two row groups, of which each is larger than what is held at once."""
    rows, size = 2 * 50_000, 80
    states = np.random.default_rng(0).standard_normal((rows, size), np.float32)
    columns = {"observation.state": states, "action": states[:, :1]}
    write_lerobot(tmp_path / "data", columns, [rows // 2, rows // 2])  # a row group each
    del states, columns
    # the remarks are of a sample
    monkeypatch.setattr("lit_offrl.datasets.lerobot_reader.remarks", lambda columns: ())
    pool = pyarrow.default_memory_pool()
    before = pool.bytes_allocated()
    proxy = pyarrow.proxy_memory_pool(pool)
    pyarrow.set_memory_pool(proxy)
    try:
        dataset = read(tmp_path / "data")
    finally:
        pyarrow.set_memory_pool(pool)
    assert len(dataset) == rows and before < 2**20
    assert proxy.max_memory() < 12 * 2**20


lengths = st.lists(st.integers(1, 6), min_size=1, max_size=5).map(lambda more: [4, *more])


@settings(max_examples=10, deadline=None)
@given(lengths=lengths, succeeded=st.data())
def test_no_view_crosses_an_episodes_end(lengths, succeeded, tmp_path_factory):
    """Each observation is (episode, step), so what a batch holds tells where it is from."""
    folder = tmp_path_factory.mktemp("views") / "data"
    episode = np.repeat(np.arange(len(lengths)), lengths).astype(np.float32)
    step = np.concatenate([np.arange(length) for length in lengths]).astype(np.float32)
    state = np.stack([episode, step], axis=1)
    write_lerobot(folder, {"observation.state": state, "action": state}, lengths)
    good = succeeded.draw(st.sets(st.integers(0, len(lengths) - 1), min_size=0))
    dataset = read(folder, success=tuple(good))
    assert dataset.episode_lengths.tolist() == list(lengths)
    assert np.flatnonzero(dataset.episode_terminated).tolist() == sorted(good)
    view = Transitions().bind(dataset, "cpu")
    batch = view.batch(view.rows, None)
    same = batch.next_observations[:, 0] == batch.observations[:, 0]
    following = batch.next_observations[:, 1] - batch.observations[:, 1]
    assert same.all() and ((following == 1) | batch.terminals.bool()).all()
    chunks = Transitions(chunk=2, n_step=2).bind(dataset, "cpu")
    batch = chunks.batch(chunks.rows, None)
    assert (batch.next_observations[:, 0] == batch.observations[:, 0]).all()
    pieces = Snippets(3).bind(dataset, "cpu")
    found = pieces.batch(pieces.rows, None)
    got = found.observations
    assert len(got) and ((got[..., 0] == got[:, :1, 0]) | ~found.mask.bool()).all()


# ---- broken folders ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(MADE, tmp_path / "data")


def change_info(folder, **changes):
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del info[key]
        else:
            info[key] = value
    path.write_text(json.dumps(info))


def change_table(path, **changes):
    """Replace columns, by a function of the old values or by None to drop them."""
    from pyarrow import parquet

    table = parquet.read_table(path)
    for name, change in changes.items():
        name = name.replace("__", ".")
        place = table.column_names.index(name)
        if change is None:
            table = table.remove_column(place)
        else:
            table = table.set_column(place, name, change(table[name]))
    parquet.write_table(table, path)


EPISODES, DATA = "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"codebase_version": "v2.1"}, "'codebase_version' is v2.1.*convert_dataset_v21_to_v30"),
        ({"codebase_version": "v4.0"}, "'codebase_version' is v4.0.*install a version"),
        ({"codebase_version": 3}, "has no column"),
        ({"codebase_version": "new"}, "'codebase_version' is 'new', which cannot be"),
        ({"data_path": "../other/{chunk_index}.parquet"}, "'data_path' is '../other"),
        ({"data_path": "/etc/passwd"}, "'data_path' is '/etc/passwd', which cannot be"),
        ({"data_path": "data/{chunk_index.__class__}"}, "'data_path' is .*cannot be"),
        ({"data_path": "data/{chunk_index:09999999999d}"}, "'data_path' is .*cannot be"),
        ({"data_path": "data/{secret}"}, "'data_path' is .*cannot be"),
        ({"data_path": "data/{chunk_index"}, "'data_path' is .*cannot be"),
        ({"data_path": "data/file"}, "data/file: no such file"),
        ({"total_frames": 2**60}, "'total_frames' is 1152921504606846976, which cannot be"),
        ({"total_frames": 10**9}, "12 rows by column 'length', and .* 1,000,000,000"),
        ({"total_frames": 0}, "'total_frames' is 0"),
        ({"total_episodes": 4}, "has 3 episodes and .* says 4"),
        ({"total_episodes": None}, "'total_episodes' is None"),
        ({"fps": float("nan")}, "'fps' is nan"),
        ({"features": {}}, "'features' is {}"),
        ({"features": {"x": 1}}, "'features.x.dtype' is None"),
        ({"features": {"x": {"dtype": "float32", "shape": [-1]}}}, r"'features.x.shape' is \[-1\]"),
        ({"splits": {"val": "2:9"}}, "'splits.val' is '2:9', which is no range"),
        ({"lit_offrl": {"env_id": 3}}, "env_id is 3"),
    ],
)
def test_metadata_that_cannot_be(folder, changes, said):
    if changes == {"codebase_version": 3}:
        change_table(folder / DATA, action=None)
    change_info(folder, **changes)
    with pytest.raises(DatasetError, match=said) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def test_a_feature_too_large_to_hold(folder):
    about = {"dtype": "float32", "shape": [10**6, 10**6, 10**6]}
    info = json.loads((folder / "meta/info.json").read_text())
    change_info(folder, features=info["features"] | {"observation.state": about})
    with pytest.raises(DatasetError, match=r"'features\.observation\.state\.shape' is"):
        read(folder)


@pytest.mark.parametrize(
    "path, said",
    [
        ("meta/info.json", "info.json: no such file, so .* is no LeRobot data"),
        (EPISODES, "meta/episodes: has no table of episodes"),
        ("meta/tasks.parquet", "tasks.parquet: is not there"),
        (DATA, "file-000.parquet: no such file, which meta/episodes names"),
    ],
)
def test_missing_files_are_named(folder, path, said):
    (folder / path).unlink()
    with pytest.raises(DatasetError, match=said):
        read(folder)


@pytest.mark.parametrize("path", ["meta/info.json", EPISODES, "meta/tasks.parquet", DATA])
def test_damaged_files_are_named(folder, path):
    whole = (folder / path).read_bytes()
    (folder / path).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=f"{Path(path).name}: cannot be read") as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def put(row, value):
    """Return a change of a column that puts a value into a row."""

    def change(column):
        values = column.to_pylist()
        ragged = isinstance(value, list) and len(value) != len(values[0])
        values[row] = value
        kind = pyarrow.list_(column.type.value_type) if ragged else column.type
        if isinstance(value, str):
            values, kind = list(map(str, values)), pyarrow.string()
        return pyarrow.array(values, kind)

    return change


def shorter(column):
    return pyarrow.array([value[:2] for value in column.to_pylist()])


NAN = math.nan


@pytest.mark.parametrize(
    "path, changes, said",
    [
        (EPISODES, {"length": put(1, 4)}, "have 11 rows by column 'length'"),
        (EPISODES, {"length": put(1, -5)}, "column 'length' has -5 in row 1"),
        (EPISODES, {"length": put(1, None)}, "column 'length' is empty in a row"),
        (EPISODES, {"length": None}, "has no column 'length'"),
        (EPISODES, {"episode_index": put(1, 7)}, "'episode_index' has 7 in row 1"),
        (EPISODES, {"length": put(1, "many")}, "column 'length' holds string"),
        (DATA, {"episode_index": put(4, 0)}, "'episode_index' has 0, where .* row 0 of 5 of epis"),
        (DATA, {"frame_index": put(6, 1)}, r"'frame_index' has 1.*\(row 6 of the file\)"),
        (DATA, {"timestamp": put(2, -1.0)}, r"'timestamp' falls from 0.1 to -1.*\(row 2 of"),
        (DATA, {"action": put(5, [1.0, NAN, 0.0])}, "column 'action' has NaN in row 5"),
        (DATA, {"next__reward": put(5, math.inf)}, "'next.reward' has an infinite value in row 5"),
        (DATA, {"next__reward": put(5, None)}, "column 'next.reward' is empty in row 5"),
        (DATA, {"action": put(5, [1.0])}, "'action' has 1 numbers, where .* says 3, in row 5"),
        (DATA, {"action": shorter}, "'action' has 2 numbers, where .* says 3, in row 0"),
        (DATA, {"next__reward": put(5, "much")}, "column 'next.reward' holds string, where"),
        (DATA, {"observation__state": None}, "has no column 'observation.state'"),
        (DATA, {"next__done": put(5, True)}, r"'next.done' ends an episode that goes on \(row 5"),
        (DATA, {"task_index": put(5, 9)}, "'task_index' has 9, where .* has 2 tasks"),
    ],
)  # fmt: skip
def test_wrong_values_are_named_with_their_row(folder, path, changes, said):
    change_table(folder / path, **changes)
    with pytest.raises(DatasetError, match=said) as caught:
        read(folder, tasks="observations")
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_files_of_more_rows_than_their_episodes(folder):
    from pyarrow import parquet

    table = parquet.read_table(folder / DATA)
    parquet.write_table(pyarrow.concat_tables([table, table]), folder / DATA)
    with pytest.raises(DatasetError, match=r"has 24 rows, and by 'length' .* have 12"):
        read(folder)


def test_rows_that_were_never_written(folder):
    """Two gigabytes of one number repeated, in a few kilobytes."""
    from pyarrow import parquet

    rows = 1 << 25
    with parquet.ParquetWriter(folder / DATA, pyarrow.schema([("x", pyarrow.int8())])) as writer:
        writer.write_table(pyarrow.table({"x": pyarrow.array(np.zeros(rows, np.int8))}))
    change_table(folder / EPISODES, length=lambda c: pyarrow.array([4, 5, rows - 9]))
    features = {name: {"dtype": "int8", "shape": [1]} for name in ("episode_index", "frame_index")}
    change_info(folder, total_frames=rows, features=features | {"x": features["episode_index"]})
    with pytest.raises(DatasetError, match="has no column 'episode_index'"):
        read(folder, observations=("x",))
    from lit_offrl.datasets.lerobot_columns import Columns
    from lit_offrl.datasets.lerobot_folder import Episodes, Feature

    columns = Columns(Episodes(np.array([rows]), ((folder / DATA, rows),), {}), str(folder))
    with pytest.raises(DatasetError, match="nearly all of its values were never written"):
        columns.check([Feature("x", "int8", (8,))])


def test_links_out_of_the_folder_are_not_followed(folder, tmp_path):
    (tmp_path / "other.parquet").write_bytes((folder / DATA).read_bytes())
    (folder / DATA).unlink()
    (folder / DATA).symlink_to(tmp_path / "other.parquet")
    with pytest.raises(DatasetError, match="is a link that leads out of the folder"):
        read(folder)


def test_the_hubs_cache_keeps_its_files_as_links(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(path for path in MADE.rglob("*") if path.is_file()):
        shutil.copy(path, blobs / str(number))
        link = snapshot / path.relative_to(MADE)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    assert len(read(snapshot)) == 12


def test_writing_is_whole_or_not_at_all(tmp_path):
    wrong = {"observation.state": np.zeros((5, 2), np.float32), "action": np.array(["a"] * 5)}
    with pytest.raises(TypeError):  # of the statistics, when the data are written
        write_lerobot(tmp_path / "data", wrong, [5])
    assert not list(tmp_path.iterdir())
    (tmp_path / "data").mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        write_lerobot(tmp_path / "data", wrong, [5])
