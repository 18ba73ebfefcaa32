"""An independent implementation, step for step, on the same noise."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from lit_offrl.diffusion import DDIM, DDPM, DPMSolverPP, Schedule

STEPS, SHAPE = 20, (16, 3)
BETAS = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
PREDICTION = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}


def denoise(x, t):
    return torch.sin(3 * x) * (0.5 + t[:, None] / STEPS)


def oracle_samples(scheduler, **options):
    """What diffusers makes of the noise of seed 0; its t counts from 0, ours from 1."""
    scheduler.set_timesteps(STEPS)
    assert scheduler.timesteps.tolist() == list(range(STEPS - 1, -1, -1))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator)
    for t in scheduler.timesteps:
        output = denoise(x, (t + 1).expand(len(x)))
        if not isinstance(scheduler, DPMSolverMultistepScheduler):
            options["generator"] = generator
        x = scheduler.step(output, t, x, **options).prev_sample
    return x


def our_samples(sampler, kind, prediction):
    return sampler.sample(
        denoise,
        Schedule(kind, STEPS),
        SHAPE,
        prediction=prediction,
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize("kind", BETAS)
@pytest.mark.parametrize("num_steps", [5, 200, 1000])
def test_alpha_bar(kind, num_steps):
    oracle = DDPMScheduler(num_train_timesteps=num_steps, **BETAS[kind]).alphas_cumprod
    torch.testing.assert_close(
        Schedule(kind, num_steps).alpha_bar[1:], oracle, rtol=1e-4, atol=1e-8
    )


@pytest.mark.parametrize("kind", BETAS)
@pytest.mark.parametrize("prediction", PREDICTION)
@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_ddpm(kind, prediction, variance):
    oracle = DDPMScheduler(
        num_train_timesteps=STEPS,
        variance_type={"beta": "fixed_large", "posterior": "fixed_small"}[variance],
        prediction_type=PREDICTION[prediction],
        clip_sample=True,
        clip_sample_range=0.9,
        **BETAS[kind],
    )
    ours = our_samples(DDPM(variance=variance, clip=0.9), kind, prediction)
    torch.testing.assert_close(ours, oracle_samples(oracle), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", BETAS)
@pytest.mark.parametrize("prediction", PREDICTION)
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim(kind, prediction, eta):
    oracle = DDIMScheduler(
        num_train_timesteps=STEPS,
        prediction_type=PREDICTION[prediction],
        clip_sample=True,
        clip_sample_range=0.9,
        **BETAS[kind],
    )
    ours = our_samples(DDIM(eta=eta, clip=0.9), kind, prediction)
    # Ours takes the noise that goes with the clipped estimate; theirs does so when asked.
    theirs = oracle_samples(oracle, eta=eta, use_clipped_model_output=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", BETAS)
@pytest.mark.parametrize("prediction", PREDICTION)
def test_dpm_solver(kind, prediction):
    oracle = DPMSolverMultistepScheduler(
        num_train_timesteps=STEPS,
        prediction_type=PREDICTION[prediction],
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
        timestep_spacing="trailing",
        **BETAS[kind],
    )
    ours = our_samples(DPMSolverPP(), kind, prediction)
    torch.testing.assert_close(ours, oracle_samples(oracle), rtol=5e-3, atol=5e-3)
