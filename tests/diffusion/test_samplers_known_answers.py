"""Samplers on data whose exact denoiser is known."""

import math

import numpy as np
import pytest
import torch

from lit_offrl.diffusion import DDIM, DDPM, DPMSolverPP, Schedule

MEAN, STD = 0.7, 0.5
SAMPLERS = [
    DDPM(variance="beta"),
    DDPM(variance="posterior"),
    DDIM(),
    DDIM(eta=0.5),
    DPMSolverPP(),
]
SCHEDULES = [("linear", 1000), ("cosine", 400), ("vp", 400)]


@pytest.mark.parametrize(("kind", "num_steps"), SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_gaussian_mean_and_standard_deviation(gaussian, seeded, sampler, kind, num_steps):
    schedule, rows = Schedule(kind, num_steps), 10_000
    (alpha,), (sigma,) = schedule.levels(np.array([num_steps]))
    # Start from q(x_T), which for `vp` is not quite N(0, 1).
    start = torch.randn(rows, 1, generator=seeded(1)) * math.hypot(alpha * STD, sigma)
    samples = sampler.sample(
        gaussian(MEAN, STD).denoiser(schedule),
        schedule,
        (rows, 1),
        prediction="x0",
        generator=seeded(2),
        initial_noise=start + alpha * MEAN,
    )
    # Four standard errors, and 1.5 % for steps of finite length.
    assert samples.mean().item() == pytest.approx(MEAN, abs=4 * STD / rows**0.5)
    assert samples.std().item() == pytest.approx(STD, rel=4 / (2 * rows) ** 0.5 + 0.015)


@pytest.mark.parametrize("kind", ["linear", "cosine", "vp"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_samples_do_not_depend_on_what_is_predicted(gaussian, seeded, sampler, kind):
    schedule = Schedule(kind, 50)
    samples = [
        sampler.sample(
            gaussian(MEAN, STD).denoiser(schedule, prediction),
            schedule,
            (64, 2),
            prediction=prediction,
            generator=seeded(3),
            dtype=torch.float64,
        )
        for prediction in ("x0", "epsilon", "v")
    ]
    torch.testing.assert_close(samples[1], samples[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(samples[2], samples[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "sampler", [DDPM(), DDIM(num_steps=100), DPMSolverPP(num_steps=40)], ids=repr
)
def test_mixture_mode_weights(mixture, seeded, sampler):
    weight, rows = 0.3, 10_000
    schedule = Schedule("cosine", 256)
    denoise = mixture([weight, 1 - weight], [-1.0, 1.5], [0.2, 0.3]).denoiser(schedule, "epsilon")
    samples = sampler.sample(
        denoise, schedule, (rows, 1), prediction="epsilon", generator=seeded(4)
    )
    low = samples < 0.2
    share_error = 4 * (weight * (1 - weight) / rows) ** 0.5
    assert low.double().mean().item() == pytest.approx(weight, abs=share_error + 0.005)
    for mode, mean, std in ((samples[low], -1.0, 0.2), (samples[~low], 1.5, 0.3)):
        error = 4 * std / len(mode) ** 0.5
        assert mode.mean().item() == pytest.approx(mean, abs=error + 0.01)
        assert mode.std().item() == pytest.approx(std, rel=4 / (2 * len(mode)) ** 0.5 + 0.03)


@pytest.mark.parametrize("num_steps", [100, 7])
def test_ddpm_step_is_the_posterior_of_bayes(num_steps):
    """q(x_s | x_t, x_0) from x_s ~ N(α_s x_0, σ_s²), x_t ~ N(r x_s, β): precisions add."""
    schedule = Schedule("cosine", 100)
    steps = DDPM(num_steps, variance="posterior").steps(schedule)
    wide = DDPM(num_steps, variance="beta").steps(schedule)
    for step, after, wide_step in zip(steps[:-1], steps[1:], wide[:-1], strict=True):
        r = step.alpha / after.alpha
        beta = step.sigma**2 - r**2 * after.sigma**2
        precision = 1 / after.sigma**2 + r**2 / beta
        assert step.x0 == pytest.approx(after.alpha / after.sigma**2 / precision)
        assert step.x == pytest.approx(r / beta / precision)
        assert step.noise == pytest.approx(precision**-0.5)
        assert wide_step[:6] == step[:6]
        assert wide_step.noise == pytest.approx(beta**0.5)
    for last in (steps[-1], wide[-1]):
        assert (last.x0, last.x, last.previous, last.noise) == pytest.approx((1, 0, 0, 0))


def test_ddpm_step_samples_that_posterior(seeded):
    schedule, rows = Schedule("vp", 5), 20_000
    sampler = DDPM(num_steps=2, variance="posterior")
    seen = []

    def denoise(x, t):
        seen.append(x)
        return torch.full_like(x, 0.4)

    start = torch.full((rows, 1), -0.3)
    sampler.sample(
        denoise,
        schedule,
        (rows, 1),
        prediction="x0",
        generator=seeded(5),
        initial_noise=start,
    )
    (a_t, a_s), (s_t, s_s) = schedule.levels(np.array([5, 1]))
    beta = 1 - (a_t / a_s) ** 2
    mean = (a_s * beta * 0.4 + a_t / a_s * s_s**2 * -0.3) / s_t**2
    std = s_s / s_t * beta**0.5
    assert seen[1].mean().item() == pytest.approx(mean, abs=4 * std / rows**0.5)
    assert seen[1].std().item() == pytest.approx(std, rel=4 / (2 * rows) ** 0.5)


def test_ddim_with_eta_one_is_ddpm_with_posterior_variance():
    schedule = Schedule("vp", 60)
    for num_steps in (None, 9):
        ancestral = DDPM(num_steps, variance="posterior").steps(schedule)
        implicit = DDIM(num_steps, eta=1.0).steps(schedule)
        np.testing.assert_allclose(implicit, ancestral, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "num_steps"), [("linear", 1000), ("cosine", 1000), ("vp", 1000)])
def test_solvers_converge_to_the_exact_flow_each_at_its_order(gaussian, kind, num_steps):
    schedule, data = Schedule(kind, num_steps), gaussian(MEAN, STD)
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]

    def error(sampler):
        samples = sampler.sample(
            data.denoiser(schedule),
            schedule,
            start.shape,
            prediction="x0",
            dtype=torch.float64,
            initial_noise=start,
        )
        return (samples - data.flow(start, schedule)).abs().max().item()

    # Four times the steps: errors fall about 4-fold at order 1, 16-fold at order 2.
    for solver in (DDIM, DPMSolverPP):
        assert error(solver(20)) / error(solver(80)) > 0.85 * 4**solver.order
    for few in (5, 10, 20, 40):
        assert error(DPMSolverPP(few)) < error(DDIM(few))
    # Both agree with the exact map, so with each other.
    assert error(DDIM(1000)) < 5e-3
    assert error(DPMSolverPP(100)) < 5e-3


def test_the_two_exact_denoisers_agree(gaussian, mixture):
    """The closed form that the Gaussian tests rest on against the mixture's formula."""
    schedule, x, t = Schedule("vp", 50), torch.randn(50, 2), torch.arange(1, 51)
    one, two = gaussian(MEAN, STD), mixture([0.4, 0.6], [MEAN, MEAN], [STD, STD])
    torch.testing.assert_close(one.denoiser(schedule)(x, t), two.denoiser(schedule)(x, t))
