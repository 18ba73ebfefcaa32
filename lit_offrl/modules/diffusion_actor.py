"""A policy that is a diffusion model of actions: what diffusion BC, IDQL, DQL and ACD share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from lit_offrl.common.randomness import Generator
from lit_offrl.diffusion import (
    Denoise,
    Schedule,
    classifier_free_guidance,
    classifier_guidance,
    diffusion_loss,
    make_sampler,
    repeat_encoded,
)
from lit_offrl.modules.actor import ActorModule
from lit_offrl.modules.expectile import Pick, best_of
from lit_offrl.modules.policies import NetworkPolicy
from lit_offrl.nets import EnsembleCritic, ResNetDenoiser, frozen_copy, polyak_update_
from lit_offrl.nets.policies import centre_and_scale

_EDGE = 1.0 - 1e-5


class DiffusionActor(nn.Module):
    """π(a | c) by a diffusion model over actions scaled to [−1, 1].

    The condition c is whatever the method puts into one vector: a state, with or without an
    advantage. ε-prediction, clipped to [−1, 1] at every step of the sampler, without which strong
    guidance leaves the actions' range.

    Args:
        condition_dim: Size c of a condition.
        action_dim: Size a of an action.
        low: Lower bounds (a,); −1 if None.
        high: Upper bounds (a,); 1 if None.
        schedule: Name of the noise schedule; see ``DiffusionActorModule`` for what follows.
        diffusion_steps: Number T of diffusion steps.
        sampler: Name of the sampler.
        sampling_steps: Number of its steps; all T if None.
        ema_rate: Rate at which the averaged denoiser follows the trained one.
        **denoiser: Width, blocks and dropout of the ``ResNetDenoiser``.

    Raises:
        ConfigError: There are more sampling steps than T.
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
        schedule: str,
        diffusion_steps: int,
        sampler: str,
        sampling_steps: int | None,
        ema_rate: float,
        **denoiser: Any,
    ) -> None:
        super().__init__()
        centre, scale = centre_and_scale(action_dim, low, high)
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)
        self.action_dim, self.ema_rate = action_dim, ema_rate
        self.schedule = Schedule(schedule, diffusion_steps)
        self.denoiser = ResNetDenoiser(action_dim, condition_dim, diffusion_steps, **denoiser)
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


class DiffusionActorModule(ActorModule):
    """A method whose actor is a diffusion model of actions; acts by one sample of its average.

    A subclass builds ``self.actor`` by ``self.diffusion_actor(condition_dim)``.

    Args:
        width: Width of the denoiser's residual stream, at least 1.
        blocks: Number of the denoiser's residual blocks.
        dropout: Probability in [0, 1) of dropping a unit at a block's entrance.
        schedule: Noise schedule of the diffusion.
        diffusion_steps: Number T of diffusion steps, at least 1.
        sampler: Sampler that draws actions.
        sampling_steps: Number of the sampler's steps, 1 to T; all T by default.
        actor_ema_rate: Rate in (0, 1] at which the averaged denoiser, which acts, follows the
            trained one in each step.
        **kwargs: Options of the method's other bases, see ``ActorModule``.
    """

    actor: DiffusionActor

    def __init__(
        self,
        *args: Any,
        width: int = 256,
        blocks: int = 3,
        dropout: float = 0.1,
        schedule: Literal["vp", "cosine", "linear"] = "vp",
        diffusion_steps: Annotated[int, "[1, inf)"] = 5,
        sampler: Literal["ddpm", "ddim", "dpm++"] = "ddpm",
        sampling_steps: Annotated[int | None, "[1, inf)"] = None,
        actor_ema_rate: Annotated[float, "(0, 1]"] = 0.001,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.diffusion_actor = partial(
            DiffusionActor,
            action_dim=self.action_dim,
            low=self.action_low,
            high=self.action_high,
            width=width,
            blocks=blocks,
            dropout=dropout,
            schedule=schedule,
            diffusion_steps=diffusion_steps,
            sampler=sampler,
            sampling_steps=sampling_steps,
            ema_rate=actor_ema_rate,
        )

    def after_step(self) -> None:
        """Move the averaged denoiser, and what the method's other bases move."""
        super().after_step()
        self.actor.update_ema()

    def policy(self) -> NetworkPolicy:
        """Act by one sample."""
        return NetworkPolicy(
            lambda rows: self.actor.sample(self.normalize_observations(rows)).squeeze(1),
            self.device,
        )

    def best_of_samples(
        self, critic: EnsembleCritic, number: int, pick: Pick = "max"
    ) -> NetworkPolicy:
        """Act by one of several samples, see ``best_of``; a single one needs no critic."""

        def act(rows: Tensor) -> Tensor:
            observations = self.normalize_observations(rows)
            candidates = self.actor.sample(observations, number=number)
            if number == 1:
                return candidates.squeeze(1)
            return best_of(critic, observations, candidates, pick)

        return NetworkPolicy(act, self.device)
