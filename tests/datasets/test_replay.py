"""Rows that a run takes itself: their episodes, their file, and batches that mix them in."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import DatasetError, FileError
from lit_offrl.datasets.replay import Mixture, Replay
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import Transitions


def add(replay, count, terminated=(), truncated=()):
    """Add rows whose numbers are their own: −1 − i, then what is reached."""
    for _ in range(count):
        i = replay.length
        row = np.full(2, -1.0 - i, np.float32)
        replay.add(row, row[:1] / 10, i, i in terminated, i in truncated, row - 0.5)


@pytest.fixture
def offline():
    """10 rows 0 … 9 in two episodes."""
    columns = {
        "observations": np.arange(20, dtype=np.float32).reshape(10, 2),
        "actions": np.zeros((10, 1), np.float32),
        "rewards": np.zeros(10, np.float32),
        "terminals": np.arange(10) % 5 == 4,
    }
    return OfflineDataset.from_columns(columns)


def joined(offline, replay, ratio, batch_size=8, rewards=lambda values: values):
    view = Transitions()
    mixture = Mixture(replay, ratio, 7, rewards)
    return mixture.join(view.bind(offline), view, offline.spec, batch_size, 3)


def test_episodes_end_as_the_environment_says():
    replay = Replay(9, 2, 1)
    add(replay, 9, terminated={1, 4}, truncated={4, 6})
    assert replay.episodes().tolist() == [[0, 2], [2, 5], [5, 7], [7, 9]]
    assert (replay.ended, replay.begun) == (3, 7)
    rows = replay.rows()
    assert np.flatnonzero(rows["terminals"]).tolist() == [1, 4]
    assert np.flatnonzero(rows["timeouts"]).tolist() == [6, 8]  # the last: cut off here
    assert np.flatnonzero(replay.columns["timeouts"]).tolist() == [6]
    assert replay.returns().tolist() == [1.0, 9.0, 11.0]
    assert replay.returns(2, 6).tolist() == [9.0]


def test_the_file_holds_what_a_checkpoint_counts(tmp_path):
    path = tmp_path / "replay.rows"
    replay = Replay(9, 2, 1)
    add(replay, 4, terminated={2})
    replay.save(path)
    add(replay, 3, truncated={5})
    replay.save(path)
    resumed = Replay(9, 2, 1)
    resumed.load(path, 4)  # of the first checkpoint: the later rows are written over
    assert (resumed.length, resumed.ended, resumed.begun) == (4, 1, 3)
    add(resumed, 5, truncated={7})
    resumed.save(path)
    again = Replay(9, 2, 1)
    again.load(path, 9)
    for name, column in resumed.columns.items():
        np.testing.assert_array_equal(column, again.columns[name])
    assert again.episodes().tolist() == [[0, 3], [3, 8], [8, 9]]
    for kept in (10, 12):
        with pytest.raises(DatasetError, match=r"replay.rows: has (fewer|above).* rows"):
            Replay(11, 2, 1).load(path, kept)
    with pytest.raises(DatasetError, match=r"replay.rows: cannot be read"):
        Replay(9, 2, 1).load(tmp_path / "none" / "replay.rows", 1)


def test_a_full_disk_is_said_and_costs_no_row(tmp_path, monkeypatch):
    path, replay = tmp_path / "replay.rows", Replay(9, 2, 1)
    add(replay, 4)
    replay.save(path)
    add(replay, 2)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FileError, match=r"replay.rows: cannot be written \(No space left"):
            replay.save(path)
    resumed = Replay(9, 2, 1)
    resumed.load(path, 4)
    np.testing.assert_array_equal(resumed.rows()["observations"], replay.rows()["observations"][:4])
    replay.save(path)
    resumed.load(path, 6)


@pytest.mark.parametrize(("ratio", "count"), [(0.75, 6), (0.5, 4), (1.0, 8), (0.0, 0), (0.2, 2)])
def test_batches_have_the_ratio_that_is_asked_for(offline, ratio, count):
    replay = Replay(6, 2, 1)
    add(replay, 5, terminated={1}, truncated={3})
    view, order = joined(offline, replay, ratio)
    seen = []
    for step in range(5):
        batch = view.batch(order.draw(step).rows, order.uniforms(step, 0))
        first = batch.observations[:, 0]
        assert (first >= 0).tolist() == [True] * count + [False] * (8 - count)
        seen += first[:count].tolist()
        own = (-1 - first[count:]).long()
        assert ((own >= 0) & (own < 5)).all()
        assert torch.equal(batch.next_observations[count:, 0], first[count:] - 0.5)
        assert torch.equal(batch.rewards[count:], own.float())
        assert torch.equal(batch.terminals[count:], own == 1)  # no timeout ends the bootstrap
    whole = len(seen) // 10 * 10
    assert sorted(seen[:whole]) == sorted([2.0 * i for i in range(10)] * (whole // 10))


def test_steps_drawn_at_once_are_those_drawn_one_by_one_and_grow_with_the_replay(offline):
    replay = Replay(200, 2, 1)
    add(replay, 5)
    view, order = joined(offline, replay, 0.5)
    each = torch.cat([order.draw(step).rows for step in (3, 4, 5)])
    assert torch.equal(order.draw(3, 3).rows, each)
    many = view.batch(each, order.uniforms(3, 0, 3))
    one = view.batch(each[8:16], order.uniforms(4, 0))
    assert torch.equal(many.observations[8:16], one.observations)
    add(replay, 195)
    assert not torch.equal(order.draw(3).rows, each[:8])
    own = [int(row) for step in range(400) for row in -1 - order.draw(step).rows[4:]]
    counts = np.bincount(own, minlength=200)
    assert counts.sum() == 1600 and counts.max() < 25 and (counts > 0).mean() > 0.97


def test_own_rewards_are_changed_as_those_of_the_data(offline):
    replay = Replay(5, 2, 1)
    add(replay, 5)
    view, order = joined(offline, replay, 0.0, rewards=lambda values: values - 1)
    batch = view.batch(order.draw(0).rows, order.uniforms(0, 0))
    assert torch.equal(batch.rewards, -2 - batch.observations[:, 0])
    assert replay.rows()["rewards"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]  # the environment's
