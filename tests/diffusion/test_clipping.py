"""What each step clips, variance and temperature against chains that NumPy computes by hand."""

import itertools

import numpy as np
import pytest
import torch

from lit_offrl.diffusion import DDIM, DDPM, DPMSolverPP, Schedule, make_sampler, time_grid

SHAPE = (7, 2)
CLIPPINGS = ("sample", "estimate", "none")
ALPHA_BAR = np.concatenate(
    [[1.0], np.cumprod(np.exp(-0.1 / 5 - 0.5 * 9.9 * (2 * np.arange(1, 6) - 1) / 25))]
)  # of `vp` with T = 5


def epsilon(x, t):
    """A made-up denoiser of noise that leaves [−1, 1] at every time."""
    return -0.6 * x - 0.2 * t - 0.3 * x**3 / (1 + x * x)


def normals(number):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(number)]


def drawn(sampler):
    return sampler.sample(
        lambda x, t: epsilon(x, int(t[0])),
        Schedule("vp", 5),
        SHAPE,
        prediction="epsilon",
        generator=torch.Generator().manual_seed(3),
        dtype=torch.float64,
    ).numpy()


def clipped(x, clipping, what):
    return np.clip(x, -0.8, 0.8) if clipping == what else x


def idql_form(x, t, s, clipping):
    """(x − (1 − α)/√(1 − ᾱ) ε)/√α, as IDQL's code has the mean; it has no estimate to clip."""
    assert clipping != "estimate"
    alpha = ALPHA_BAR[t] / ALPHA_BAR[s]
    return (x - (1 - alpha) / np.sqrt(1 - ALPHA_BAR[t]) * epsilon(x, t)) / np.sqrt(alpha)


def ho_form(x, t, s, clipping):
    """√ᾱ_s β/(1 − ᾱ_t) x̂_0 + √α (1 − ᾱ_s)/(1 − ᾱ_t) x (Ho et al. 2020, eq. 7)."""
    alpha = ALPHA_BAR[t] / ALPHA_BAR[s]
    x0 = (x - np.sqrt(1 - ALPHA_BAR[t]) * epsilon(x, t)) / np.sqrt(ALPHA_BAR[t])
    x0 = clipped(x0, clipping, "estimate")
    weights = np.sqrt(ALPHA_BAR[s]) * (1 - alpha), np.sqrt(alpha) * (1 - ALPHA_BAR[s])
    return (weights[0] * x0 + weights[1] * x) / (1 - ALPHA_BAR[t])


@pytest.mark.parametrize("num_steps", [5, 3])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("variance", ["beta", "posterior"])
@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_ddpm_is_the_chain_by_hand(clipping, variance, temperature, num_steps):
    times = [*time_grid(num_steps, 5), 0]
    for mean in (ho_form, idql_form) if clipping != "estimate" else (ho_form,):
        noise = iter(normals(num_steps))
        x = temperature * next(noise).numpy()
        for t, s in itertools.pairwise(times):
            x = mean(x, t, s, clipping)
            if s > 0:
                beta = 1 - ALPHA_BAR[t] / ALPHA_BAR[s]
                shrunk = (1 - ALPHA_BAR[s]) / (1 - ALPHA_BAR[t]) if variance == "posterior" else 1.0
                x = x + temperature * np.sqrt(beta * shrunk) * next(noise).numpy()
            x = clipped(x, clipping, "sample")
        sampler = DDPM(
            num_steps, clip=0.8, clipping=clipping, variance=variance, temperature=temperature
        )
        np.testing.assert_allclose(drawn(sampler), x, rtol=1e-9, atol=1e-12)
        assert (np.abs(x).max() <= 0.8) == (clipping != "none")


@pytest.mark.parametrize("num_steps", [5, 3])
@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_ddim_is_the_chain_by_hand(clipping, num_steps):
    """α_s x̂_0 + √(σ_s² − n²) ε̂ + n z, with the ε̂ that goes with x̂_0 (Song et al. 2021, eq. 12)."""
    noise = iter(normals(num_steps))
    x = 0.5 * next(noise).numpy()
    for t, s in itertools.pairwise([*time_grid(num_steps, 5), 0]):
        x0 = (x - np.sqrt(1 - ALPHA_BAR[t]) * epsilon(x, t)) / np.sqrt(ALPHA_BAR[t])
        x0 = clipped(x0, clipping, "estimate")
        eps = (x - np.sqrt(ALPHA_BAR[t]) * x0) / np.sqrt(1 - ALPHA_BAR[t])
        spread = (1 - ALPHA_BAR[s]) / (1 - ALPHA_BAR[t]) * (1 - ALPHA_BAR[t] / ALPHA_BAR[s])
        n = 0.7 * np.sqrt(spread)
        x = np.sqrt(ALPHA_BAR[s]) * x0 + np.sqrt(1 - ALPHA_BAR[s] - n**2) * eps
        if s > 0:
            x = x + 0.5 * n * next(noise).numpy()
        x = clipped(x, clipping, "sample")
    sampler = DDIM(num_steps, clip=0.8, clipping=clipping, eta=0.7, temperature=0.5)
    np.testing.assert_allclose(drawn(sampler), x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_dpm_solver_is_the_chain_by_hand(clipping):
    """Lu et al. 2022, algorithm 2, whose first and last steps are of first order."""
    (x,) = (each.numpy() for each in normals(1))
    alpha, sigma = np.sqrt(ALPHA_BAR), np.sqrt(1 - ALPHA_BAR)
    before = h_before = None
    for t, s in itertools.pairwise([5, 4, 3, 2, 1, 0]):
        x0 = clipped((x - sigma[t] * epsilon(x, t)) / alpha[t], clipping, "estimate")
        slanted = x0
        if s == 0:
            x = x0
        else:
            h = np.log(alpha[s] / sigma[s]) - np.log(alpha[t] / sigma[t])
            if before is not None:
                slanted = x0 + h / (2 * h_before) * (x0 - before)
            x = sigma[s] / sigma[t] * x - alpha[s] * np.expm1(-h) * slanted
            h_before = h
        before, x = x0, clipped(x, clipping, "sample")
    sampler = DPMSolverPP(5, clip=0.8, clipping=clipping)
    np.testing.assert_allclose(drawn(sampler), x, rtol=1e-9, atol=1e-12)


def test_further_steps_clip_alike():
    plain, further = (
        drawn(DDPM(clip=0.8, clipping="sample", extra_steps=extra)) for extra in (0, 1)
    )
    estimate = (plain - np.sqrt(1 - ALPHA_BAR[1]) * epsilon(plain, 1)) / np.sqrt(ALPHA_BAR[1])
    np.testing.assert_allclose(further, np.clip(estimate, -0.8, 0.8), rtol=1e-9)


def test_a_variance_is_ddpms_alone():
    assert make_sampler("ddpm", variance="posterior") == DDPM(variance="posterior")
    assert make_sampler("ddim", variance="posterior", num_steps=2) == DDIM(2)
