"""Convolutions over time: shares of time and condition, and what a plan's steps see."""

from __future__ import annotations

import pytest
import torch

from lit_offrl.nets import TemporalUNet, TemporalValue
from lit_offrl.nets.temporal_unet import Conv, TransposedConv

T = 5


def unet(**options):
    torch.manual_seed(0)
    return TemporalUNet(3, 16, T, width=8, multipliers=(1, 2, 4), **options).requires_grad_(False)


def test_shares_are_the_same_from_a_table_and_for_one_time_of_all_rows():
    net, x = unet(condition_dim=2), torch.randn(6, 16, 3)
    encoded, table = net.encode(torch.randn(6, 2)), net.times()
    one = torch.tensor([4]).expand(6)
    expected = net.denoise(x, one.clone(), encoded)
    assert expected.shape == x.shape
    torch.testing.assert_close(net.denoise(x, one, encoded, table), expected)
    mixed = torch.tensor([1, 2, 3, 4, 5, 4])
    rows = net.denoise(x, mixed, encoded, table)
    torch.testing.assert_close(rows[[3, 5]], expected[[3, 5]])
    assert not torch.allclose(rows[0], expected[0])


def test_a_dropped_condition_is_none():
    net, x, t = unet(condition_dim=2), torch.randn(4, 16, 3), torch.full((4,), 2)
    encoded = net.encode(torch.randn(4, 2))
    without = net.denoise(x, t)
    torch.testing.assert_close(net.denoise(x, t, 0 * encoded), without)
    assert not torch.allclose(net.denoise(x, t, encoded), without)


@pytest.mark.parametrize("horizon", [4, 6, 25])
def test_a_value_is_one_number_for_a_window_of_any_length(horizon):
    torch.manual_seed(0)
    net = TemporalValue(3, horizon, T, width=16, multipliers=(1, 4))
    x, t = torch.randn(6, horizon, 3), torch.full((6,), 3)
    values = net(x, t)
    assert values.shape == (6,)
    torch.testing.assert_close(net(x, t[:1].expand(6), net.times()), values)
    torch.testing.assert_close(net(x[2:3], t[2:3]), values[2:3])  # rows do not see each other
    values.sum().backward()
    assert all(part.grad is not None for part in net.parameters())


def test_a_plans_ends_see_each_other():
    """The deepest level makes the whole window one neighbourhood."""
    net, x = unet(), torch.randn(1, 16, 3)
    other = x.clone()
    other[0, -1] += 1
    t = torch.tensor([2])
    assert not torch.equal(net.denoise(x, t)[0, 0], net.denoise(other, t)[0, 0])


def test_layers_of_short_windows_are_matrices_of_the_weights_at_hand():
    """Frozen ones of many rows on a CPU; what trains, or is of few rows, is a convolution."""
    net, x, t = unet(), torch.randn(40, 16, 3), torch.full((40,), 2)
    layers = [part for part in net.modules() if isinstance(part, Conv | TransposedConv)]
    for _ in range(2):  # the second time with other weights
        planned = net.denoise(x, t)
        few = torch.cat([net.denoise(x[:20], t[:20]), net.denoise(x[20:], t[20:])])
        torch.testing.assert_close(planned, few, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch._foreach_mul_(list(net.parameters()), 1.5)
    made = [layer for layer in layers if layer._matrix is not None]
    assert {type(layer) for layer in made} == {Conv, TransposedConv} and len(made) < len(layers)

    value = TemporalValue(3, 16, T, width=16, multipliers=(1, 4)).requires_grad_(False)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(value(x, t).sum(), x)
    (few,) = torch.autograd.grad(value(x[:20], t[:20]).sum(), x)
    torch.testing.assert_close(gradient[:20], few[:20], rtol=1e-4, atol=1e-6)
