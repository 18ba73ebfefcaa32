"""What a denoiser predicts, how predictions convert into each other, and the loss.

With ``x_t = α x_0 + σ ε`` a denoiser may predict the noise ε (Ho et al. 2020), the data x_0, or the
velocity ``v = α ε − σ x_0`` (Salimans & Ho 2022, section 4). Given x_t, any one gives the others.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lit_offrl.common.randomness import Generator, draw_normal, draw_times
from lit_offrl.diffusion.denoiser import Denoise, Rows
from lit_offrl.diffusion.schedules import Schedule, unknown

Prediction = Literal["epsilon", "x0", "v"]
Weighting = Literal["uniform", "min_snr"]
Level = Float[Tensor, " B ..."] | float
"""α_t or σ_t: one number for all rows, or (B, 1, …)."""


def to_x0(output: Rows, x_t: Rows, alpha: Level, sigma: Level, prediction: Prediction) -> Rows:
    """The data x_0 that a denoiser's ``output`` means at ``x_t``."""
    match prediction:
        case "epsilon":
            return (x_t - sigma * output) / alpha
        case "x0":
            return output
        case "v":
            return alpha * x_t - sigma * output
    raise unknown("prediction", prediction, get_args(Prediction))


def to_epsilon(output: Rows, x_t: Rows, alpha: Level, sigma: Level, prediction: Prediction) -> Rows:
    """The noise ε that a denoiser's ``output`` means at ``x_t``."""
    match prediction:
        case "epsilon":
            return output
        case "x0":
            return (x_t - alpha * output) / sigma
        case "v":
            return sigma * x_t + alpha * output
    raise unknown("prediction", prediction, get_args(Prediction))


def to_v(output: Rows, x_t: Rows, alpha: Level, sigma: Level, prediction: Prediction) -> Rows:
    """The velocity v that a denoiser's ``output`` means at ``x_t``."""
    match prediction:
        case "epsilon":
            return (output - sigma * x_t) / alpha
        case "x0":
            return (alpha * x_t - output) / sigma
        case "v":
            return output
    raise unknown("prediction", prediction, get_args(Prediction))


def training_target(
    x0: Rows, noise: Rows, alpha: Level, sigma: Level, prediction: Prediction
) -> Rows:
    """What the denoiser should have said at ``α x0 + σ noise``."""
    match prediction:
        case "epsilon":
            return noise
        case "x0":
            return x0
        case "v":
            return alpha * noise - sigma * x0
    raise unknown("prediction", prediction, get_args(Prediction))


def loss_weight(
    snr: Float[Tensor, " B"],
    *,
    prediction: Prediction,
    weighting: Weighting = "uniform",
    gamma: float | int = 5.0,
) -> Float[Tensor, " B"]:
    """Weight (B,) of the squared error of a prediction at signal-to-noise ratio ``snr`` (B,).

    ``min_snr`` (Hang et al. 2023) weighs the error of x_0 by min(SNR, γ). The same
    error in ε is SNR times, as v (SNR + 1) times as large, so the weight is divided by that
    and the weighted loss is the same whatever is predicted.
    """
    match weighting:
        case "uniform":
            return torch.ones_like(snr)
        case "min_snr":
            weight = snr.clamp(max=gamma)
        case _:
            raise unknown("weighting", weighting, get_args(Weighting))
    match prediction:
        case "epsilon":
            return weight / snr
        case "x0":
            return weight
        case "v":
            return weight / (snr + 1)
    raise unknown("prediction", prediction, get_args(Prediction))


def diffusion_loss(
    denoise: Denoise,
    schedule: Schedule,
    x0: Rows,
    *,
    generator: Generator = None,
    prediction: Prediction = "epsilon",
    weighting: Weighting = "uniform",
    gamma: float | int = 5.0,
    entries: Tensor | None = None,
) -> Float[Tensor, " B"]:
    """Denoising loss (B,): weighted squared error at t uniform on 1 … T, mean over event dims.

    Rows are left apart so that the caller can mask or weigh them. The error is taken in float32 at
    least, whatever autocast makes the denoiser return.

    Args:
        denoise: Maps x_t (B, …) and t (B,) int64 to a prediction (B, …).
        schedule: The noise schedule, on the device of ``x0``.
        x0: Data (B, …) of any event shape.
        generator: Source of t and ε. t is drawn first.
        prediction: What the denoiser predicts.
        weighting: See `loss_weight`.
        gamma: Parameter γ of Min-SNR-γ.
        entries: Weights of the squared errors of an event's numbers before their mean, of a shape
            that broadcasts to (B, …); all 1 if None.
    """
    rows, device = x0.shape[0], x0.device
    t = draw_times(rows, schedule.num_steps, generator, device=device)
    noise = draw_normal(x0.shape, generator, device=device, dtype=x0.dtype)
    output = denoise(schedule.q_sample(x0, t, noise), t)
    alpha, sigma = schedule.alpha(t, x0.ndim), schedule.sigma(t, x0.ndim)
    target = training_target(x0, noise, alpha, sigma, prediction)
    dtype = torch.promote_types(target.dtype, torch.float32)
    error = (output.to(dtype) - target.to(dtype)).square()
    error = (error if entries is None else entries * error).reshape(rows, -1).mean(1)
    weight = loss_weight(schedule.snr(t), prediction=prediction, weighting=weighting, gamma=gamma)
    return weight * error
