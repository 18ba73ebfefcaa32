"""Logs in CSV and Parquet become HDF5 files with the same numbers, or a line says why not."""

from __future__ import annotations

import re

import h5py
import numpy as np
import pandas as pd
import pytest

from lit_offrl.common.errors import ConfigError, DatasetError, FileError
from lit_offrl.datasets.catalog import resolve
from lit_offrl.datasets.convert import LogOptions, convert_log
from lit_offrl.datasets.hdf5 import read_hdf5
from lit_offrl.datasets.log_columns import choose_columns

NAMES = [*(f"obs_{at}" for at in range(12)), "u", "v[0]", "r", "id", "done", "t"]
OPTIONS = {
    "observations": "obs_0..obs_11",
    "actions": "u,v[0]",
    "reward": "r",
    "episode": "id",
    "terminal": "done",
    "time": "t",
}


@pytest.fixture
def frame():
    """Three episodes, of ids 7, 2 and 5, of four rows; the second ends in a terminal."""
    rows = 12
    columns = {name: np.arange(rows) + 100.0 * at for at, name in enumerate(NAMES)}
    columns["id"] = np.repeat([7, 2, 5], 4)
    columns["done"] = (np.arange(rows) == 7).astype(int)
    columns["t"] = np.tile(np.arange(4), 3) / 50
    return pd.DataFrame(columns)


@pytest.fixture
def convert(tmp_path):
    """Convert a text, or a frame, and return the dataset that is read of the file."""

    def run(content, name="log.csv", force=False, **changes):
        path = tmp_path / name
        if isinstance(content, pd.DataFrame):
            content.to_parquet(path) if "parquet" in name else content.to_csv(path, index=False)
        elif content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        options = LogOptions(**{**OPTIONS, **changes})
        convert_log(path, tmp_path / "robot.hdf5", options, force=force)
        return read_hdf5(tmp_path / "robot.hdf5", require=())

    return run


def savetxt(frame):
    lines = [",".join(map(repr, row)) for row in frame.to_numpy(float).tolist()]
    return "\n".join(["# " + ",".join(frame.columns), *lines])


WRITTEN = {
    "csv": ("log.csv", lambda frame: frame),
    "gzipped": ("log.csv.gz", lambda frame: frame),
    "parquet": ("log.parquet", lambda frame: frame),
    "tabs": ("log.tsv", lambda frame: frame.to_csv(sep="\t", index=False)),
    "semicolons": ("log.csv", lambda frame: frame.to_csv(sep=";", decimal=",", index=False)),
    "spaces": ("log.csv", lambda frame: frame.to_csv(sep=" ", index=False)),
    "index": ("log.csv", lambda frame: frame.to_csv()),
    "savetxt": ("log.csv", savetxt),
    "byte-order-mark": ("log.csv", lambda frame: "\ufeff" + frame.to_csv(index=False)),
    "commas-at-the-end": (
        "log.csv",
        lambda frame: re.sub(r"(?m)$(?<=\d)", ",", frame.to_csv(index=False)),
    ),
    "spaced": ("log.csv", lambda frame: frame.to_csv(index=False).replace(",", ", ")),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_every_way_of_writing_a_log_gives_the_same_numbers(convert, frame, how):
    name, write = WRITTEN[how]
    data = convert(write(frame), name)
    assert np.array_equal(data.columns["observations"], frame[NAMES[:12]].to_numpy("f4"))
    assert np.array_equal(data.columns["actions"], frame[["u", "v[0]"]].to_numpy("f4"))
    assert data.columns["rewards"].tolist() == frame["r"].tolist()
    assert data.episodes.tolist() == [[0, 4], [4, 8], [8, 12]]
    assert data.episode_terminated.tolist() == [False, True, False]
    assert not data.cut_off and data.columns["timeouts"].sum() == 2


def test_the_file_says_where_it_comes_from(convert, frame, tmp_path):
    data = convert(
        frame,
        episode=None,
        time=None,
        action_low=(-1.0,),
        action_high=(2.0, 3.0),
        env="Robot-v0",
        max_episode_steps=50,
    )
    assert data.episodes.tolist() == [[0, 8], [8, 12]]  # the terminal alone says where
    spec = data.spec
    assert (spec.action_low, spec.action_high) == ((-1, -1), (2, 3))
    assert (spec.env_id, spec.max_episode_steps) == ("Robot-v0", 50)
    assert data.provenance["source"] == "lit-offrl datasets convert"
    assert data.provenance["log"] == "log.csv" and len(data.provenance["log_sha256"]) == 64
    assert data.provenance["log_observations"] == ",".join(NAMES[:12])


def test_digits_that_the_file_cannot_keep_are_said(frame, tmp_path):
    frame["obs_4"] = 1.7e9 + np.arange(12) / 50  # Unix time
    frame.to_csv(tmp_path / "log.csv", index=False)
    _, said = convert_log(tmp_path / "log.csv", tmp_path / "x.hdf5", LogOptions(**OPTIONS))
    assert len(said) == 1 and "'observations', dimension 4: float32 keeps 1 of 12" in said[0]


def test_lists_and_next_observations_of_parquet(convert, tmp_path):
    frame = pd.DataFrame({"state": [[1.0, 2.0], [3.0, 4.0]], "after": [[7.0, 8.0], [5.0, 6.0]]})
    frame["id"] = ["a", "b"]
    names = {"actions": None, "reward": None, "terminal": None, "time": None}
    options = {"observations": "state", "next_observations": "after", **names}
    data = convert(frame, "log.parquet", **options)
    assert data.columns["observations"].tolist() == [[1, 2], [3, 4]]
    assert data.columns["next_observations"].tolist() == [[7, 8], [5, 6]]
    with pytest.raises(DatasetError, match="each of its rows is an episode of its own"):
        convert(frame, "log.parquet", force=True, **{**options, "next_observations": None})
    frame["state"] = [[1.0, 2.0], [3.0]]
    with pytest.raises(DatasetError, match="'state' has 1 numbers in row 1 and 2 in row 0"):
        convert(frame, "log.parquet", force=True, **options)


def put(name, row, value):
    def change(frame):
        frame[name] = frame[name].astype(object)
        frame.loc[row, name] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("u", 5, "stop"), "column 'u' has 'stop' in row 5, where a number is needed"),
        (put("obs_3", 7, None), "column 'obs_3' has no number (it is empty, or NaN) in row 7"),
        (put("obs_3", 7, "inf"), "column 'obs_3' has an infinite value in row 7"),
        (put("id", 9, 7), "episode 7 of column 'id' goes on in row 9 after rows of other episodes"),
        (put("id", 3, None), "column 'id' is empty in row 3"),
        (
            put("done", 1, 1),
            "column 'done' ends an episode in row 1, and by column 'id' it goes on",
        ),
        (put("done", 1, 0.5), "column 'done' has 0.5 in row 1, where only 0 and 1"),
        (put("done", 1, "no"), "column 'done' has 'no' in row 1"),
        (put("t", 2, 0.0), "column 't' is 0.0 in row 2 and 0.02 in the row before"),
        (put("obs_0", slice(None), pd.Timestamp(0)), "column 'obs_0' has '1970-01-01"),
    ],
)
def test_what_is_wrong_in_a_log_is_named_by_column_and_row(convert, frame, tmp_path, change, said):
    change(frame)
    with pytest.raises(DatasetError) as caught:
        convert(frame)
    assert said in str(caught.value) and str(caught.value).startswith(str(tmp_path / "log.csv"))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("1,2,3\n4,5,6\n", "its first line holds numbers"),
        ("a,u,id\n1,2,0\n", "has 1 row below its names"),
        ("a,u,id\n1,2,0\n1,2,0,9\n", "row 1 has more cells than the first line has names (3)"),
        ("a,u,id\n1,2,0\n1,2,0,9\n1,2,0,9,9\n", "more cells|cannot be read"),
        ("a,u,id\n1,2,0\n1\n", "column 'u' has no number (it is empty, or NaN) in row 1"),
        ("a,a,u,id\n1,2,3,0\n1,2,3,0\n", "has several columns of the name 'a'"),
        ("a,bö,u,id\n1,2,3,0\n".encode("latin-1"), "names cannot be read ('utf-8'"),
        (b"a,u,id\n1,2,0\n" + b"\xff,1,0\n", "cannot be read ('utf-8'"),
        ('a,u,id\n1,"2,0\n1,2,0\n', "cannot be read"),
    ],
)
def test_files_that_are_no_tables(convert, tmp_path, content, said):
    with pytest.raises(DatasetError) as caught:
        convert(content, observations="a", actions="u", reward=None, terminal=None, time=None)
    assert any(each in str(caught.value) for each in said.split("|"))
    assert "\n" not in str(caught.value) and not (tmp_path / "robot.hdf5").exists()


@pytest.mark.parametrize(
    ("name", "said"), [("log.parquet", r"\(obs_0 0\.00 GB, obs_1"), ("log.csv", "text and cells")]
)
def test_logs_that_the_memory_cannot_hold_are_refused_unread(
    convert, frame, monkeypatch, name, said
):
    monkeypatch.setattr("lit_offrl.datasets.hdf5_limits.available_memory", lambda: 1000)
    with pytest.raises(DatasetError, match=rf"{name}: does not fit into memory: .*{said}"):
        convert(frame, name)


def test_damaged_archives_and_wrong_places(convert, tmp_path, frame):
    for name in ("log.parquet", "log.csv.gz"):
        with pytest.raises(DatasetError, match="names cannot be read"):
            convert(b"PAR1 no such thing PAR1", name)
    for name, said in (("log.txt", "no log by its name"), ("lgo.csv", "no such file.*'log.csv'")):
        (tmp_path / "log.txt").touch()
        (tmp_path / "log.csv").touch()
        with pytest.raises(DatasetError, match=said):
            convert(None, name)
    with pytest.raises(ConfigError, match=r"the file to write is HDF5: name it robot\.hdf5"):
        convert_log(tmp_path / "log.csv", tmp_path / "robot.csv", LogOptions(**OPTIONS))
    convert(frame)
    with pytest.raises(ConfigError, match="is there already: name another file, or say --force"):
        convert(frame)
    convert(frame, force=True)
    with pytest.raises(FileError, match="cannot be written"):
        convert_log(tmp_path / "log.csv", tmp_path / "log.txt" / "x.hdf5", LogOptions(**OPTIONS))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"episode": None, "terminal": None}, "nothing says where its episodes end"),
        ({"episode": "obs_*"}, "--episode is 'obs_*', 12 columns: name one"),
        ({"observations": "*"}, "column 'u' is taken for --observations and for --actions"),
        ({"next_observations": "obs_0"}, "is taken for --observations and for --next_observations"),
        ({"action_low": (-1.0,)}, "--action_low and --action_high go together"),
        ({"action_low": (1.0,), "action_high": (2.0, 1.0)}, "--action_high 1 in dimension 1"),
        (
            {"action_low": (0.0,) * 3, "action_high": (1.0,)},
            "has 3 numbers for 2 action",
        ),
        ({"action_low": (np.nan,), "action_high": (1.0,)}, "give finite numbers"),
        ({"env": "HopperBulletEnv-v0"}, "--observations are 12 numbers and HopperBulletEnv-v0"),
    ],
)
def test_options_that_do_not_fit(convert, frame, tmp_path, changes, said):
    with pytest.raises(ConfigError) as caught:
        convert(frame, **changes)
    assert said in str(caught.value) and not (tmp_path / "robot.hdf5").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("u,v[0]", ["u", "v[0]"]),
        ("obs_8..obs_11", ["obs_8", "obs_9", "obs_10", "obs_11"]),
        ("obs_9..11, u", ["obs_9", "obs_10", "obs_11", "u"]),
        ("obs_1?", ["obs_10", "obs_11"]),
        ("q[0]..q[2]", ["q[0]", "q[1]", "q[2]"]),
        ("x08..x10", ["x08", "x09", "x10"]),
        ("v[*]", ["v[0]"]),
        ("a, b", ["a, b"]),  # a name that is there stands for itself
        ("obs_3..obs_1", "is no range"),
        ("obs_0..u_3", "is no range"),
        ("obs_10..obs_12", "no column 'obs_12' of 'obs_10..obs_12'"),
        ("obs_1,obs_0..obs_2", "names column 'obs_1' twice"),
        ("abs_1", "no column 'abs_1' .*Did you mean 'obs_1'"),
        ("z*", r"no column 'z\*'"),
        ("u,", "an empty name in '--observations'"),
    ],
)
def test_names_ranges_and_patterns(text, expected):
    names = [*NAMES, "q[0]", "q[1]", "q[2]", "x08", "x09", "x10", "a, b"]
    if isinstance(expected, list):
        assert choose_columns(text, names, "--observations", "log.csv") == expected
        return
    with pytest.raises(ConfigError, match=expected):
        choose_columns(text, names, "--observations", "log.csv")


def test_a_log_given_as_a_dataset_is_answered_with_the_command(tmp_path, frame):
    frame.to_csv(tmp_path / "my log.csv", index=False)
    with pytest.raises(
        DatasetError, match=r"convert '.*my log.csv' '.*my log.hdf5' --obs"
    ) as caught:
        resolve(tmp_path / "my log.csv")
    assert "(it has obs_0, obs_1," in str(caught.value) and "\n" not in str(caught.value)
    for name, said in (
        ("x.npz", "a NumPy archive"),
        ("x.json", "JSON"),
        ("x.pkl", "a pickle"),
        ("x.xlsx", "a spreadsheet"),
    ):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(DatasetError, match=rf"{name}: by its name it is {said}.*Readable are"):
            resolve(tmp_path / name)
    with h5py.File(tmp_path / "x.pkl", "w"):  # whatever it is called
        pass
    assert resolve(tmp_path / "x.pkl").name == "x"
