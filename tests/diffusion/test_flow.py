"""Flows whose exact velocity and end are known, and the promises of their samplers."""

from itertools import pairwise

import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.diffusion import Euler, Heun, flow_loss, flow_point, make_flow_sampler

MEAN, STD = 0.7, 0.3
KINDS = [Euler, Heun]


def gaussian_velocity(x, t):
    """E[a − x_0 | x_t] of data N(MEAN, STD²) and noise that is independent of them."""
    t = t.reshape(-1, *(1,) * (x.ndim - 1))
    variance = (1 - t) ** 2 + (t * STD) ** 2
    return MEAN + (t * STD**2 - (1 - t)) / variance * (x - t * MEAN)


def straight_velocity(x, t):
    """The velocity of paths from x_0 straight to MEAN + STD · x_0."""
    t = t.reshape(-1, *(1,) * (x.ndim - 1))
    return MEAN + (STD - 1) / (1 + t * (STD - 1)) * (x - t * MEAN)


def noise(rows=400):
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(0)).double()


def draw(sampler, velocity, start):
    return sampler.sample(velocity, start.shape, initial_noise=start, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gaussians_flow_ends_where_the_data_are(kind):
    start = noise()
    end = draw(kind(2000 // kind.order), gaussian_velocity, start)
    # the flow is linear, and takes quantiles to quantiles
    torch.testing.assert_close(end, MEAN + STD * start, rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_falls_with_the_order_of_the_method(kind):
    start = noise(50)
    exact = MEAN + STD * start
    errors = [(draw(kind(n), gaussian_velocity, start) - exact).norm() for n in (40, 80, 160)]
    for coarse, fine in pairwise(errors):
        assert (coarse / fine).log2().item() == pytest.approx(kind.order, abs=0.1)


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_straight_paths_need_one_step(kind, num_steps):
    start = noise(50)
    torch.testing.assert_close(draw(kind(num_steps), straight_velocity, start), MEAN + STD * start)


def test_a_path_is_straight_and_its_velocity_constant():
    start, data = noise(5), noise(10)[5:]
    for t in (0.0, 0.25, 1.0):
        times = torch.full((5,), t)
        expected = (1 - t) * start + t * data
        torch.testing.assert_close(flow_point(start, data, times), expected, rtol=0, atol=1e-12)


def test_the_loss_is_the_velocitys_squared_error():
    """At a known t and noise, and least at the exact velocity: Var[a − x_0 | x_t]."""
    seeded = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    data = MEAN + STD * torch.randn(20_000, 3, 2)
    generator = seeded()
    t = torch.rand(20_000, generator=generator)
    start = torch.randn(20_000, 3, 2, generator=generator)
    seen = []

    def velocity(x, times):
        seen.append((x, times))
        return gaussian_velocity(x, times)

    loss = flow_loss(velocity, data, generator=seeded())
    ((x, times),) = seen
    assert torch.equal(times, t)
    column = t[:, None, None]
    torch.testing.assert_close(x, (1 - column) * start + column * data)
    target = data - start
    expected = (gaussian_velocity(x, t) - target).square().mean(dim=(1, 2))
    torch.testing.assert_close(loss, expected)
    # the variance that no velocity removes: 1 + s² − Cov(a − x_0, x_t)² / Var x_t, over all t
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)
    left = 1 + STD**2 - (grid * STD**2 - (1 - grid)) ** 2 / ((1 - grid) ** 2 + (grid * STD) ** 2)
    assert loss.mean().item() == pytest.approx(torch.trapezoid(left, grid).item(), rel=0.01)
    worse = flow_loss(lambda x, t: gaussian_velocity(x, t) + 0.1, data, generator=seeded())
    assert (worse.mean() - loss.mean()).item() == pytest.approx(0.01, abs=0.002)


@pytest.mark.parametrize("kind", KINDS)
def test_times_are_one_number_for_all_rows_once_a_forward(kind):
    seen = []

    def velocity(x, t):
        assert t.shape == (6,) and t.stride() == (0,) and t.dtype == x.dtype
        seen.append(t[0].item())
        return 0.5 * x

    assert kind(4).sample(velocity, (6, 3)).shape == (6, 3)
    begins = [0.0, 0.25, 0.5, 0.75]
    both = [time for begin in begins for time in (begin, begin + 0.25)]
    assert seen == (begins if kind is Euler else both)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_the_generators_and_scaled_by_the_temperature(kind):
    whole, first, second = (
        kind(3).sample(
            gaussian_velocity,
            (rows, 3),
            generator=ShardedGenerator(7, rank=rank, world_size=world_size),
        )
        for rows, rank, world_size in [(8, 0, 1), (4, 0, 2), (4, 1, 2)]
    )
    assert torch.equal(whole, torch.cat([first, second]))
    start = noise(5)
    warm = draw(kind(3), gaussian_velocity, 0.25 * start)
    torch.testing.assert_close(draw(kind(3, 0.25), gaussian_velocity, start), warm)
    cold = kind(3, 0.0).sample(gaussian_velocity, (5, 2))
    assert (cold == cold[0, 0]).all()
    with pytest.raises(ValueError, match=r"\(5, 2\), not \(6, 2\)"):
        kind(3).sample(gaussian_velocity, (6, 2), initial_noise=start)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow_through_and_the_device_is_not_waited_for(kind):
    scale = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    start = noise(3)
    total = lambda factor: draw(kind(3), lambda x, t: factor * x, start).sum()  # noqa: E731
    (gradient,) = torch.autograd.grad(total(scale), scale)
    with torch.no_grad():
        difference = (total(scale + 1e-6) - total(scale - 1e-6)) / 2e-6
    torch.testing.assert_close(gradient, difference, rtol=1e-4, atol=1e-6)
    # on the meta device there are no values: reading one back, a wait for a real device, fails
    assert kind(3).sample(gaussian_velocity, (6, 3), device="meta").device.type == "meta"


def test_a_sampler_by_name():
    assert make_flow_sampler("heun", 5) == Heun(5)
    assert make_flow_sampler("euler", temperature=0.5) == Euler(temperature=0.5)
    with pytest.raises(ConfigError, match=r"'heum'.*Did you mean 'heun'\?"):
        make_flow_sampler("heum")
    with pytest.raises(ConfigError, match=r"sampler 'euler': num_steps is 0: give at least 1"):
        make_flow_sampler("euler", 0)
    with pytest.raises(ConfigError, match=r"temperature is -1.0: give at least 0"):
        make_flow_sampler("heun", temperature=-1.0)
