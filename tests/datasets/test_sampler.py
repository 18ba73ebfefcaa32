from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.rows import Spans
from lit_offrl.datasets.sampler import RowOrder

quick = settings(max_examples=60, deadline=None, derandomize=True)
ORDER = [9, 4, 7, 3, 1, 8, 2, 9, 3, 7, 8, 4, 2, 1]
sizes = {"rows": st.integers(1, 40), "batch": st.integers(1, 50), "seed": st.integers(0, 2**40)}


@quick
@given(**sizes, epochs=st.integers(1, 3))
def test_every_row_comes_once_an_epoch(rows, batch, seed, epochs):
    order = RowOrder(rows, batch, seed)
    steps = -(-epochs * rows // batch)
    stream = torch.cat([order.rows(step) for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(stream[epoch * rows : (epoch + 1) * rows].tolist()) == list(range(rows))


@quick
@given(**sizes, world=st.integers(1, 4), step=st.integers(0, 30))
def test_the_ranks_blocks_make_up_a_single_batch(rows, batch, seed, world, step):
    whole = RowOrder(rows, batch * world, seed)
    ranks = [RowOrder(rows, batch, seed, rank, world) for rank in range(world)]
    assert torch.equal(torch.cat([r.rows(step) for r in ranks]), whole.rows(step))
    uniforms = torch.cat([r.uniforms(step, 3) for r in ranks])
    assert torch.equal(uniforms, whole.uniforms(step, 3))


@quick
@given(**sizes, world=st.integers(1, 3), step=st.integers(0, 9), steps=st.integers(1, 6))
def test_steps_drawn_at_once_are_those_drawn_one_by_one(rows, batch, seed, world, step, steps):
    for rank in range(world):
        order = RowOrder(rows, batch, seed, rank, world)
        each = [order.draw(s).rows for s in range(step, step + steps)]
        assert torch.equal(order.draw(step, steps).rows, torch.cat(each))
        for count in (0, 2):
            each = [order.uniforms(s, count) for s in range(step, step + steps)]
            assert torch.equal(order.uniforms(step, count, steps), torch.cat(each))


@quick
@given(**sizes, step=st.integers(0, 100))
def test_any_step_is_the_same_whatever_came_before(rows, batch, seed, step):
    run = RowOrder(rows, batch, seed)
    before = [(run.rows(s), run.uniforms(s, 2)) for s in range(step, step + 3)]
    for resumed, (index, uniforms) in enumerate(before, start=step):
        fresh = RowOrder(rows, batch, seed)
        assert torch.equal(fresh.rows(resumed), index)
        assert torch.equal(fresh.uniforms(resumed, 2), uniforms)
    assert torch.equal(run.rows(step), before[0][0])  # back again, past the cache


@quick
@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=9))
def test_spans_are_the_rows_of_their_ranges(pairs):
    starts, stops, at = [], [], 0
    for gap, length in pairs:
        starts.append(at + gap)
        stops.append(at + gap + length)
        at = stops[-1]
    spans = Spans(torch.tensor(starts), torch.tensor(stops))
    rows = [row for start, stop in zip(starts, stops, strict=True) for row in range(start, stop)]
    assert len(spans) == len(rows) and spans.all().tolist() == rows
    if rows:
        assert spans.stop == rows[-1] + 1
        assert spans.at(torch.arange(len(rows)).flip(0)).tolist() == rows[::-1]
        order = RowOrder(spans, len(rows), seed=0)
        positions = RowOrder(len(rows), len(rows), seed=0).rows(0)
        assert torch.equal(order.rows(0), spans.all()[positions])
        assert torch.equal(spans.all(torch.int32), spans.all().int())


def test_the_order_is_that_of_earlier_versions():
    """Or a run that is gone on with would see some rows twice and others never."""
    spans = Spans(torch.tensor([1, 7]), torch.tensor([5, 10]))
    assert RowOrder(spans, 7, seed=3).rows(0, 2).tolist() == ORDER


def test_epochs_seeds_and_streams_differ():
    order, other = RowOrder(1000, 1000, seed=0), RowOrder(1000, 1000, seed=1)
    assert not torch.equal(order.rows(0), order.rows(1))
    assert not torch.equal(order.rows(0), other.rows(0))
    assert not torch.equal(order.uniforms(0, 1), order.uniforms(1, 1))
    assert not torch.equal(order.uniforms(0, 1), other.uniforms(0, 1))


def test_numbers_and_rows_have_the_stated_types():
    order = RowOrder(100, 7, seed=0)
    uniforms = order.uniforms(0, 2)
    assert order.rows(0).dtype == torch.int64 and order.rows(0).shape == (7,)
    assert uniforms.dtype == torch.float64 and uniforms.shape == (7, 2)
    assert 0 <= uniforms.min() and uniforms.max() < 1


@pytest.mark.parametrize("wrong", [(0, 1, 0), (1, 0, 0), (1, 1, 0, 2, 2), (1, 1, 0, -1, 1)])
def test_impossible_orders_are_refused(wrong):
    with pytest.raises(ConfigError):
        RowOrder(*wrong)
