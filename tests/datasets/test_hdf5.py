from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.datasets.hdf5 import read_hdf5, read_header, write_hdf5
from lit_offrl.datasets.pybullet import to_transitions


def test_the_shifted_layout_gives_the_hand_made_transitions(tmp_path, raw, shifted):
    data = read_hdf5(raw(tmp_path / "x.hdf5", shifted))
    assert data.provenance["lit_offrl_layout"] == "pybullet"
    found = [
        (o[0], round(float(a[0]), 1), r, n[0], bool(d), bool(t))
        for o, a, r, n, d, t in zip(
            *(data.columns[k] for k in ("observations", "actions", "rewards")),
            *(data.columns[k] for k in ("next_observations", "terminals", "timeouts")),
            strict=True,
        )
    ]
    assert found == [
        (0, 0.1, 7, 1, False, False),
        (1, 0.2, 8, 2, False, False),
        (2, 0.3, 9, 3, True, False),
        (10, 0.4, 5, 11, False, False),
        (11, 0.5, 6, 12, True, False),
    ]  # the last row's reward is not in the file, so it makes no transition
    assert data.episodes.tolist() == [[0, 3], [3, 5]]
    assert not data.cut_off


def test_a_file_that_ends_within_an_episode_keeps_its_whole_transitions(shifted):
    shifted = {name: values[:6] for name, values in shifted.items()}
    made = to_transitions(shifted, 1000, "x")
    assert made["observations"][:, 0].tolist() == [0, 1, 2, 10]
    assert made["rewards"].tolist() == [7, 8, 9, 5]
    assert made["terminals"].tolist() == [False, False, True, False]


@pytest.mark.parametrize(("limit", "timeout"), [(3, [True, False]), (2, [False, True])])
def test_a_terminal_at_exactly_the_limit_is_a_timeout(shifted, limit, timeout):
    made = to_transitions(shifted, limit, "x")
    assert made["timeouts"][[2, 4]].tolist() == timeout
    assert made["terminals"][[2, 4]].tolist() == [not t for t in timeout]
    assert made["timeouts"].sum() == 1
    assert made["next_observations"][2].tolist() == [3]  # the bootstrap needs it


def test_the_limit_is_1000_steps_unless_the_file_says_otherwise(tmp_path, raw):
    rows = 1001 + 1000
    ends = np.zeros((rows, 1), np.float32)
    ends[[1000, 2000]] = 1  # 1,000 transitions, then 999
    columns = {
        "observations": np.arange(rows, dtype=np.float32)[:, None],
        "actions": np.where(ends == 1, 0, 0.5).astype(np.float32),
        "rewards": np.ones((rows, 1), np.float32),
        "terminals": ends,
    }
    data = read_hdf5(raw(tmp_path / "x.hdf5", columns))
    assert data.episode_lengths.tolist() == [1000, 999]
    assert data.episode_terminated.tolist() == [False, True]
    data = read_hdf5(raw(tmp_path / "y.hdf5", columns, max_episode_steps=999))
    assert data.episode_terminated.tolist() == [True, False]


def test_the_format_is_told_by_layout_and_may_be_overridden(tmp_path, raw, shifted):
    path = raw(tmp_path / "x.hdf5", shifted)
    assert len(read_hdf5(path, format="d4rl")) == 8
    assert len(read_hdf5(raw(tmp_path / "a.hdf5", shifted, lit_offrl_layout="d4rl"))) == 8
    with_timeouts = {**shifted, "timeouts": np.zeros((8, 1), np.float32)}
    assert len(read_hdf5(raw(tmp_path / "b.hdf5", with_timeouts))) == 8
    acting = {**shifted, "actions": shifted["actions"] + 1}
    assert len(read_hdf5(raw(tmp_path / "c.hdf5", acting))) == 8
    flat = {**shifted, "terminals": shifted["terminals"][:, 0]}
    assert len(read_hdf5(raw(tmp_path / "d.hdf5", flat))) == 8
    with pytest.raises(ConfigError, match=r"'pybulet'.*Did you mean 'pybullet'"):
        read_hdf5(path, format="pybulet")
    del shifted["actions"]
    mute = raw(tmp_path / "e.hdf5", shifted)
    with pytest.raises(DatasetError, match="format 'd4rl' or 'pybullet'"):
        read_hdf5(mute, require=["rewards"])
    assert len(read_hdf5(mute, require=["rewards"], format="pybullet")) == 5


def test_what_is_written_is_read_back(tmp_path, columns_of):
    columns = columns_of([3, 2], ["terminal", "timeout"])
    columns["policy"] = np.arange(5)
    columns["goals"] = np.ones((5, 2), np.float32)
    columns["reward_mask"] = np.array([True, True, False, True, True])
    attributes = {
        "env_id": "Some-v0",
        "max_episode_steps": 7,
        "action_low": (-2.0, -2.0),
        "action_high": np.array([2.0, 3.0]),
        "seed": 3,
        "note": None,
        "versions": {"a": 1},
    }
    path = write_hdf5(tmp_path / "deep" / "x.hdf5", columns, attributes)
    data = read_hdf5(path)
    for name, values in columns.items():
        np.testing.assert_array_equal(data.columns[name], values)
    assert data.spec.env_id == "Some-v0" and data.spec.max_episode_steps == 7
    assert data.spec.action_low == (-2.0, -2.0) and data.spec.action_high == (2.0, 3.0)
    assert data.provenance["seed"] == "3" and data.provenance["versions"] == "{'a': 1}"
    assert "note" not in data.provenance
    assert [entry.name for entry in path.parent.iterdir()] == ["x.hdf5"]


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path, columns_of):
    """In a process of its own, which may write files of 10,000 bytes and no more."""
    path = write_hdf5(tmp_path / "x.hdf5", columns_of([3, 2], ["terminal", "timeout"]))
    before = path.read_bytes()
    code = f"""
import resource
import numpy as np
from lit_offrl.datasets.hdf5 import write_hdf5
noise = np.random.default_rng(0).normal(size=(9000, 3))
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
write_hdf5({str(path)!r}, {{"observations": noise, "terminals": np.zeros(9000)}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.endswith(f"{path}: cannot be written (File too large): choose another place.")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.hdf5"]


@pytest.mark.parametrize("layout", ["d4rl", "pybullet"])
def test_the_header_says_what_the_whole_file_says(tmp_path, raw, shifted, columns_of, layout):
    columns = columns_of([3, 2], ["terminal", "timeout"]) if layout == "d4rl" else shifted
    path = raw(tmp_path / "x.hdf5", columns, env_id="E-v0", ref_min_score=1.5, ref_max_score=2)
    data, header = read_hdf5(path), read_header(path)
    assert replace(data.spec, sha256=None, handling=()) == header
    assert len(data.spec.sha256) == 64
    assert set(header.columns) == set(data.columns)
    assert (header.ref_min_score, header.ref_max_score) == (1.5, 2)
    assert header.ref_source == "the file's attributes"


def bullet_columns(observations: int, actions: int) -> dict[str, np.ndarray]:
    return {
        "observations": np.zeros((4, observations), np.float32),
        "actions": np.zeros((4, actions), np.float32),
        "rewards": np.zeros(4, np.float32),
        "timeouts": np.array([False, False, False, True]),
    }


@pytest.mark.parametrize(
    ("name", "attribute", "env_id"),
    [
        ("hopper-bullet-mixed.hdf5", None, "HopperBulletEnv-v0"),
        ("my_bullet-hopper_medium.hdf5", None, None),
        ("bullet-hopper_medium.hdf5", None, "HopperBulletEnv-v0"),
        ("walker2d-bullet-mixed.hdf5", None, None),  # whose sizes are others
        ("x.hdf5", "HopperBulletEnv-v0", "HopperBulletEnv-v0"),
        ("x.hdf5", "antmaze-v2 (regenerated)", "antmaze-v2"),
        ("x.hdf5", None, None),
    ],
)
def test_the_environment_is_told_by_attribute_then_name(tmp_path, raw, name, attribute, env_id):
    attributes = {} if attribute is None else {"env_id": attribute}
    path = raw(tmp_path / name, bullet_columns(15, 3), **attributes)
    spec = read_header(path)
    assert spec.env_id == env_id
    known = env_id == "HopperBulletEnv-v0"
    assert spec.max_episode_steps == (1000 if known else None)
    assert spec.action_high == ((1.0, 1.0, 1.0) if known else None)
    assert spec.ref_max_score == (1441.8059623430963 if known else None)


def test_the_environment_may_be_given_but_must_fit(tmp_path, raw):
    path = raw(tmp_path / "x.hdf5", bullet_columns(15, 3))
    assert read_header(path, env_id="HopperBulletEnv-v0").ref_min_score == 20.058972
    with pytest.raises(DatasetError, match=r"x.hdf5: column 'observations' has 15 .* 28"):
        read_header(path, env_id="AntBulletEnv-v0")


def test_what_is_not_asked_for_may_be_absent(tmp_path, raw, columns_of):
    columns = columns_of([3, 2], ["terminal", "timeout"], actions=False)
    del columns["rewards"]
    path = raw(tmp_path / "x.hdf5", columns)
    data = read_hdf5(path, require=())
    assert set(data.columns) == {"observations", "next_observations", "terminals", "timeouts"}
    assert data.spec.action_dim == 0 and data.spec.action_low is None
    for column in ("rewards", "actions"):
        with pytest.raises(DatasetError, match=f"x.hdf5: has no column '{column}'"):
            read_hdf5(path, require=[column])
        with pytest.raises(DatasetError, match=f"x.hdf5: has no column '{column}'"):
            read_header(path, require=[column])


def test_goals_may_stand_under_infos(tmp_path, raw, columns_of):
    columns = columns_of([3], ["timeout"]) | {"infos/goal": np.ones((3, 2)), "infos/qpos": "text"}
    assert read_hdf5(raw(tmp_path / "x.hdf5", columns)).columns["goals"].shape == (3, 2)


def test_bounds_that_are_a_row_of_a_matrix_are_read(tmp_path, raw):
    columns = {
        "observations": np.zeros((4, 3), np.float32),
        "actions": np.zeros((4, 2), np.float32),
        "rewards": np.zeros(4, np.float32),
        "timeouts": np.array([False, False, False, True]),
    }
    path = raw(tmp_path / "x.hdf5", columns, action_low=[[-2.0, -7.0]], action_high=[[2.0], [7.0]])
    spec = read_hdf5(path).spec
    assert (spec.action_low, spec.action_high) == ((-2.0, -7.0), (2.0, 7.0))
