import pytest
import torch

from lit_offrl.common.randomness import ShardedGenerator, draw_times
from lit_offrl.diffusion import (
    Schedule,
    diffusion_loss,
    loss_weight,
    to_epsilon,
    to_v,
    to_x0,
    training_target,
)

PREDICTIONS = ("epsilon", "x0", "v")
TO = {"epsilon": to_epsilon, "x0": to_x0, "v": to_v}


@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("target", PREDICTIONS)
def test_every_prediction_converts_into_every_other(source, target):
    schedule = Schedule("vp", 20)
    t = torch.arange(1, 21)
    x0, noise = torch.randn(20, 3, 2), torch.randn(20, 3, 2)
    x_t = schedule.q_sample(x0, t, noise)
    levels = schedule.alpha(t, 3), schedule.sigma(t, 3)
    output = training_target(x0, noise, *levels, source)
    converted = TO[target](output, x_t, *levels, source)
    expected = training_target(x0, noise, *levels, target)
    torch.testing.assert_close(converted, expected, rtol=1e-4, atol=1e-4)


def test_velocity_is_the_derivative_along_the_circle():
    # α = cos φ, σ = sin φ: v = dx/dφ.
    phi = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    x0, noise = 1.7, -0.4
    (derivative,) = torch.autograd.grad(phi.cos() * x0 + phi.sin() * noise, phi)
    v = training_target(
        torch.tensor([x0]), torch.tensor([noise]), phi.cos().item(), phi.sin().item(), "v"
    )
    assert v.item() == pytest.approx(derivative.item(), rel=1e-6)


def test_min_snr_weights():
    snr = torch.tensor([0.01, 1.0, 5.0, 100.0])
    weigh = lambda prediction: loss_weight(snr, prediction=prediction, weighting="min_snr")  # noqa: E731
    torch.testing.assert_close(weigh("x0"), torch.tensor([0.01, 1.0, 5.0, 5.0]))
    torch.testing.assert_close(weigh("epsilon"), torch.tensor([1.0, 1.0, 1.0, 0.05]))
    torch.testing.assert_close(weigh("v"), torch.tensor([0.01 / 1.01, 0.5, 5 / 6, 5 / 101]))
    assert (loss_weight(snr, prediction="v", weighting="uniform") == 1).all()
    capped = loss_weight(snr, prediction="x0", weighting="min_snr", gamma=2.0)
    assert capped.tolist() == pytest.approx([0.01, 1.0, 2.0, 2.0])


def loss_and_gradient(prediction, weighting, rows=64):
    """One network that guesses x_0, seen through each prediction, on the same draws."""
    schedule = Schedule("cosine", 32)
    x0 = torch.randn(rows, 3, generator=torch.Generator().manual_seed(1))
    guess = torch.zeros(rows, 3, requires_grad=True)

    def denoise(x_t, t):
        return TO[prediction](guess, x_t, schedule.alpha(t), schedule.sigma(t), "x0")

    generator = torch.Generator().manual_seed(2)
    t = draw_times(rows, 32, torch.Generator().manual_seed(2), device="cpu")
    loss = diffusion_loss(
        denoise, schedule, x0, generator=generator, prediction=prediction, weighting=weighting
    )
    (gradient,) = torch.autograd.grad(loss.sum(), guess)
    return loss.detach(), gradient, schedule.snr(t)


def test_min_snr_is_one_loss_whatever_is_predicted():
    loss, gradient, snr = loss_and_gradient("x0", "min_snr")
    assert (snr > 5).any() and (snr < 5).any()
    for prediction in ("epsilon", "v"):
        other_loss, other_gradient, _ = loss_and_gradient(prediction, "min_snr")
        torch.testing.assert_close(other_loss, loss, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("prediction", "extra"), [("epsilon", 0.0), ("v", 1.0)])
def test_uniform_losses_differ_by_the_signal_to_noise_ratio(prediction, extra):
    loss, _, snr = loss_and_gradient("x0", "uniform")
    other, _, _ = loss_and_gradient(prediction, "uniform")
    torch.testing.assert_close(other, loss * (snr + extra), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("event", [(), (4,), (3, 2)])
def test_the_exact_denoiser_of_one_point_has_no_loss(gaussian, prediction, event):
    schedule = Schedule("vp", 10)
    loss = diffusion_loss(
        gaussian(0.5, 0.0).denoiser(schedule, prediction),
        schedule,
        torch.full((7, *event), 0.5),
        prediction=prediction,
    )
    assert loss.shape == (7,)
    torch.testing.assert_close(loss, torch.zeros(7), rtol=0, atol=1e-9)


def test_loss_is_the_mean_over_event_dimensions(seeded):
    schedule = Schedule("vp", 10)
    x0 = torch.zeros(5, 2, 3)
    loss = diffusion_loss(lambda x_t, t: torch.zeros_like(x_t), schedule, x0, generator=seeded(3))
    generator = seeded(3)
    draw_times(5, 10, generator, device="cpu")
    noise = torch.randn(5, 2, 3, generator=generator)
    torch.testing.assert_close(loss, noise.square().mean((1, 2)))


def test_entries_weigh_the_errors_of_an_event(seeded):
    x0, schedule = torch.arange(12.0).view(2, 3, 2), Schedule("vp", 5)
    entries = torch.tensor([[1.0, 0.0], [2.0, 0.5], [0.0, 0.0]])
    loss = diffusion_loss(
        lambda x, t: torch.zeros_like(x),
        schedule,
        x0,
        generator=seeded(0),
        prediction="x0",
        entries=entries,
    )
    torch.testing.assert_close(loss, (entries * x0.square()).mean((1, 2)))


def test_times_are_uniform_on_one_to_t(seeded):
    rows, num_steps = 50_000, 5
    counts = draw_times(rows, num_steps, seeded(), device="cpu").bincount(minlength=num_steps + 1)
    assert counts[0] == 0 and len(counts) == num_steps + 1
    deviation = (counts[1:] - rows / num_steps).abs().max().item()
    assert deviation < 4.5 * (rows * 0.2 * 0.8) ** 0.5


def test_two_ranks_see_the_losses_of_one_process(gaussian):
    schedule = Schedule("cosine", 50)
    x0 = torch.randn(8, 3)
    denoise = gaussian(0.1, 0.7).denoiser(schedule, "v")
    losses = [
        diffusion_loss(
            denoise,
            schedule,
            x0[start : start + size],
            generator=ShardedGenerator(5, 17, rank=rank, world_size=world_size),
            prediction="v",
        )
        for start, size, rank, world_size in [(0, 8, 0, 1), (0, 4, 0, 2), (4, 4, 1, 2)]
    ]
    assert torch.equal(losses[0], torch.cat(losses[1:]))


def test_under_autocast_the_loss_stays_in_float32():
    net, schedule = torch.nn.Linear(3, 3), Schedule("cosine", 8)
    with torch.autocast("cpu", torch.bfloat16):
        loss = diffusion_loss(lambda x, t: net(x), schedule, torch.randn(6, 3))
    assert loss.dtype == torch.float32
    loss.mean().backward()
    assert net.weight.grad.isfinite().all()


def test_an_unknown_weighting_is_not_taken_for_another():
    # A ConfigError, or a type error where annotations are checked at run time.
    with pytest.raises(Exception, match="min_snrr"):
        loss_weight(torch.ones(1), prediction="x0", weighting="min_snrr")
