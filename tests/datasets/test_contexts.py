from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import Contexts

LAYOUTS = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from(["terminal", "timeout"])), min_size=1, max_size=6
).filter(lambda layout: sum(length for length, _ in layout) > 1)


# ---- made by hand: observation (episode, step), reward 1000·episode + step -----------------------


def test_contexts_end_with_their_episode_and_know_what_it_still_earns(columns_of):
    columns = columns_of([4, 2], ["timeout", "terminal"], following=False)
    bound = Contexts(3).bind(OfflineDataset.from_columns(columns))
    batch = bound.batch(bound.rows)
    assert bound.rows.tolist() == [0, 1, 2, 3, 4, 5]  # the last row of a timeout has an action, too
    assert batch.mask.tolist() == [
        *([[1, 1, 1]] * 2),
        *([[1, 1, 0], [1, 0, 0]] * 2),
    ]
    assert batch.observations[2].tolist() == [[0, 2], [0, 3], [0, 0]]
    assert batch.observations[4].tolist() == [[1, 0], [1, 1], [0, 0]]
    assert batch.actions[1].tolist() == [[0, -1], [0, -2], [0, -3]]
    assert batch.returns_to_go[0].tolist() == [6, 6, 5]
    assert batch.returns_to_go[3].tolist() == [3, 0, 0]
    assert batch.returns_to_go[4].tolist() == [2001, 1001, 0]
    assert batch.timesteps.tolist()[1:5] == [[1, 2, 3], [2, 3, 0], [3, 0, 0], [0, 1, 0]]
    assert bound.best_return() == 2001


@settings(max_examples=40, deadline=None, derandomize=True)
@given(layout=LAYOUTS, length=st.integers(1, 7), following=st.booleans())
def test_no_context_crosses_the_end_of_an_episode(columns_of, layout, length, following):
    lengths, ends = [n for n, _ in layout], [end for _, end in layout]
    data = OfflineDataset.from_columns(columns_of(lengths, ends, following=following))
    bound = Contexts(length).bind(data)
    batch = bound.batch(bound.rows)
    assert len(bound.rows) == sum(lengths)
    of_episode = np.repeat(np.arange(len(lengths)), lengths)
    step = np.concatenate([np.arange(n) for n in lengths])
    for row in range(sum(lengths)):
        episode, first = of_episode[row], step[row]
        count = min(length, lengths[episode] - first)
        assert batch.mask[row].tolist() == [i < count for i in range(length)]
        seen = [[episode, first + i] if i < count else [0, 0] for i in range(length)]
        assert batch.observations[row].tolist() == seen
        assert batch.timesteps[row].tolist() == [at for _, at in seen]
        left = [sum(1000 * episode + s for s in range(first + i, lengths[episode]))
                if i < count else 0 for i in range(length)]  # fmt: skip
        assert batch.returns_to_go[row].tolist() == left


def test_what_contexts_cannot_be_made_of(columns_of):
    with pytest.raises(ConfigError, match="length is 0: give at least 1"):
        Contexts(0)
    columns = columns_of([3], ["timeout"])
    del columns["rewards"]
    with pytest.raises(DatasetError, match="Contexts need the reward of every row"):
        Contexts(2).bind(OfflineDataset.from_columns(columns))


def test_contexts_of_some_rows_in_any_order(columns_of):
    bound = Contexts(2).bind(OfflineDataset.from_columns(columns_of([3, 3], ["timeout"] * 2)))
    whole, index = bound.batch(bound.rows), torch.tensor([5, 0, 5, 2])
    for part, some in zip(whole, bound.batch(index), strict=True):
        assert torch.equal(part[index], some)
