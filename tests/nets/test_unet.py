from functools import partial

import pytest
import torch
from torch import nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.diffusion import classifier_free_guidance
from lit_offrl.nets import UResNetDenoiser
from lit_offrl.nets.unet import UBlock


@pytest.fixture
def net():
    torch.manual_seed(0)
    return UResNetDenoiser(16, 5, 20, width=24, time_dim=32)


def test_eight_blocks_in_the_shape_of_a_u_each_with_a_norm_of_its_own(net):
    blocks = [block for block in net.modules() if isinstance(block, UBlock)]
    widths = [(block.first.in_features, block.second.out_features) for block in blocks]
    assert widths == [
        *((16, 128), (128, 32), (32, 16), (16, 8)),
        *((8, 16), (16, 32), (32, 128), (128, 16)),
    ]
    norms = [module for module in net.modules() if isinstance(module, nn.LayerNorm)]
    assert len({id(norm.weight) for norm in norms}) == 8
    for widths in ((8, 4), (), (8, 0, 8)):
        with pytest.raises(ConfigError, match="same read backwards"):
            UResNetDenoiser(4, 2, 10, widths=widths)


def test_the_way_down_is_added_to_the_way_up(net):
    """With the middle cut off, the outermost skip alone carries x_t."""
    with torch.no_grad():
        for block in list(net.blocks)[1:7]:
            block.first.weight.zero_()
            block.second.weight.zero_()
    condition, t = torch.randn(1, 5), torch.tensor([3, 3])
    one, other = net(torch.randn(2, 16), t, condition.expand(2, -1))
    assert not torch.allclose(one, other)
    with torch.no_grad():
        net.blocks[0].first.weight.zero_()
        net.blocks[0].second.weight.zero_()
    one, other = net(torch.randn(2, 16), t, condition.expand(2, -1))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("widths", [(8, 4, 4, 8), (8, 4, 8), (8, 8)])
def test_each_block_down_is_added_to_the_one_of_its_width(widths):
    """Blocks that answer their number, 1, 2, …, whatever they get, and what the last one sees."""
    net = UResNetDenoiser(3, 2, 10, widths=widths, width=8, time_dim=8)
    for number, block in enumerate(net.blocks, start=1):
        block.forward = lambda x, c, n=number, w=net.outs[number - 1]: x.new_full((1, w), n)
    seen = []
    last = net.blocks[-1]
    last.forward = lambda x, c: seen.append(x) or x.new_zeros(1, 3)
    net(torch.zeros(1, 3), torch.tensor([1]), torch.zeros(1, 2))
    assert seen[0].flatten().tolist() == [len(widths) + 1.0] * widths[-1]  # the last and the first


def test_rows_that_share_a_condition_are_as_if_each_had_its_own(net):
    x, condition = torch.randn(12, 16), torch.randn(3, 5)
    encoded = net.encode(condition)
    apart = encoded.repeat_interleave(4, dim=0)
    for t in (torch.tensor(7).expand(12), torch.arange(1, 13)):
        expected = net.denoise(x, t, apart)
        torch.testing.assert_close(net.denoise(x, t, encoded), expected)
        torch.testing.assert_close(net.denoise(x, t, encoded, net.times()), expected)


def test_times_are_those_of_the_whole_schedule(net):
    table = net.times()
    assert table.shape == (20, sum(net.outs))
    torch.testing.assert_close(table[[4, 19]], net.times(torch.tensor([5, 20])))


def test_many_rows_are_taken_in_parts_without_changing_them(net):
    x, encoded = torch.randn(5 * 1100, 16), net.encode(torch.randn(5, 5))
    t = torch.tensor(2).expand(len(x))
    with torch.no_grad():
        parts = net.denoise(x, t, encoded)
    torch.testing.assert_close(parts, net.denoise(x, t, encoded), rtol=1e-5, atol=1e-5)


def test_guidance_sees_one_time_and_shared_conditions(net):
    x, t = torch.randn(6, 16), torch.tensor(4).expand(6)
    given, null = net.encode(torch.randn(2, 5)), net.encode(torch.zeros(1, 5))
    seen = []

    def denoise(x_t, t, encoded):
        seen.append(t.stride())
        return net.denoise(x_t, t, encoded, net.times())

    c, u = net.denoise(x, t, given), net.denoise(x, t, null)
    guided = classifier_free_guidance(denoise, given, null, 2.5)(x, t)
    torch.testing.assert_close(guided, u + 2.5 * (c - u))
    assert seen == [(0,)]


def test_every_weight_is_trained(net):
    encoded = net.encode(torch.randn(8, 5))
    net.denoise(torch.randn(8, 16), torch.arange(1, 9), encoded).square().sum().backward()
    assert all(part.grad is not None and part.grad.any() for part in net.parameters())


def test_it_runs_in_bfloat16_and_under_autocast(net):
    x, t, condition = torch.randn(4, 16), torch.tensor(4).expand(4), torch.randn(4, 5)
    exact = net(x, t, condition)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(net(x, t, condition).float(), exact, atol=0.1, rtol=0.1)
    half = partial(net.bfloat16(), t=t, condition=condition)(x)
    torch.testing.assert_close(half.float(), exact, atol=0.1, rtol=0.1)


def test_one_condition_without_gradients_is_as_with_them(net):
    """There its share is part of a bias, and products are added in place."""
    x, t, encoded = torch.randn(7, 16), torch.tensor(4).expand(7), net.encode(torch.randn(1, 5))
    expected = net.denoise(x, t, encoded)
    with torch.no_grad():
        torch.testing.assert_close(net.denoise(x, t, encoded), expected)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(
                net.denoise(x, t, encoded).float(), expected, rtol=0.1, atol=0.1
            )
