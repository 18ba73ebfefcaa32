from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import Snippets

relaxed = settings(max_examples=120, deadline=None, derandomize=True)


def everything(view, columns):
    bound = view.bind(OfflineDataset.from_columns(columns))
    return bound.batch(bound.rows)


# ---- snippets made by hand: observation (episode, step), reward 1000·episode + step ------


def test_full_snippets_of_an_episode_that_times_out(columns_of):
    """5 rows, H = 3, next observations known: snippets at 0, 1, 2; the last ends at the timeout."""
    batch = everything(Snippets(3, gamma=0.5), columns_of([5], ["timeout"]))
    assert batch.rows.tolist() == [0, 1, 2]
    assert batch.observations[2].tolist() == [[0, 2], [0, 3], [0, 4]]
    assert batch.actions[0].tolist() == [[0, 0], [0, -1], [0, -2]]
    assert batch.next_observations.tolist() == [[0, 3], [0, 4], [0, 5]]
    assert batch.returns.tolist() == [0 + 0.5 + 0.5, 1 + 1 + 0.75, 2 + 1.5 + 1]
    assert batch.discounts.tolist() == [0.125] * 3
    assert batch.mask.all() and batch.mask.shape == (3, 3)
    assert not batch.terminals.any()  # a timeout does not stop the bootstrap


def test_a_snippet_whose_next_state_is_not_recorded_is_left_out(columns_of):
    batch = everything(Snippets(3), columns_of([5], ["timeout"], following=False))
    assert batch.rows.tolist() == [0, 1]
    assert batch.next_observations.tolist() == [[0, 3], [0, 4]]
    columns = columns_of([5], ["timeout"], following=False)
    batch = everything(Snippets(3, gamma=1, partial="all"), columns)
    assert batch.rows.tolist() == [0, 1, 2, 3]
    assert batch.mask.sum(1).tolist() == [3, 3, 2, 1]  # row 4 is known as a next state alone
    assert batch.next_observations[2:].tolist() == [[0, 4], [0, 4]]
    assert batch.returns.tolist() == [3, 6, 5, 3]


@pytest.mark.parametrize("following", [True, False])
def test_snippets_that_a_terminal_cuts_short_are_padded_and_bootstrap_nothing(
    columns_of, following
):
    columns = columns_of([4, 2], ["terminal", "timeout"], following=following)
    batch = everything(Snippets(3, gamma=0.5), columns)
    assert batch.rows.tolist() == [0, 1, 2, 3]  # of the second episode no snippet is full
    assert batch.terminals.tolist() == [False, True, True, True]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert batch.observations[2].tolist() == [[0, 2], [0, 3], [0, 0]]
    assert batch.actions[3].tolist() == [[0, -3], [0, 0], [0, 0]]
    assert batch.returns.tolist() == [1, 1 + 1 + 0.75, 2 + 1.5, 3]
    assert batch.discounts.tolist() == [0.125, 0.125, 0.25, 0.5]
    last = [0, 4] if following else [0, 3]
    assert batch.next_observations.tolist() == [[0, 3], last, last, last]


def test_full_snippets_alone(columns_of):
    batch = everything(Snippets(3, partial="none"), columns_of([4, 3], ["terminal", "timeout"]))
    assert batch.rows.tolist() == [0, 1, 4]
    assert batch.terminals.tolist() == [False, True, False] and batch.mask.all()


def test_all_snippets_keep_the_real_steps_discount(columns_of):
    view = Snippets(4, gamma=0.5, partial="all")
    batch = everything(view, columns_of([2, 3], ["timeout", "terminal"]))
    assert batch.rows.tolist() == [0, 1, 2, 3, 4]
    assert batch.discounts.tolist() == [0.25, 0.5, 0.125, 0.25, 0.5]
    assert batch.terminals.tolist() == [False, False, True, True, True]
    assert batch.next_observations.tolist() == [[0, 2], [0, 2], [1, 3], [1, 3], [1, 3]]


def test_a_snippet_of_one_step_is_a_transition(columns_of):
    batch = everything(Snippets(1, gamma=0.9), columns_of([1, 2], ["terminal", "timeout"]))
    assert batch.rows.tolist() == [0, 1, 2]
    assert batch.returns.tolist() == [0, 1000, 1001]
    assert batch.terminals.tolist() == [True, False, False]
    assert batch.discounts.tolist() == pytest.approx([0.9] * 3)


# ---- any layout, beside a slow loop -------------------------------------------------------


def slow(data, view):
    """Snippets by a loop over episodes and rows: (row, rows of the snippet, next, terminal)."""
    following = "next_observations" in data.columns
    for (start, stop), ended in zip(data.episodes, data.episode_terminated, strict=True):
        for row in range(start, stop):
            taken = list(range(row, min(row + view.horizon, stop)))
            if not following and not ended and taken[-1] == stop - 1:
                taken.pop()  # what follows the episode's last row is unknown
            at_end = bool(taken) and ended and taken[-1] == stop - 1
            short = len(taken) < view.horizon
            kept = {"none": not short, "all": True, "terminal": not short or ended}
            if not taken or not kept[view.partial]:
                continue
            last = taken[-1]
            if following:
                after = data.columns["next_observations"][last]
            else:
                after = data.columns["observations"][last if at_end else last + 1]
            yield row, taken, after, at_end


@relaxed
@given(
    layout=st.lists(
        st.tuples(st.integers(1, 9), st.sampled_from(["terminal", "timeout"])),
        min_size=1,
        max_size=8,
    ),
    cut_off=st.booleans(),
    following=st.booleans(),
    horizon=st.integers(1, 12),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    partial=st.sampled_from(["terminal", "all", "none"]),
)
def test_snippets_are_those_of_a_slow_loop(
    columns_of, layout, cut_off, following, horizon, gamma, partial
):
    lengths, ends = [length for length, _ in layout], [end for _, end in layout]
    if cut_off:
        ends[-1] = ""
    if sum(lengths) < 2:
        return
    data = OfflineDataset.from_columns(columns_of(lengths, ends, following=following))
    view = Snippets(horizon, gamma, partial)
    expected = list(slow(data, view))
    if not expected:
        with pytest.raises(DatasetError, match="no snippet of"):
            view.bind(data)
        return
    bound = view.bind(data)
    assert bound.rows.tolist() == [row for row, *_ in expected]
    order = torch.randperm(len(expected))
    batch = bound.batch(bound.rows[order])
    for entry, position in enumerate(order.tolist()):
        row, taken, after, terminal = expected[position]
        real = batch.mask[entry]
        assert int(batch.rows[entry]) == row
        assert real.tolist() == [True] * len(taken) + [False] * (horizon - len(taken))
        for name, values in (("observations", batch.observations), ("actions", batch.actions)):
            np.testing.assert_array_equal(values[entry][real], data.columns[name][taken])
            assert not values[entry][~real].any()
        episodes = {*batch.observations[entry][real][:, 0].tolist()}
        assert len(episodes) == 1  # rows of one episode alone
        assert float(batch.next_observations[entry, 0]) in episodes
        np.testing.assert_array_equal(batch.next_observations[entry], after)
        assert bool(batch.terminals[entry]) == terminal
        rewards = data.columns["rewards"][taken].astype(np.float64)
        wanted = float((rewards * gamma ** np.arange(len(taken))).sum())
        assert float(batch.returns[entry]) == pytest.approx(wanted, rel=1e-6)
        assert float(batch.discounts[entry]) == pytest.approx(gamma ** len(taken), rel=1e-6)


def test_goals_come_along_and_what_the_data_lack_is_none(columns_of):
    columns = columns_of([4, 4], ["timeout", "timeout"])
    assert everything(Snippets(2), columns).goals is None
    columns["goals"] = 7 * columns["observations"]
    batch = everything(Snippets(2), columns)
    assert torch.equal(batch.goals, 7 * batch.observations[:, 0])
    columns["labelled"] = np.array([1, 1, 1, 1, 1, 0, 1, 1])
    assert everything(Snippets(2), columns).returns is None
    del columns["rewards"], columns["labelled"]
    assert everything(Snippets(2), columns).returns is None
    del columns["actions"]
    with pytest.raises(DatasetError, match="no column 'actions'"):
        everything(Snippets(2), columns)


def test_nothing_as_long_as_the_data_is_copied(columns_of):
    """Windows are views of the columns' own memory but for those that would leave it."""
    data = OfflineDataset.from_columns(columns_of([500, 500], ["timeout", "terminal"]))
    bound = Snippets(10).bind(data)
    for name, snippets in bound._columns.items():
        assert snippets._body.data_ptr() == data.columns[name].ctypes.data
        assert len(snippets._tail) == 9
    assert "episode" not in vars(bound._rows)


@pytest.mark.parametrize("wrong", [{"horizon": 0}, {"gamma": 1.1}, {"partial": "some"}])
def test_impossible_snippets_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Snippets(**wrong)


def test_a_horizon_that_is_too_long_says_what_fits(columns_of):
    data = OfflineDataset.from_columns(columns_of([3, 5], ["timeout", "timeout"]), origin="x.hdf5")
    with pytest.raises(DatasetError, match=r"x\.hdf5: no snippet of 6 steps .* more than 5 steps"):
        Snippets(6).bind(data)


# ---- fewer snippets, goals by hindsight, and where snippets end ---------------------------


def test_every_kth_row_of_each_episode_begins_a_snippet(columns_of):
    columns = columns_of([7, 2, 6], ["timeout", "terminal", "terminal"])
    bound = Snippets(3, every=2).bind(OfflineDataset.from_columns(columns))
    assert bound.rows.tolist() == [0, 2, 4, 7, 9, 11, 13]
    batch = bound.batch(bound.rows)
    assert batch.mask.sum(1).tolist() == [3, 3, 3, 2, 3, 3, 2]
    assert batch.terminals.tolist() == [False] * 3 + [True, False, False, True]
    everywhere = Snippets(3).bind(OfflineDataset.from_columns(columns))
    chosen = everywhere.batch(bound.rows)
    assert all(torch.equal(a, b) for a, b in zip(batch, chosen, strict=True) if a is not None)
    with pytest.raises(ConfigError, match="every is 4: give a number from 1 to the horizon, 3"):
        Snippets(3, every=4)


def test_the_last_full_snippet_covers_the_steps_before_a_timeout(columns_of):
    """36 rows, H = 30: the state after row 35 is unknown, so the last full snippet is at row 5."""
    data = OfflineDataset.from_columns(columns_of([36, 29], ["timeout"] * 2, following=False))
    assert Snippets(30, every=10).bind(data).rows.tolist() == [0, 5]
    ended = OfflineDataset.from_columns(columns_of([36], ["terminal"]))
    assert Snippets(30, every=10).bind(ended).rows.tolist() == [0, 10, 20, 30]
    assert Snippets(30, every=10, partial="none").bind(ended).rows.tolist() == [0, 6]


@relaxed
@given(
    layout=st.lists(
        st.tuples(st.integers(2, 15), st.sampled_from(["terminal", "timeout"])),
        min_size=1,
        max_size=6,
    ),
    following=st.booleans(),
    sizes=st.integers(1, 8).flatmap(lambda h: st.tuples(st.just(h), st.integers(1, h))),
    partial=st.sampled_from(["terminal", "all", "none"]),
)
def test_fewer_snippets_leave_no_step_out(columns_of, layout, following, sizes, partial):
    lengths, ends = zip(*layout, strict=True)
    data = OfflineDataset.from_columns(columns_of(list(lengths), list(ends), following=following))
    horizon, every = sizes
    try:
        whole = Snippets(horizon, partial=partial).bind(data)
    except DatasetError:
        return
    few = Snippets(horizon, partial=partial, every=every).bind(data)

    def steps(bound):
        batch = bound.batch(bound.rows)
        return (bound.rows[:, None] + torch.arange(horizon))[batch.mask].unique()

    assert torch.equal(steps(few), steps(whole))
    assert set(few.rows.tolist()) <= set(whole.rows.tolist())
    assert len(few.rows) <= sum(-(-length // every) + 1 for length in lengths)


@pytest.mark.parametrize("following", [True, False])
def test_where_snippets_end(columns_of, following):
    columns = columns_of([5, 4], ["timeout", "terminal"], following=following)
    bound = Snippets(3).bind(OfflineDataset.from_columns(columns))
    final = bound.last_steps(bound.rows)
    batch = bound.batch(bound.rows)
    assert torch.equal(final, bound.rows + batch.mask.sum(1) - 1)
    assert torch.equal(bound.states_after(final), batch.next_observations)
    assert torch.equal(bound.terminal(final), batch.terminals)


def test_goals_by_hindsight_are_states_of_the_episode_after_the_snippet(columns_of):
    columns = columns_of([9, 6], ["timeout", "terminal"])
    bound = Snippets(3, goals="hindsight").bind(OfflineDataset.from_columns(columns))
    assert bound.num_uniforms == 1
    rows = torch.tensor([1, 9]).repeat_interleave(4000)
    uniforms = torch.rand(8000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    goals = bound.batch(rows, uniforms).goals
    first, second = goals[:4000], goals[4000:]
    assert (first[:, 0] == 0).all() and (second[:, 0] == 1).all()
    for found, states in ((first, range(4, 10)), (second, range(3, 7))):  # all equally often
        values, counts = found[:, 1].unique(return_counts=True)
        assert values.tolist() == list(states)
        torch.testing.assert_close(
            counts / 4000, torch.full((len(states),), 1 / len(states)), atol=0.03, rtol=0
        )


def test_goals_by_hindsight_at_an_unknown_end_are_states_that_are_known(columns_of):
    columns = columns_of([5], ["timeout"], following=False)
    bound = Snippets(3, goals="hindsight").bind(OfflineDataset.from_columns(columns))
    rows = bound.rows
    for share in (0.0, 0.999999):
        goals = bound.batch(rows, torch.full((len(rows), 1), share, dtype=torch.float64)).goals
        assert (goals[:, 1] <= 4).all() and (goals[:, 1] >= rows + 3).all()
    with pytest.raises(ConfigError, match="goals is 'future'"):
        Snippets(3, goals="future")
