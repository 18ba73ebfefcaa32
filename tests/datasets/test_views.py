from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import FutureStates, Transitions

# Observations are (episode, step), so that a row says where it comes from.
LAYOUTS = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from(["terminal", "timeout"])), min_size=1, max_size=8
)


def build(columns_of, layout, cut_off: bool, following: bool) -> OfflineDataset | None:
    lengths, ends = [length for length, _ in layout], [end for _, end in layout]
    if cut_off:
        ends[-1] = ""
    if sum(lengths) < 2:
        return None
    return OfflineDataset.from_columns(columns_of(lengths, ends, following=following))


def all_rows(view, dataset, draws: int = 8):
    """Return a batch that holds every valid row several times, and the rows' numbers."""
    bound = view.bind(dataset)
    index = bound.rows.repeat(draws)
    uniforms = torch.rand(len(index), bound.num_uniforms, dtype=torch.float64)
    return bound.batch(index, uniforms), index.numpy()


relaxed = settings(max_examples=60, deadline=None, derandomize=True)


@relaxed
@given(
    layout=LAYOUTS,
    cut_off=st.booleans(),
    following=st.booleans(),
    gamma=st.sampled_from([0.0, 0.5, 0.99, 0.99999]),
    max_offset=st.sampled_from([None, 1, 3]),
    history=st.integers(0, 4),
    terminals=st.sampled_from(["absorbing", "truncate"]),
)
def test_no_future_batch_crosses_the_end_of_an_episode(
    columns_of, layout, cut_off, following, gamma, max_offset, history, terminals
):
    data = build(columns_of, layout, cut_off, following)
    if data is None:
        return
    view = FutureStates(gamma, max_offset, history, terminals)
    lengths, terminated = data.episode_lengths, data.episode_terminated
    ended = terminated  # in a true terminal, whatever the view makes of it
    if terminals == "truncate":
        terminated = np.zeros_like(terminated)
    unusable = [] if following else data.episodes[~terminated, 1] - 1
    if len(unusable) == len(data):
        with pytest.raises(DatasetError, match="no row has a next state"):
            view.bind(data)
        return
    batch, index = all_rows(view, data)
    assert set(index) == set(range(len(data))) - set(unusable)

    episode, step = batch.observations.long().numpy().T
    np.testing.assert_array_equal(batch.observations, data.columns["observations"][index])
    offsets, absorbed = batch.offsets.numpy(), batch.future_absorbed.numpy()
    assert (offsets >= 1).all()
    assert (offsets <= (max_offset or np.inf)).all()
    if gamma == 0:
        assert (offsets == 1).all()

    # Absorbed exactly when at or past the end of an episode that ended in a true terminal.
    past = step + offsets >= lengths[episode]
    np.testing.assert_array_equal(absorbed, past & terminated[episode])
    assert (batch.future_observations[batch.future_absorbed] == 0).all()
    # Everything else is the same episode's state, Δt on, and one that the data hold.
    future = batch.future_observations.numpy()[~absorbed]
    expected = np.stack([episode, step + offsets], axis=1)[~absorbed]
    np.testing.assert_array_equal(future, expected)
    known = lengths[episode] - (0 if following else 1)
    assert (step + offsets <= known)[~terminated[episode]].all()

    np.testing.assert_array_equal(batch.terminals, ended[episode] & (step + 1 == lengths[episode]))
    beyond = step + 1 if following else np.minimum(step + 1, lengths[episode] - 1)
    np.testing.assert_array_equal(batch.next_observations, np.stack([episode, beyond], axis=1))
    check_history(batch, episode, step, history)


def check_history(batch, episode, step, k) -> None:
    if k == 0:
        assert batch.history is batch.history_actions is batch.history_mask is None
        return
    before = step[:, None] + np.arange(-k, 0)
    there = before >= 0
    np.testing.assert_array_equal(batch.history_mask, there)
    expected = np.stack([np.broadcast_to(episode[:, None], before.shape), before], axis=-1)
    expected = expected * there[..., None]
    np.testing.assert_array_equal(batch.history, expected)
    np.testing.assert_array_equal(batch.history_actions, -expected)


@relaxed
@given(layout=LAYOUTS, cut_off=st.booleans(), following=st.booleans())
def test_no_next_action_is_one_of_another_episode(columns_of, layout, cut_off, following):
    data = build(columns_of, layout, cut_off, following)
    if data is None:
        return
    view, timed_out = Transitions(next_actions=True), data.episodes[~data.episode_terminated, 1] - 1
    usable = set(range(len(data))) - set(timed_out)
    if not usable:
        with pytest.raises(DatasetError, match="a row and what it needs are 2 rows, and every"):
            view.bind(data)
        return
    batch, index = all_rows(view, data, draws=1)
    assert set(index) == usable
    episode, step = batch.observations.long().numpy().T
    ends = step + 1 == data.episode_lengths[episode]
    np.testing.assert_array_equal(batch.terminals, ends)
    follows = np.where(ends, step, step + 1)  # past a terminal the action itself, which is masked
    np.testing.assert_array_equal(batch.next_actions, -np.stack([episode, follows], axis=1))
    plain = Transitions().bind(data).batch(torch.from_numpy(index))
    assert plain.next_actions is None
    for name in ("observations", "actions", "rewards", "next_observations", "terminals"):
        assert torch.equal(getattr(batch, name), getattr(plain, name)), name


def slow_chunk(data, row: int, view: Transitions, following: bool):
    """The row's entry by loops over its episode, or None where it cannot be one."""
    (start, stop), terminated = next(
        (episode, ended)
        for episode, ended in zip(data.episodes, data.episode_terminated, strict=True)
        if episode[0] <= row < episode[1]
    )
    steps, number = view.n_step or view.chunk, int(data.columns["observations"][row][0])
    after = row + steps  # the next state's row
    known = stop + (0 if not following else 1) if not view.next_actions else stop - view.chunk + 1
    if not terminated and after >= known:
        return None
    rewards = data.columns["rewards"].astype(np.float64)
    total = sum(view.gamma**i * rewards[row + i] for i in range(steps) if row + i < stop)

    def chunk(first):
        rows = [min(first + i, stop - 1) for i in range(view.chunk)]
        return np.concatenate([data.columns["actions"][each] for each in rows])

    ended = terminated and after >= stop
    beyond = (number, min(after, stop if following else stop - 1) - start)
    return chunk(row), total, beyond, ended, chunk(min(after, stop - 1))


@relaxed
@given(
    layout=LAYOUTS,
    cut_off=st.booleans(),
    following=st.booleans(),
    chunk=st.integers(1, 5),
    further=st.sampled_from([None, 0, 1, 3]),
    next_actions=st.booleans(),
)
def test_no_chunk_crosses_the_end_of_an_episode(
    columns_of, layout, cut_off, following, chunk, further, next_actions
):
    data = build(columns_of, layout, cut_off, following)
    if data is None:
        return
    n_step = None if further is None else chunk + further
    view = Transitions(next_actions=next_actions, chunk=chunk, n_step=n_step, gamma=0.9)
    slow = {row: slow_chunk(data, row, view, following) for row in range(len(data))}
    slow = {row: entry for row, entry in slow.items() if entry is not None}
    if not slow:
        with pytest.raises(DatasetError, match=r"no row has a next st|a row and what it needs are"):
            view.bind(data)
        return
    batch, index = all_rows(view, data, draws=1)
    assert list(index) == list(slow)
    actions, rewards, following_states, ended, after = map(
        np.array, zip(*slow.values(), strict=True)
    )
    np.testing.assert_array_equal(batch.observations, data.columns["observations"][index])
    np.testing.assert_array_equal(batch.actions, actions)
    np.testing.assert_allclose(batch.rewards, rewards, rtol=1e-5)
    np.testing.assert_array_equal(batch.next_observations, following_states)
    np.testing.assert_array_equal(batch.terminals, ended)
    if next_actions:
        np.testing.assert_array_equal(batch.next_actions, after)
    if view.steps == 1:
        assert batch.discounts is None and batch.discount(0.9) == 0.9
    else:
        np.testing.assert_allclose(batch.discount(0.9), 0.9**view.steps, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 0}, "chunk is 0"),
        ({"chunk": 3, "n_step": 2}, "n_step is 2 and chunk 3: give an n_step of at least"),
        ({"gamma": 1.5}, "gamma is 1.5"),
    ],
)
def test_chunks_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        Transitions(**options)


@relaxed
@given(layout=LAYOUTS, cut_off=st.booleans(), following=st.booleans())
def test_no_transition_crosses_the_end_of_an_episode(columns_of, layout, cut_off, following):
    data = build(columns_of, layout, cut_off, following)
    if data is None or (not following and len(data) == (~data.episode_terminated).sum()):
        return
    batch, _ = all_rows(Transitions(), data, draws=1)
    episode, step = batch.observations.long().numpy().T
    last = step + 1 == data.episode_lengths[episode]
    ends = data.episode_terminated[episode]
    np.testing.assert_array_equal(batch.terminals, last & ends)
    beyond = step + 1 if following else np.where(last, step, step + 1)
    np.testing.assert_array_equal(batch.next_observations, np.stack([episode, beyond], axis=1))
    np.testing.assert_array_equal(batch.rewards, 1000 * episode + step)
    np.testing.assert_array_equal(batch.actions, -batch.observations.numpy())
    if not following:
        assert not (last & ~ends).any()


@relaxed
@given(layout=LAYOUTS, gamma=st.sampled_from([0.0, 0.9, 1 - 1e-9]))
def test_returns_are_discounted_to_the_episodes_end(columns_of, layout, gamma):
    data = build(columns_of, layout, cut_off=False, following=True)
    if data is None:
        return
    bound = FutureStates(gamma).bind(data)
    found = bound.batch(bound.rows, torch.zeros(len(bound.rows), 1)).returns
    expected = np.zeros(len(data))
    for start, stop in data.episodes:
        running = 0.0
        for row in range(stop - 1, start - 1, -1):
            running = expected[row] = data.columns["rewards"][row] + gamma * running
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def offsets_of_first_row(data, view, draws: int = 40_000) -> np.ndarray:
    bound = view.bind(data)
    uniforms = torch.rand(draws, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return bound.batch(torch.zeros(draws, dtype=torch.int64), uniforms).offsets.numpy()


@pytest.mark.parametrize(
    ("end", "following", "max_offset", "known"),
    [
        ("terminal", True, None, None),  # absorbing: nothing cuts Δt
        ("terminal", False, None, None),
        ("terminal", True, 5, 5),
        ("timeout", True, None, 20),
        ("timeout", False, None, 19),
        ("", False, None, 19),
        ("timeout", True, 7, 7),
        ("timeout", True, 70, 20),
    ],
)
@pytest.mark.parametrize("gamma", [0.6, 0.95])
def test_offsets_are_geometric_and_conditional_on_the_known_future(
    columns_of, end, following, max_offset, known, gamma
):
    columns = columns_of([20], [end], following=following)
    data = OfflineDataset.from_columns(columns)
    offsets = offsets_of_first_row(data, FutureStates(gamma, max_offset))
    bins = known or 120
    steps = np.arange(1, bins + 1)
    chance = (1 - gamma) * gamma ** (steps - 1)
    counts = np.bincount(np.minimum(offsets, bins), minlength=bins + 1)[1:]
    if known is None:
        chance[-1] = gamma ** (bins - 1)  # the last bin takes the rest
    else:
        chance = chance / (1 - gamma**known)
        assert offsets.max() <= known
    # Rare bins go together, as the test's approximation wants at least five a bin.
    rare = chance * len(offsets) < 5
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        chance = np.append(chance[~rare], chance[rare].sum())
    assert stats.chisquare(counts, chance / chance.sum() * len(offsets)).pvalue > 1e-3


def test_discounts_near_one_keep_their_distribution(columns_of):
    data = OfflineDataset.from_columns(columns_of([50], ["timeout"]))
    offsets = offsets_of_first_row(data, FutureStates(1 - 1e-12))
    counts = np.bincount(offsets, minlength=51)[1:]  # uniform on 1 … 50 in the limit
    assert stats.chisquare(counts).pvalue > 1e-3


def test_largest_and_smallest_uniforms_stay_within_bounds(columns_of):
    data = OfflineDataset.from_columns(columns_of([30], ["timeout"]))
    bound = FutureStates(0.9).bind(data)
    edge = torch.tensor([[0.0], [np.nextafter(1.0, 0.0)]], dtype=torch.float64)
    assert bound.batch(torch.tensor([0, 0]), edge).offsets.tolist() == [1, 30]
    assert bound.batch(torch.tensor([29, 29]), edge).offsets.tolist() == [1, 1]


@pytest.mark.parametrize(("end", "reach"), [("timeout", 20), ("terminal", 100)])
def test_a_share_of_the_offsets_is_log_uniform(columns_of, end, reach):
    gamma, share, bins = 0.99, 0.4, 20
    data = OfflineDataset.from_columns(columns_of([20], [end], following=True))
    offsets = offsets_of_first_row(data, FutureStates(gamma, near_share=share))
    steps = np.arange(1, bins + 1)
    far = (1 - gamma) * gamma ** (steps - 1) / (1 - gamma**20 if end == "timeout" else 1)
    near = np.log1p(1 / steps) / np.log(reach + 1)
    chance = share * near + (1 - share) * far
    counts = np.bincount(np.minimum(offsets, bins + 1), minlength=bins + 2)[1:-1]
    counts, chance = (
        np.append(counts, len(offsets) - counts.sum()),
        np.append(chance, 1 - chance.sum()),
    )
    kept = chance > 1e-9
    assert counts[~kept].sum() == 0
    assert stats.chisquare(counts[kept], chance[kept] * len(offsets)).pvalue > 1e-3


@pytest.mark.parametrize("end", ["timeout", "terminal"])
def test_log_uniform_offsets_stay_within_bounds(columns_of, end):
    data = OfflineDataset.from_columns(columns_of([30], [end], following=True))
    bound = FutureStates(0.9, 25, near_share=0.3).bind(data)
    near = [0.0, np.nextafter(0.3, 0.0)]
    edge = torch.tensor([*near, 0.3, np.nextafter(1.0, 0.0)], dtype=torch.float64)[:, None]
    offsets = bound.batch(torch.zeros(4, dtype=torch.int64), edge).offsets.tolist()
    assert offsets == [1, 10, 1, 25]


def test_absent_columns_are_absent_from_the_batch(columns_of):
    columns = columns_of([4], ["terminal"], actions=False)
    del columns["rewards"]
    data = OfflineDataset.from_columns(columns)
    batch, _ = all_rows(FutureStates(history=2), data)
    for name in ("actions", "rewards", "reward_mask", "policy", "history_actions", "returns"):
        assert getattr(batch, name) is None, name
    assert batch.history.shape[1:] == (2, 2)
    columns["actions"] = -columns["observations"]
    batch, index = all_rows(Transitions(), OfflineDataset.from_columns(columns), draws=1)
    assert batch.rewards is None  # imitation needs none
    np.testing.assert_array_equal(batch.actions, columns["actions"][index])
    with pytest.raises(DatasetError, match="no column 'actions'"):
        Transitions().bind(data)


def test_policy_and_reward_mask_come_along(columns_of):
    columns = columns_of([2, 3], ["terminal", "timeout"])
    columns["policy"] = np.array([7, 7, 8, 8, 8])
    columns["labelled"] = np.array([1, 1, 0, 1, 1])
    batch, index = all_rows(FutureStates(), OfflineDataset.from_columns(columns), draws=1)
    assert batch.policy.tolist() == columns["policy"][index].tolist()
    assert batch.reward_mask.tolist() == [True, True, False, True, True]
    assert batch.returns is None  # not known where a reward is not


def test_a_bound_view_shares_the_datasets_memory_and_is_a_pure_function(columns_of):
    data = OfflineDataset.from_columns(columns_of([5, 5], ["terminal", "timeout"]))
    bound = FutureStates(history=2).bind(data)
    column = bound._rows.columns["observations"]
    assert column.data_ptr() == data.columns["observations"].ctypes.data
    uniforms = torch.rand(4, 1, dtype=torch.float64)
    index = torch.tensor([0, 3, 5, 9])
    once, twice = bound.batch(index, uniforms), bound.batch(index, uniforms)
    for first, second in zip(once, twice, strict=True):
        assert first is second is None or torch.equal(first, second)


@pytest.mark.parametrize(
    "wrong", [{"gamma": 1.0}, {"max_offset": 0}, {"history": -1}, {"near_share": 1.0}]
)
def test_impossible_views_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FutureStates(**wrong)


@relaxed
@given(layout=LAYOUTS, following=st.booleans(), gamma=st.sampled_from([0.0, 0.9, 1.0]))
def test_returns_are_the_discounted_rewards_to_the_end_of_the_episode(
    columns_of, layout, following, gamma
):
    data = build(columns_of, layout, False, following)
    if data is None or len(data.column("rewards")) < 2:
        return
    try:
        bound = Transitions(returns=gamma).bind(data)
    except DatasetError:  # single rows that end in timeouts
        return
    batch = bound.batch(bound.rows)
    rewards = data.column("rewards").astype(np.float64)
    expected = rewards.copy()
    for start, stop in data.episodes:
        for row in range(stop - 2, start - 1, -1):
            expected[row] += gamma * expected[row + 1]
    np.testing.assert_allclose(batch.returns, expected[bound.rows], rtol=1e-5, atol=1e-5)
    assert Transitions().bind(data).batch(bound.rows).returns is None


def test_returns_need_every_reward(columns_of):
    columns = columns_of([3], ["terminal"])
    del columns["rewards"]
    with pytest.raises(DatasetError, match="reward"):
        Transitions(returns=0.9).bind(OfflineDataset.from_columns(columns))
    with pytest.raises(ConfigError, match="returns"):
        Transitions(returns=1.5)
