from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.block_sums import BLOCK, BlockSums
from lit_offrl.datasets.priorities import Linear, Priorities, PrioritizedOrder
from lit_offrl.datasets.rows import Spans

quick = settings(max_examples=60, deadline=None, derandomize=True)
SPANS = Spans(torch.tensor([2, 10]), torch.tensor([7, 15]))  # rows 2–6 and 10–14


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- the sums ---------------------------------------------------------------------------


@quick
@given(
    weights=st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.5]), min_size=1, max_size=3 * BLOCK),
    share=st.floats(0, 1, exclude_max=True),
)
def test_found_is_where_a_running_sum_passes_the_share(weights, share):
    sums_of = BlockSums(torch.tensor(weights, dtype=torch.float64))
    found, chance = map(float, sums_of.find(torch.tensor([share], dtype=torch.float64)))
    found, sums = int(found), np.cumsum(weights)
    assert float(sums_of.total) == pytest.approx(sums[-1])
    if sums[-1] > 0:
        assert weights[found] > 0
        assert chance == pytest.approx(weights[found] / sums[-1])
        before = sums[found] - weights[found]
        near = 1e-12 * sums[-1]
        assert before - near <= share * sums[-1] <= sums[found] + near


@pytest.mark.parametrize("size", [1, BLOCK, BLOCK + 1, BLOCK**2, 40_000])
def test_sums_are_exact_after_many_updates(size):
    """Not only near: bit for bit those that the weights would give afresh."""
    generator = random()
    sums_of = BlockSums(torch.rand(size, generator=generator, dtype=torch.float64))
    plain = sums_of.weights.clone()
    for _ in range(300):
        index = torch.randint(size, (64,), generator=generator)
        weights = torch.rand(64, generator=generator, dtype=torch.float64) ** 8 * 1e6
        sums_of.set(index, weights)
        plain[index] = 0.0
        for at, weight in zip(index.tolist(), weights.tolist(), strict=True):
            plain[at] = max(float(plain[at]), weight)
    assert torch.equal(sums_of.weights, plain)
    fresh = BlockSums(plain)
    assert torch.equal(sums_of._blocks, fresh._blocks)
    assert float(sums_of.total) == pytest.approx(float(plain.sum()), rel=1e-14)


def test_shares_at_the_ends_never_fall_on_nothing():
    weights = torch.zeros(5000, dtype=torch.float64)
    weights[[17, 4000]] = torch.tensor([1e-300, 1.0], dtype=torch.float64)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert BlockSums(weights).find(ends)[0].tolist() == [17, 4000]
    weights[17] = 0.0
    assert BlockSums(weights).find(ends)[0].tolist() == [4000, 4000]


# ---- the order --------------------------------------------------------------------------


def test_rows_are_drawn_in_proportion_to_their_priorities():
    order = PrioritizedOrder(3000, 64, seed=1, settings=Priorities(alpha=0.7))
    priorities = torch.rand(3000, generator=random()) * 4 + 0.01
    order.update(torch.arange(3000), priorities)
    drawn = torch.cat([order.draw(step).rows for step in range(1500)])
    chance = priorities.double() ** 0.7
    expected = (chance / chance.sum() * len(drawn)).numpy()
    counts = np.bincount(drawn, minlength=3000)
    # Of strata the counts vary less than of free draws: too large a p-value would be no fault.
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_draws_are_stratified():
    """Of equal priorities each of B equal shares gives one row."""
    order = PrioritizedOrder(640, 64, seed=0)
    for step in range(5):
        assert (order.draw(step).rows // 10).tolist() == list(range(64))


def test_weights_follow_the_formula():
    settings = Priorities(alpha=0.6, beta=Linear(0.4, 1.0, steps=100, every=10))
    order = PrioritizedOrder(SPANS, 8, seed=3, settings=settings)
    priorities = torch.tensor([0.5, 1, 2, 4, 8, 1, 1, 3, 0.1, 0.2])
    order.update(SPANS.all(), priorities)
    chance = priorities.double() ** 0.6 / (priorities.double() ** 0.6).sum()
    table = dict(zip(SPANS.all().tolist(), chance.tolist(), strict=True))
    for step, beta in [(0, 0.4), (9, 0.4), (55, 0.7), (100, 1.0), (5000, 1.0)]:
        rows, weights = order.draw(step)
        raw = np.array([(10 * table[row]) ** -beta for row in rows.tolist()])
        np.testing.assert_allclose(weights, raw / raw.max(), rtol=1e-6)
        assert weights.dtype == torch.float32


def test_exponents_change_by_optimiser_steps():
    settings = Priorities(alpha=Linear(0.3, 0.9, steps=10), beta=Linear(0.4, 1.0, steps=10))
    whole = PrioritizedOrder(SPANS, 8, seed=3, settings=settings, accumulated=3)
    stretched = Priorities(
        alpha=Linear(0.3, 0.9, steps=30, every=3), beta=Linear(0.4, 1.0, steps=30, every=3)
    )
    same = PrioritizedOrder(SPANS, 8, seed=3, settings=stretched)
    for order in (whole, same):
        order.update(SPANS.all(), torch.arange(1.0, 11.0))
    for step in (0, 2, 3, 17, 29, 30, 100):
        assert all(map(torch.equal, whole.draw(step), same.draw(step)))


def test_a_scheduled_alpha_changes_the_draws():
    settings = Priorities(alpha=Linear(0.0, 2.0, steps=20, every=10))
    order = PrioritizedOrder(2, 1000, seed=0, settings=settings)
    order.update(torch.tensor([0, 1]), torch.tensor([1.0, 3.0]))
    shares = [order.draw(step).rows.double().mean().item() for step in (0, 9, 10, 20, 0)]
    # Strata: right to one row in a thousand.
    assert shares == pytest.approx([0.5, 0.5, 0.75, 0.9, 0.5], abs=2e-3)


def test_zero_is_never_drawn_and_a_raise_brings_it_back():
    order = PrioritizedOrder(SPANS, 50, seed=0)
    assert set(order.draw(0).rows.tolist()) == set(SPANS.all().tolist())
    order.update(torch.tensor([3, 12]), torch.zeros(2))
    assert set(order.draw(1).rows.tolist()) == set(SPANS.all().tolist()) - {3, 12}
    order.update(torch.tensor([3]), torch.ones(1))
    assert 3 in order.draw(2).rows and 12 not in order.draw(2).rows
    order.update(SPANS.all(), torch.zeros(10))
    with pytest.raises(ConfigError, match="no row has a priority above 0"):
        order.draw(3)
    with pytest.raises(ValueError, match="2 steps cannot be drawn by priorities at once"):
        order.draw(3, 2)


def test_of_duplicates_the_largest_holds_and_new_rows_have_the_largest_ever():
    order = PrioritizedOrder(10, 4, seed=0, settings=Priorities(alpha=1.0))
    order.update(torch.tensor([5, 2, 5, 5]), torch.tensor([0.5, 0.25, 7.0, 3.0]))
    assert order.priorities[[5, 2, 0]].tolist() == [7.0, 0.25, 7.0]
    order.update(torch.tensor([5]), torch.tensor([0.5]))  # not the largest of old and new
    assert order.priorities[5] == 0.5
    order.update(torch.tensor([8]), torch.tensor([3.0]))  # below the largest: new ones keep it
    assert order.priorities[[8, 9]].tolist() == [3.0, 7.0]
    order.update(torch.tensor([9]), torch.tensor([8.0]))
    assert order.priorities[[0, 2, 5, 8, 9]].tolist() == [8.0, 0.25, 0.5, 3.0, 8.0]
    assert float(order._sums.total) == pytest.approx(0.25 + 0.5 + 3.0 + 8.0 + 6 * 8.0)


def test_rows_outside_stay_outside_and_small_errors_leave_new_rows_at_one():
    order = PrioritizedOrder(SPANS, 4, seed=0, settings=Priorities(alpha=1.0))
    outside = order.priorities == -1
    order.update(torch.tensor([3]), torch.tensor([0.5]))
    assert order.priorities[~outside].max() == 1.0
    order.update(torch.tensor([4]), torch.tensor([9.0]))
    assert torch.equal(order.priorities == -1, outside) and bool(outside.any())
    assert order.priorities[~outside].tolist().count(9.0) == order.num_rows - 1


def test_each_row_is_drawn_before_long_whatever_the_errors_are():
    order = PrioritizedOrder(640, 64, seed=0, settings=Priorities(alpha=1.0))
    seen = set()
    for step in range(60):
        rows = order.draw(step).rows
        seen |= {*rows.tolist()}
        order.update(rows, torch.full((64,), 50.0 if step == 0 else 0.1))
    assert len(seen) == 640


def test_a_state_of_before_new_rows_were_known_keeps_their_one():
    order, old = (PrioritizedOrder(10, 4, seed=0) for _ in range(2))
    order.update(torch.tensor([1]), torch.tensor([0.5]))
    old.load_state_dict({k: v for k, v in order.state_dict().items() if k != "new"})
    for each, expected in ((order, 9.0), (old, 1.0)):
        each.update(torch.tensor([2]), torch.tensor([9.0]))
        assert each.priorities[0] == expected


@quick
@given(world=st.integers(1, 4), batch=st.integers(1, 9), seed=st.integers(0, 2**40))
def test_the_ranks_blocks_make_up_a_single_batch(world, batch, seed):
    whole = PrioritizedOrder(SPANS, batch * world, seed)
    ranks = [PrioritizedOrder(SPANS, batch, seed, rank, world) for rank in range(world)]
    for step in range(3):
        draws, one = [r.draw(step) for r in ranks], whole.draw(step)
        assert torch.equal(torch.cat([d.rows for d in draws]), one.rows)
        assert torch.equal(torch.cat([d.weights for d in draws]), one.weights)
        uniforms = torch.cat([r.uniforms(step, 2) for r in ranks])
        assert torch.equal(uniforms, whole.uniforms(step, 2))
        for order in (*ranks, whole):  # each gets what all have found
            order.update(one.rows, (one.rows + step).float())


def test_a_resumed_order_draws_the_very_same_rows():
    settings = Priorities(alpha=Linear(0.3, 0.9, steps=30, every=7))

    def train(order, steps):
        drawn = []
        for step in steps:
            drawn.append(order.draw(step))
            order.update(drawn[-1].rows, (drawn[-1].rows * 37 % 11 + 0.3 * step).float())
        return drawn

    unbroken = PrioritizedOrder(1000, 32, seed=0, settings=settings)
    first = PrioritizedOrder(1000, 32, seed=0, settings=settings)
    resumed = PrioritizedOrder(1000, 32, seed=0, settings=settings)
    expected = train(unbroken, range(40))[17:]
    train(first, range(17))
    state = first.state_dict()
    train(first, range(17, 25))  # which leaves the state as it was
    resumed.load_state_dict(state)
    found = train(resumed, range(17, 40))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.rows, other.rows) and torch.equal(one.weights, other.weights)
    again = PrioritizedOrder(1000, 32, seed=0, settings=settings)
    again.load_state_dict(state)
    assert torch.equal(again.draw(17).rows, expected[0].rows)
    with pytest.raises(ConfigError, match="of 1,000 rows, but the data have 15"):
        PrioritizedOrder(SPANS, 4, seed=0).load_state_dict(state)


@pytest.mark.parametrize(
    ("rows", "priorities", "said"),
    [
        ([3, 4], [1.0, float("nan")], "row 4 cannot have the priority nan"),
        ([3, 4], [float("inf"), 1.0], "row 3 cannot have the priority inf"),
        ([4], [-0.5], "row 4 cannot have the priority -0.5"),
        ([4, 8], [1.0, 1.0], "row 8 cannot"),  # between the spans
        ([15], [1.0], "row 15 cannot"),
        ([-1], [1.0], "row -1 cannot"),
        ([3, 4], [1.0], "one number a row"),
    ],
)
def test_wrong_updates_are_refused_and_change_nothing(rows, priorities, said):
    order = PrioritizedOrder(SPANS, 4, seed=0)
    before = order.state_dict()
    before = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in before.items()}
    with pytest.raises(ConfigError, match=said):
        order.update(torch.tensor(rows), torch.tensor(priorities))
    for key, value in order.state_dict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(before[key]))


def test_ldcqs_schedule_rises_by_three_hundredths_every_three_thousand_steps():
    beta = Priorities().beta
    found = [beta.at(step) for step in (0, 2999, 3000, 6000, 69_000, 70_000, 72_000, 10**6)]
    assert found == pytest.approx([0.3, 0.3, 0.33, 0.36, 0.99, 0.99, 1.0, 1.0])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Linear(0, 1, steps=0),
        lambda: Linear(0, 1, steps=5, every=0),
        lambda: Priorities(alpha=-0.1),
        lambda: Priorities(beta=Linear(-0.1, 1, steps=5)),
        lambda: PrioritizedOrder(0, 4, seed=0),
        lambda: PrioritizedOrder(5, 4, seed=0, rank=1),
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError):
        wrong()
