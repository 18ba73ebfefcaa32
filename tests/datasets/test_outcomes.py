"""``Outcomes``: what a timeout means, which episodes have returns, and who acted."""

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.datasets.hdf5 import read_hdf5, write_hdf5
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset
from lit_offrl.datasets.views import Outcomes, Transitions

SPEC = DatasetSpec("made-up", observation_dim=2, action_dim=2)


def dataset(columns_of, lengths, ends, **columns):
    """Episodes whose rewards are −1 a step and 0 at a terminal."""
    made = columns_of(lengths, ends)
    made["rewards"] = made["terminals"].astype(np.float32) - 1.0
    return OfflineDataset(made | columns, SPEC)


def test_a_failure_is_a_true_end_and_a_success_stays_one(columns_of):
    found = dataset(columns_of, [3, 2], ["terminal", "timeout"])
    rewards = found.columns["rewards"].copy()
    bound = Outcomes(returns=1.0, failure=-7.0).bind(found)
    batch = bound.batch(bound.rows)
    assert batch.returns.tolist() == [-2.0, -1.0, 0.0, -9.0, -8.0] == bound.returns().tolist()
    assert batch.rewards.tolist() == [-1.0, -1.0, 0.0, -1.0, -8.0]
    assert batch.terminals.tolist() == [False, False, True, False, True]
    # the dataset itself, of which scores are made, is as it was
    assert np.array_equal(found.columns["rewards"], rewards)
    assert found.episode_terminated.tolist() == [True, False]

    unsaid = Outcomes(returns=1.0).bind(found)
    batch = unsaid.batch(unsaid.rows)
    assert batch.returns.tolist() == [-2.0, -1.0, 0.0, -2.0, -1.0]
    assert batch.terminals.tolist() == [False, False, True, False, False]


def test_sums_of_n_steps_end_in_a_failure_too(columns_of):
    found = dataset(columns_of, [3, 3], ["terminal", "timeout"])
    kept = Transitions(n_step=3, gamma=0.5).bind(found)
    assert kept.rows.tolist() == [0, 1, 2, 3]  # what a timeout cuts off is left out
    bound = Outcomes(n_step=3, gamma=0.5, failure=-8.0).bind(found)
    batch = bound.batch(bound.rows)
    assert bound.rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.rewards.tolist() == [-1.5, -1.0, 0.0, -1.5 - 2.25, -1.0 - 4.5, -9.0]
    assert batch.terminals.all() and batch.discounts.tolist() == [0.125] * 6


def test_an_episode_that_is_not_over_has_no_return(columns_of):
    found = dataset(columns_of, [3, 2, 4], ["terminal", "timeout", ""])
    assert (
        Outcomes().bind(found).rows.tolist()
        == [*range(9)]
        == Transitions().bind(found).rows.tolist()
    )
    for view in (Outcomes(returns=0.9), Outcomes(failure=-1.0)):
        bound = view.bind(found)
        assert bound.rows.tolist() == [0, 1, 2, 3, 4]
        assert not bound.batch(bound.rows).terminals[4] or view.failure is not None
    with pytest.raises(DatasetError, match="no episode of it has ended"):
        Outcomes(returns=0.9).bind(dataset(columns_of, [4], [""]))


def test_without_options_it_is_transitions(columns_of):
    found = dataset(columns_of, [5, 4], ["terminal", "timeout"])
    for options in ({}, {"chunk": 2, "n_step": 3}, {"returns": 0.9}):
        one, other = Transitions(**options).bind(found), Outcomes(**options).bind(found)
        assert one.rows.tolist() == other.rows.tolist()
        theirs, ours = one.batch(one.rows), other.batch(other.rows)
        assert not ours.corrected.any()
        for name in set(theirs._fields) & set(ours._fields):
            a, b = getattr(theirs, name), getattr(ours, name)
            assert (a is None and b is None) or torch.equal(a, b), name


def test_a_humans_corrections_come_along_from_the_file(columns_of, tmp_path):
    columns = columns_of([3, 2], ["terminal", "timeout"])
    columns["interventions"] = np.array([0, 1, 0, 0, 1], np.uint8)
    columns["actions"] = np.tanh(columns["actions"])
    write_hdf5(tmp_path / "own.hdf5", columns, {"action_low": [-1, -1], "action_high": [1, 1]})
    found = read_hdf5(tmp_path / "own.hdf5")
    assert found.columns["interventions"].dtype == np.bool_
    bound = Outcomes().bind(found)
    assert bound.batch(bound.rows).corrected.tolist() == [False, True, False, False, True]


def test_a_failures_reward_is_finite():
    with pytest.raises(ConfigError, match="failure is inf"):
        Outcomes(failure=float("inf"))
