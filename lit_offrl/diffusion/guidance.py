"""Guidance: makes a denoiser of a denoiser, for use with every sampler and every prediction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lit_offrl.common.randomness import given_noise
from lit_offrl.diffusion.denoiser import (
    ConditionalDenoise,
    Denoise,
    Encoded,
    Rows,
    Times,
    map_encoded,
)
from lit_offrl.diffusion.schedules import Schedule
from lit_offrl.diffusion.targets import Prediction, training_target

LogDensity = Callable[[Tensor, Tensor], Tensor]
"""x_t (B, …) and t (B,) to (B,): log p(y | x_t) up to a constant, or for example Q(s, x_t)."""


def row_gradient(value: Callable[[Tensor], Tensor], x: Rows) -> Rows:
    """∇ value(x) (B, …) of each row of x (B, …), whose value (B,) depends on that row alone.

    No gradient flows on through it. Sampling usually runs under ``no_grad`` or inference mode; what
    ``value`` is given is a tensor of neither.
    """
    if (given := given_noise()) is not None:
        given.differentiates = True
    with torch.inference_mode(False), torch.enable_grad():
        at = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(at).sum(), at)
    return gradient


def classifier_free_guidance(
    denoise: ConditionalDenoise, conditional: Encoded, unconditional: Encoded, scale: float | int
) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022): ``u + scale · (c − u)``.

    c is the conditional, u the unconditional prediction; of ε, x_0 or v alike, for these convert
    into each other by affine maps. Papers that write (1 + w) c − w u, as Ho & Salimans do and ACD
    with its ω, mean ``scale = w + 1``.

    Scale 1 is c and costs one forward of B rows; so does scale 0, which is u. Any other costs one
    forward of 2 B rows, the conditional ones first; the encodings are joined once, here.

    Args:
        denoise: The denoiser, which takes an encoded condition.
        conditional: Encoded condition of B rows.
        unconditional: Encoded null condition of the same structure, of B rows or of one.
        scale: Factor w of ``u + w (c − u)``.
    """
    if scale in (0, 1):
        encoded = conditional
        if scale == 0:
            encoded = map_encoded(lambda c, u: u.expand_as(c), conditional, unconditional)
        return lambda x_t, t: denoise(x_t, t, encoded)

    both = map_encoded(lambda c, u: torch.cat([c, u.expand_as(c)]), conditional, unconditional)

    def guided(x_t: Rows, t: Times) -> Rows:
        # One time for all rows stays one expanded number, which denoisers may check for.
        times = t[:1].expand(2 * t.shape[0]) if t.stride() == (0,) else torch.cat([t, t])
        output = denoise(torch.cat([x_t, x_t]), times, both)
        # Leave the precision of autocast before the difference is magnified.
        c, u = output.to(x_t.dtype).unflatten(0, (2, -1))
        return u + scale * (c - u)

    return guided


def classifier_guidance(
    denoise: Denoise,
    log_density: LogDensity,
    scale: float | int,
    *,
    schedule: Schedule,
    prediction: Prediction,
) -> Denoise:
    """Classifier guidance (Dhariwal & Nichol 2021, eq. 14): adds ``scale · ∇ log p(y | x_t)``.

    The gradient g is added to the score −ε/σ, so ε̂ = ε − scale · σ g; the same change is made to a
    prediction of x_0 or v. Each step costs a forward and a backward of ``log_density`` besides the
    denoiser's forward; no gradient flows on through g to x_t.

    Args:
        denoise: The denoiser with its condition applied.
        log_density: Differentiable in x_t; rows must not depend on each other. Exact guidance needs
            it at each noise level t; ∇_a Q(s, a) at the noisy action ignores t. Tensors that it
            holds must not come from inference mode.
        scale: Factor of the gradient.
        schedule: The schedule that the denoiser was trained with.
        prediction: What the denoiser predicts.
    """

    def guided(x_t: Rows, t: Times) -> Rows:
        gradient = row_gradient(lambda x: log_density(x, t.clone()), x_t)
        alpha, sigma = schedule.alpha(t, x_t.ndim), schedule.sigma(t, x_t.ndim)
        # How (x_0, ε) move at a fixed x_t = α x_0 + σ ε; targets are linear in the pair.
        noise = -scale * sigma * gradient
        x0 = scale * sigma**2 / alpha * gradient
        change = training_target(x0, noise, alpha, sigma, prediction)
        return denoise(x_t, t).to(x_t.dtype) + change.to(x_t.dtype)

    return guided
