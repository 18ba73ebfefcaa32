from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from lit_offrl.common.errors import DatasetError
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset


def test_episodes_end_at_terminals_timeouts_and_the_end_of_the_rows(columns_of):
    data = OfflineDataset.from_columns(columns_of([3, 1, 4, 2], ["terminal", "timeout", "x", ""]))
    # The third episode has no end of its own, so it runs on into the fourth.
    assert data.episodes.tolist() == [[0, 3], [3, 4], [4, 10]]
    assert data.episode_terminated.tolist() == [True, False, False]
    assert data.cut_off and data.columns["timeouts"].tolist()[-1]
    assert data.episode_lengths.tolist() == [3, 1, 6]
    assert data.episode_returns().tolist() == [3, 1000, 4 * 2000 + 6 + 2 * 3000 + 1]


def test_a_row_that_is_both_ends_is_terminal(columns_of):
    columns = columns_of([2, 2], ["terminal", "timeout"])
    columns["timeouts"][1] = True
    data = OfflineDataset.from_columns(columns)
    assert data.columns["terminals"].tolist() == [False, True, False, False]
    assert data.columns["timeouts"].tolist() == [False, False, False, True]
    assert not data.cut_off


@pytest.mark.parametrize("absent", ["terminals", "timeouts"])
def test_one_of_the_two_ends_may_be_absent(columns_of, absent):
    columns = columns_of([2, 3], ["timeout" if absent == "terminals" else "terminal"] * 2)
    del columns[absent]
    data = OfflineDataset.from_columns(columns)
    assert data.episodes.tolist() == [[0, 2], [2, 5]]
    assert not data.columns[absent].any()
    assert absent in data.spec.columns


def test_columns_are_contiguous_float32_read_only_and_the_callers_stay_as_they_are(columns_of):
    columns = columns_of([3, 3], ["terminal", "timeout"])
    columns["observations"] = np.asfortranarray(columns["observations"].astype(np.float64))
    columns["rewards"] = columns["rewards"].astype(np.int16)[:, None]
    data = OfflineDataset.from_columns(columns)
    for name, values in data.columns.items():
        assert values.flags.c_contiguous and not values.flags.writeable, name
        assert values.dtype == (bool if name in ("terminals", "timeouts") else np.float32), name
    assert data.columns["rewards"].shape == (6,)
    with pytest.raises(ValueError, match="read-only"):
        data.columns["actions"][0] = 1
    with pytest.raises(TypeError):
        data.columns["actions"] = columns["actions"]
    columns["actions"][0] = 1
    columns["terminals"][0] = True


def test_a_clean_column_is_not_copied(columns_of):
    columns = columns_of([4], ["timeout"])
    data = OfflineDataset.from_columns(columns)
    assert np.shares_memory(data.columns["observations"], columns["observations"])


def test_unlabelled_rewards_count_as_nothing(columns_of):
    columns = columns_of([2, 2], ["terminal", "timeout"])
    columns["labelled"] = np.array([1, 0, 1, 1])
    data = OfflineDataset.from_columns(columns)
    assert data.columns["reward_mask"].tolist() == [True, False, True, True]
    assert data.episode_returns().tolist() == [0, 2001]


def test_take_episodes_keeps_order_ends_and_rows(columns_of):
    data = OfflineDataset.from_columns(columns_of([3, 1, 2], ["terminal", "timeout", ""]))
    taken = data.take_episodes([2, 0])
    assert taken.columns["observations"].tolist() == [[2, 0], [2, 1], [0, 0], [0, 1], [0, 2]]
    # The episode that the file cut off must not run on into the one that follows it now.
    assert taken.episodes.tolist() == [[0, 2], [2, 5]]
    assert taken.episode_terminated.tolist() == [False, True]
    for wrong in ([], [3], [-1]):
        with pytest.raises(DatasetError, match="from 0 to 2"):
            data.take_episodes(wrong)


def test_a_missing_column_names_the_nearest(columns_of):
    data = OfflineDataset.from_columns(columns_of([3], ["terminal"]), origin="a.hdf5")
    with pytest.raises(DatasetError, match=r"a.hdf5: .*'reward'.*Did you mean 'rewards'"):
        data.column("reward")


def test_sizes_other_than_the_specs_are_refused(columns_of):
    spec = DatasetSpec("x", observation_dim=3, action_dim=2, origin="x.hdf5")
    with pytest.raises(DatasetError, match=r"x.hdf5: column 'observations' has 2 .* where 3"):
        OfflineDataset(columns_of([3], ["terminal"]), spec)


def test_spec_survives_json_and_names_unknown_fields(columns_of):
    columns = columns_of([3], ["terminal"])
    spec = OfflineDataset.from_columns(columns, env_id="E-v0", action_low=(-1.0, -1.0)).spec
    assert DatasetSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(DatasetError, match=r"'envid'.*Did you mean 'env_id'"):
        DatasetSpec.from_dict({**spec.to_dict(), "envid": "E-v0"})
    with pytest.raises(DatasetError, match="observation_dim"):
        DatasetSpec.from_dict({"name": "x"})


def test_a_dataset_can_be_sent_to_another_process(columns_of):
    data = OfflineDataset.from_columns(columns_of([2, 2], ["terminal", ""]), provenance={"a": "b"})
    sent = pickle.loads(pickle.dumps(data))
    assert sent.spec == data.spec and dict(sent.provenance) == {"a": "b"}
    assert sent.episodes.tolist() == data.episodes.tolist()
    for name, values in data.columns.items():
        np.testing.assert_array_equal(sent.columns[name], values)
