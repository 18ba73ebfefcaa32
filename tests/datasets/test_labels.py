from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_offrl.common.errors import DatasetError, FileError
from lit_offrl.datasets.catalog import resolve
from lit_offrl.datasets.hdf5 import read_hdf5, write_hdf5
from lit_offrl.datasets.labels import critic_hash, labels_path, load_labels, save_labels
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import AdvantageLabelled, Transitions

CRITIC = "c" * 64


@pytest.fixture
def data(columns_of, tmp_path):
    path = tmp_path / "small.hdf5"
    write_hdf5(path, columns_of([3, 2, 4], ["terminal", "timeout", "timeout"], following=False), {})
    return read_hdf5(path)


def labels_of(data) -> np.ndarray:
    return data.columns["rewards"] + np.float32(0.5)


def test_labels_come_back_as_stored_and_lie_beside_the_data(data):
    path = labels_path(data.spec, CRITIC)
    assert str(path) == f"{data.spec.origin}.cccccccccccc.npz"
    save_labels(path, labels_of(data).astype(np.float64), data, CRITIC)
    assert [p.name for p in path.parent.iterdir()] == ["small.hdf5", path.name]  # no left-overs
    for critic in (None, CRITIC):
        found = load_labels(path, data, critic)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, labels_of(data))


def test_labels_of_bundled_data_go_to_the_data_directory(data_directory):
    data = resolve("hopper-bullet-bundled").read()
    path = labels_path(data.spec, CRITIC)
    assert path == data_directory / "hopper-bullet-bundled.hdf5.cccccccccccc.npz"


def test_rows_of_no_single_file_have_no_place_for_labels_beside_it(data):
    spec = replace(data.spec, origin="minari:made/box-v0 (/data/made/box-v0)")
    with pytest.raises(DatasetError, match=r"minari:made/box-v0 .* name their file yourself"):
        labels_path(spec, CRITIC)


def test_labels_that_cannot_be_written_are_one_line(data):
    path = Path(data.spec.origin) / "labels.npz"  # in a file, not in a folder
    with pytest.raises(FileError, match=r"labels\.npz: cannot be written"):
        save_labels(path, labels_of(data), data, CRITIC)


def test_damaged_compressed_labels_are_refused(data):
    path = labels_path(data.spec, CRITIC)
    np.savez_compressed(path, advantages=labels_of(data), dataset_sha256="d", critic_hash="c")
    whole = bytearray(path.read_bytes())
    for at in range(40, 120):  # within the first array's stream
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with pytest.raises(DatasetError) as error:
            load_labels(path, data)
        assert "\n" not in str(error.value)


def test_a_batch_is_a_transition_with_its_advantage(data):
    path = labels_path(data.spec, CRITIC)
    save_labels(path, labels_of(data), data, CRITIC)
    bound, steps = AdvantageLabelled(str(path)).bind(data), Transitions().bind(data)
    assert torch.equal(bound.rows, steps.rows) and len(bound.rows) == 7
    batch = bound.batch(bound.rows)
    for one, other in zip(batch[:5], steps.batch(steps.rows)[:5], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(batch.advantages, batch.rewards + 0.5)
    assert torch.equal(batch.rows, bound.rows)


def test_labels_stay_with_their_rows_when_episodes_are_taken(data):
    path = labels_path(data.spec, CRITIC)
    save_labels(path, labels_of(data), data, CRITIC)
    view = AdvantageLabelled(str(path), critic=CRITIC)
    part = view.prepare(data).take_episodes([2, 0])
    batch = (bound := view.bind(part)).batch(bound.rows)
    assert torch.equal(batch.advantages, batch.rewards + 0.5)
    with pytest.raises(DatasetError, match=r"shape \(9,\), where .* shape \(7,\)"):
        view.bind(data.take_episodes([2, 0]))  # not prepared, and not whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset_sha256": "d" * 64}, "labels of another dataset"),
        ({"critic_hash": "d" * 64}, "labels of another critic"),
        ({"advantages": np.zeros(8, np.float32)}, r"of shape \(8,\)"),
        ({"advantages": np.zeros((9, 1), np.float32)}, r"of shape \(9, 1\)"),
        ({"advantages": np.array(["x"] * 9)}, "numbers of shape"),
        ({"advantages": np.array([0.0] * 4 + [np.nan] * 5)}, "nan in row 4 .5 bad values"),
        ({"advantages": np.array([0.0] * 8 + [1e300])}, "inf in row 8"),
        ({"advantages": np.array([None] * 9)}, "is no file of labels"),
        ({"advantages": None}, "is no file of labels"),
    ],
)
def test_wrong_labels_are_refused_in_one_line(data, change, message):
    path = labels_path(data.spec, CRITIC)
    good = {
        "advantages": labels_of(data),
        "dataset_sha256": data.spec.sha256,
        "critic_hash": CRITIC,
    }
    np.savez(path, **{k: v for k, v in (good | change).items() if v is not None})
    with pytest.raises(DatasetError, match=message) as error:
        AdvantageLabelled(str(path), critic=CRITIC).bind(data)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("broken", [b"", b"PK\x03\x04", b"nothing of the kind", None])
def test_broken_and_missing_files_are_refused_in_one_line(data, broken):
    path = labels_path(data.spec, CRITIC)
    if broken is not None:
        path.write_bytes(broken)
    said = "no such file of labels" if broken is None else "is no file of labels"
    with pytest.raises(DatasetError, match=said) as error:
        load_labels(path, data)
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_refused(data):
    path = labels_path(data.spec, CRITIC)
    save_labels(path, labels_of(data), data, CRITIC)
    whole = path.read_bytes()
    for size in range(1, len(whole), 37):
        path.write_bytes(whole[:size])
        with pytest.raises(DatasetError, match="is no file of labels"):
            load_labels(path, data)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(3), r"shape \(3,\)"),
        (np.full(9, np.inf), "inf in row 0"),
        (np.ones(9, bool), "bool"),
    ],
)
def test_wrong_labels_are_not_written(data, labels, message):
    path = labels_path(data.spec, CRITIC)
    with pytest.raises(DatasetError, match=message):
        save_labels(path, labels, data, CRITIC)
    assert not path.exists()


def test_data_without_a_file_have_no_labels(columns_of, tmp_path):
    data = OfflineDataset.from_columns(columns_of([3], ["timeout"]))
    for use in (
        lambda p: save_labels(p, np.zeros(3), data, CRITIC),
        lambda p: load_labels(p, data),
    ):
        with pytest.raises(DatasetError, match="has no sha256"):
            use(tmp_path / "labels.npz")


def test_a_critics_hash_tells_values_names_and_types_apart():
    state = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2)}
    one = critic_hash(state)
    assert len(one) == 64
    assert one == critic_hash({k: state[k].clone() for k in ("bias", "weight")})
    others = [
        state | {"bias": torch.tensor([0.0, 1e-30])},
        state | {"weight": state["weight"].view(3, 2)},
        state | {"weight": state["weight"].bfloat16()},
        {"weights": state["weight"], "bias": state["bias"]},
        state | {"steps": torch.tensor(0)},
    ]
    assert len({one, *map(critic_hash, others)}) == 6


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    layout=st.lists(
        st.tuples(st.integers(1, 6), st.sampled_from(["terminal", "timeout"])),
        min_size=1,
        max_size=6,
    ),
    cut_off=st.booleans(),
    following=st.booleans(),
)
def test_no_labelled_step_crosses_the_end_of_an_episode(
    columns_of, tmp_path_factory, layout, cut_off, following
):
    lengths, ends = [length for length, _ in layout], [end for _, end in layout]
    if cut_off:
        ends[-1] = ""
    columns = columns_of(lengths, ends, following=following)
    known = following or any(
        end == "terminal" or n > 1 for n, end in zip(lengths, ends, strict=True)
    )
    if sum(lengths) < 2 or not known:
        return
    data = OfflineDataset.from_columns(columns, sha256="e" * 64)
    path = tmp_path_factory.mktemp("labels") / "labels.npz"
    save_labels(path, data.columns["rewards"], data, CRITIC)
    batch = (bound := AdvantageLabelled(str(path)).bind(data)).batch(bound.rows)
    assert torch.equal(batch.observations[:, 0], batch.next_observations[:, 0])
    episode, step = batch.observations.long().T
    last = step + 1 == torch.tensor(data.episode_lengths)[episode]
    assert torch.equal(batch.terminals, last & torch.tensor(data.episode_terminated)[episode])
    assert torch.equal(batch.advantages, batch.rewards)
