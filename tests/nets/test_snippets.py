"""Encoders of windows, and decoders whose densities and draws must be the same distribution."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from lit_offrl.nets import (
    AutoregressiveDecoder,
    CategoricalDecoder,
    GaussianPrior,
    ImageDecoder,
    ImageEncoder,
    SnippetEncoder,
    WorldModel,
    gaussian_kl,
)


def awake(net, scale=1.5):
    """Larger weights, so that what a network ignores cannot hide behind small ones."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= scale
    return net


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return awake(AutoregressiveDecoder(3, 2, 4, width=16), 2.0)


def one_dimension(decoder, i, given):
    """μ and σ of dimension i, layer by layer as if it were alone."""
    dim = decoder.given_dim + i
    x = given[:, :dim] @ decoder.first.weight[i, :dim] + decoder.first.bias[i]
    x = F.relu(x) @ decoder.second.weight[i] + decoder.second.bias[i]
    x = F.relu(F.relu(x) @ decoder.heads.weight[i] + decoder.heads.bias[i])
    mean = x[:, :16] @ decoder.mean.weight[i] + decoder.mean.bias[i]
    std = F.softplus(x[:, 16:] @ decoder.std.weight[i] + decoder.std.bias[i]) + 1e-4
    return mean[:, 0], std[:, 0]


def test_log_prob_is_the_product_of_the_one_dimensional_conditionals(decoder):
    states, latents, actions = torch.randn(7, 3), torch.randn(7, 2), torch.randn(7, 4)
    given = torch.cat([states, latents, actions], dim=-1)
    expected = torch.zeros(7)
    for i in range(4):
        expected += Normal(*one_dimension(decoder, i, given)).log_prob(actions[:, i])
    found = decoder.log_prob(states, latents, actions)
    torch.testing.assert_close(found, expected)

    # a dimension sees those before it, and none after it
    later = actions.clone()
    later[:, 2] += 1.0
    before, after = (
        decoder.moments(states, latents, actions),
        decoder.moments(states, latents, later),
    )
    torch.testing.assert_close(after[0][:, :3], before[0][:, :3])
    assert not torch.allclose(after[0][:, 3], before[0][:, 3])


def test_all_dimensions_at_once_are_as_one_after_the_other(decoder):
    x = torch.randn(7, 9)
    for together, each in zip(decoder._together(x), decoder._each(x), strict=True):
        torch.testing.assert_close(together, each)


def test_one_latent_serves_all_steps_of_a_window(decoder):
    states, latents, actions = torch.randn(5, 6, 3), torch.randn(5, 2), torch.randn(5, 6, 4)
    shared = decoder.log_prob(states, latents[:, None], actions)
    alone = [decoder.log_prob(states[:, t], latents, actions[:, t]) for t in range(6)]
    assert shared.shape == (5, 6)
    torch.testing.assert_close(shared, torch.stack(alone, dim=1))


def test_actions_are_drawn_from_the_density(decoder):
    noise = torch.randn(6, 4)
    states, latents = torch.randn(6, 3), torch.randn(6, 2)
    drawn = decoder.act(states, latents, noise)
    # the change of variables from noise: log π(a) = log N(noise) − Σ log σ_i
    _, std = decoder.moments(states, latents, drawn)
    base = Normal(0.0, 1.0).log_prob(noise).sum(-1)
    torch.testing.assert_close(
        decoder.log_prob(states, latents, drawn), base - std.log().sum(-1), rtol=1e-4, atol=1e-4
    )
    mean = decoder.act(states, latents)
    torch.testing.assert_close(mean, decoder.moments(states, latents, mean)[0])

    # and in numbers: E[−log π(a)] over draws is the entropy Σ E[log σ_i] + a/2 log 2πe
    states, latents = states[:1].expand(4000, -1), latents[:1].expand(4000, -1)
    drawn = decoder.act(states, latents, torch.randn(4000, 4))
    _, std = decoder.moments(states, latents, drawn)
    entropy = std.log().sum(-1).mean() + 2 * math.log(2 * math.pi * math.e)
    found = -decoder.log_prob(states, latents, drawn).mean()
    assert abs(found - entropy) < 4 * math.sqrt(2 / 4000)  # a/2 is the variance of Σ noise²/2


def test_actions_stay_inside_their_bounds():
    torch.manual_seed(0)
    decoder = AutoregressiveDecoder(1, 1, 2, width=8, low=(-0.1, 0.0), high=(0.1, 2.0))
    drawn = decoder.act(torch.zeros(500, 1), torch.zeros(500, 1), 3 * torch.randn(500, 2))
    assert drawn[:, 0].abs().max() <= 0.1 and 0 <= drawn[:, 1].min() <= drawn[:, 1].max() <= 2


@pytest.fixture
def categories():
    torch.manual_seed(0)
    return awake(CategoricalDecoder(3, 2, 5, width=16), 3.0)


def test_categories_sum_to_one_and_are_drawn_as_often(categories):
    states, latents = torch.randn(1, 3), torch.randn(1, 2)
    each = torch.arange(5.0)[:, None]
    shares = categories.log_prob(states, latents, each).exp()
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0))

    states, latents = states.expand(20_000, -1), latents.expand(20_000, -1)
    drawn = categories.act(states, latents, torch.randn(20_000, 1))
    assert drawn.shape == (20_000, 1)
    found = torch.bincount(drawn[:, 0].long(), minlength=5) / 20_000
    torch.testing.assert_close(found, shares, atol=4 * 0.5 / math.sqrt(20_000), rtol=0)
    assert categories.act(states, latents)[0, 0] == shares.argmax()
    assert categories.encode(torch.tensor([[2.0]])).tolist() == [[0, 0, 1, 0, 0]]


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return SnippetEncoder(3, 2, 4, width=8, layers=2)


def window(rows=4, horizon=6):
    mask = torch.ones(rows, horizon, dtype=torch.bool)
    return torch.randn(rows, horizon, 3), torch.randn(rows, horizon, 2), mask


def test_masked_steps_change_nothing(encoder):
    states, actions, mask = window()
    for row, steps in enumerate((6, 4, 1)):
        mask[row, steps:] = False
    with_rubbish = (
        states.masked_fill(~mask[..., None], 1e3),
        actions.masked_fill(~mask[..., None], -9),
    )
    found = encoder(states, actions, mask)
    for given, other in zip(found, encoder(*with_rubbish, mask), strict=True):
        torch.testing.assert_close(given, other, rtol=0, atol=0)
    for row, steps in enumerate((6, 4, 1)):  # as if the padding had not been there at all
        alone = encoder(
            states[row : row + 1, :steps],
            actions[row : row + 1, :steps],
            mask[row : row + 1, :steps],
        )
        for given, other in zip(found, alone, strict=True):
            torch.testing.assert_close(given[row], other[0])


def test_no_gradient_moves_what_holds_masked_steps(encoder):
    states, actions, mask = window()
    mask[1, 2:] = False
    states.requires_grad_()
    mean, std = encoder(states, actions, mask)
    (mean.sum() + std.sum()).backward()
    assert (states.grad[1, 2:] == 0).all() and (states.grad[1, :2] != 0).any()
    for layer in encoder.layers:
        for weight in (layer.weight_ih_l0, layer.weight_ih_l0_reverse):
            assert (weight.grad[:, -1] == 0).all() and (weight.grad[:, :-1] != 0).any()


def test_every_step_reaches_the_latent(encoder):
    states, actions, mask = window()
    states.requires_grad_()
    actions.requires_grad_()
    mean, std = awake(encoder)(states, actions, mask)
    assert (std > 0).all() and mean.shape == std.shape == (4, 4)
    mean.sum().backward()
    assert (states.grad.abs().sum(-1) > 0).all() and (actions.grad.abs().sum(-1) > 0).all()


def test_kl_is_that_of_torch_and_of_draws():
    torch.manual_seed(0)
    moments = [torch.randn(3, 4), torch.rand(3, 4) + 0.2, torch.randn(3, 4), torch.rand(3, 4) + 0.2]
    found = gaussian_kl(*moments)
    own, prior = Normal(*moments[:2]), Normal(*moments[2:])
    torch.testing.assert_close(found, kl_divergence(own, prior))
    drawn = own.sample((100_000,))
    ratio = own.log_prob(drawn) - prior.log_prob(drawn)
    error = ratio.std(0) / math.sqrt(100_000)
    assert ((ratio.mean(0) - found).abs() < 5 * error).all()
    assert (gaussian_kl(*moments[:2], *moments[:2]).abs() < 1e-6).all()


def test_heads_have_the_shapes_they_promise():
    states = torch.randn(5, 3)
    mean, std = GaussianPrior(3, 2, width=8)(states)
    assert mean.shape == std.shape == (5, 2) and (std > 0).all()
    assert WorldModel(3, 2, hidden=(8,))(states, mean).shape == (5, 3)


def test_pictures_come_back_as_they_were_laid_out():
    encoder, decoder = ImageEncoder(16, 4, width=8), ImageDecoder(16, 4, width=8)
    seen = []
    encoder.convolutions[0].register_forward_hook(lambda _, given, __: seen.append(given[0]))
    frames = torch.arange(2 * 16 * 16 * 3.0).view(2, -1)
    mean, std = encoder(frames)
    assert mean.shape == std.shape == (2, 4)
    # rows, columns, channels: the number at (row 1, column 2, green) is 1 · 48 + 2 · 3 + 1
    assert seen[0].shape == (2, 3, 16, 16) and seen[0][0, 1, 1, 2] == 55
    assert decoder(mean).shape == frames.shape
    with pytest.raises(ValueError, match="multiple of 8"):
        ImageEncoder(20)
