"""A policy that is a diffusion model of actions: what diffusion BC, IDQL, DQL and ACD share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from lit_offrl.common.ranges import require_in
from lit_offrl.diffusion import (
    Denoise,
    Generator,
    Schedule,
    classifier_free_guidance,
    classifier_guidance,
    diffusion_loss,
    make_sampler,
    repeat_encoded,
)
from lit_offrl.nets import ResNetDenoiser, frozen_copy, polyak_update_
from lit_offrl.nets.policies import centre_and_scale

_EDGE = 1.0 - 1e-5


class DiffusionActor(nn.Module):
    """π(a | c) by a diffusion model over actions scaled to [−1, 1].

    The condition c is whatever the method puts into one vector: a state, with or without an
    advantage. ε-prediction, clipped to [−1, 1] at every step of the sampler, without which strong
    guidance leaves the actions' range.

    Args:
        condition_dim: size of c.
        action_dim: a.
        low: lower bounds (a,); −1 if None.
        high: upper bounds (a,); 1 if None.
        width: of the denoiser.
        blocks: its residual blocks.
        dropout: in its blocks.
        schedule: noise schedule.
        diffusion_steps: T.
        sampler: which sampler draws actions.
        sampling_steps: its number of steps; all T if None.
        ema_rate: rate of the averaged denoiser that acts.

    Raises:
        ConfigError: a number out of its range, or more sampling steps than T.
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        condition_dim: int,
        action_dim: int,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
        *,
        width: int = 256,
        blocks: int = 3,
        dropout: float = 0.1,
        schedule: str = "vp",
        diffusion_steps: int = 5,
        sampler: str = "ddpm",
        sampling_steps: int | None = None,
        ema_rate: float = 0.001,
    ) -> None:
        super().__init__()
        require_in("[1, inf)", diffusion_steps=diffusion_steps, sampling_steps=sampling_steps)
        require_in("(0, 1]", actor_ema_rate=ema_rate)
        centre, scale = centre_and_scale(action_dim, low, high)
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)
        self.action_dim = action_dim
        self.ema_rate = ema_rate
        self.schedule = Schedule(schedule, diffusion_steps)
        self.denoiser = ResNetDenoiser(
            action_dim, condition_dim, diffusion_steps, width=width, blocks=blocks, dropout=dropout
        )
        self.average = frozen_copy(self.denoiser)
        self.sampler = make_sampler(sampler, num_steps=sampling_steps, clip=1.0)
        self.sampler.steps(self.schedule)  # refuses what could not act, before it is trained

    def loss(self, condition: Tensor, actions: Tensor, noise: Generator) -> Tensor:
        """Denoising loss of each row (B,) for the data's actions (B, a) under c (B, c)."""
        unit = ((actions - self.centre) / self.scale).clamp(-_EDGE, _EDGE)
        encoded = self.denoiser.encode(condition)
        return diffusion_loss(
            lambda x, t: self.denoiser.denoise(x, t, encoded), self.schedule, unit, generator=noise
        )

    def sample(
        self,
        condition: Tensor,
        *,
        number: int = 1,
        absent: Tensor | None = None,
        guidance: float = 1.0,
        log_density: Callable[[Tensor], Tensor] | None = None,
        density_scale: float = 0.0,
        noise: Generator = None,
        denoiser: ResNetDenoiser | None = None,
    ) -> Tensor:
        """Draw actions, (S, number, a); each state's condition and the times are encoded once.

        Args:
            condition: c, (S, c).
            number: actions a state.
            absent: the null condition (S, c) of classifier-free guidance.
            guidance: w of ``u + w (c − u)``; 1 needs no null condition.
            log_density: for classifier guidance: differentiable in actions (S · number, a),
                state-major; (S · number,) values such as Q(s, a).
            density_scale: of its gradient.
            noise: where the numbers come from; the global generator if None.
            denoiser: which weights; the averaged ones by default.
        """
        net = self.average if denoiser is None else denoiser
        step = partial(net.denoise, times=net.encode_times())
        encoded = repeat_encoded(net.encode(condition), number)
        denoise: Denoise = partial(step, encoded=encoded)
        if absent is not None:
            null = repeat_encoded(net.encode(absent), number)
            denoise = classifier_free_guidance(step, encoded, null, guidance)
        if log_density is not None:
            value = log_density
            denoise = classifier_guidance(
                denoise,
                lambda x, t: value(self.centre + self.scale * x),
                density_scale,
                schedule=self.schedule,
                prediction="epsilon",
            )
        drawn = self.sampler.sample(
            denoise,
            self.schedule,
            (len(condition) * number, self.action_dim),
            prediction="epsilon",
            generator=noise,
            device=condition.device,
        )
        return (self.centre + self.scale * drawn).view(len(condition), number, self.action_dim)

    def update_ema(self) -> None:
        """Let the averaged denoiser follow the trained one."""
        polyak_update_(self.average, self.denoiser, self.ema_rate)
