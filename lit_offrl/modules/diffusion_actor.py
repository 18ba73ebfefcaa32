"""A policy that is a diffusion model of actions: what diffusion BC, IDQL, DQL and ACD share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, get_type_hints

from torch import Tensor, nn

from lit_offrl.common.policy import Policy
from lit_offrl.common.randomness import Generator
from lit_offrl.common.ranges import require_fields
from lit_offrl.diffusion import (
    Clipping,
    Denoise,
    Sampler,
    Schedule,
    Variance,
    classifier_free_guidance,
    classifier_guidance,
    diffusion_loss,
    make_sampler,
    repeat_encoded,
)
from lit_offrl.modules.actor import ActorModule
from lit_offrl.modules.expectile import Pick, best_of
from lit_offrl.nets import (
    DENOISERS,
    ActionDenoiser,
    EnsembleCritic,
    frozen_copy,
    polyak_update_,
)
from lit_offrl.nets.policies import centre_and_scale

_EDGE = 1.0 - 1e-5
SamplerName = Literal["ddpm", "ddim", "dpm++"]


@dataclass(frozen=True)
class Drawing:
    """How actions are drawn from a diffusion model.

    Args:
        sampler: Sampler that draws actions.
        sampling_steps: Number of the sampler's steps, 1 to T; all T by default.
        clipping: What is clipped to the actions' range in each step: the noisy ``sample``, as in
            IDQL's and ACD's code; the ``estimate`` of the clean action, as in DQL's; or ``none``,
            so that only the final action is clipped.
        variance: Variance of the noise in a step of ``ddpm``: ``beta`` (IDQL's and ACD's code) or
            ``posterior`` (DQL's). ``ddim`` and ``dpm++`` add no noise.
        temperature: Factor, at least 0, of all noise, including the noise that the sampler starts
            from.

    Raises:
        ConfigError: An option is none of its choices, or out of its range.
    """

    sampler: SamplerName = "ddpm"
    sampling_steps: Annotated[int | None, "[1, inf)"] = None
    clipping: Clipping = "sample"
    variance: Variance = "beta"
    temperature: Annotated[float, "[0, inf)"] = 1.0

    def __post_init__(self) -> None:
        require_fields(self)

    def make(self) -> Sampler:
        """Return the sampler, for actions scaled to [−1, 1]."""
        return make_sampler(
            self.sampler,
            num_steps=self.sampling_steps,
            clip=1.0,
            clipping=self.clipping,
            variance=self.variance,
            temperature=self.temperature,
        )


class DiffusionActor(nn.Module):
    """π(a | c) by a diffusion model over actions scaled to [−1, 1].

    The condition c is whatever the method puts into one vector: a state, with or without an
    advantage. The network predicts ε. Samplers clip to [−1, 1] at every step, without which strong
    guidance leaves the actions' range; what they clip, ``Drawing`` says.

    Args:
        condition_dim: Size c of a condition.
        action_dim: Size a of an action.
        low: Lower bounds (a,); −1 if None.
        high: Upper bounds (a,); 1 if None.
        schedule: Name of the noise schedule; see ``DiffusionActorModule`` for what follows.
        diffusion_steps: Number T of diffusion steps.
        drawing: How actions are drawn.
        ema_rate: Rate at which the averaged denoiser follows the trained one.
        denoiser: Kind of network, a name of ``DENOISERS``.
        **network: Its width, blocks and dropout.

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
        drawing: Drawing,
        ema_rate: float,
        denoiser: str,
        **network: Any,
    ) -> None:
        super().__init__()
        centre, scale = centre_and_scale(action_dim, low, high)
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)
        self.action_dim, self.ema_rate = action_dim, ema_rate
        self.schedule = Schedule(schedule, diffusion_steps)
        kind = DENOISERS[denoiser]
        self.denoiser = kind(action_dim, condition_dim, diffusion_steps, **network)
        self.average = frozen_copy(self.denoiser)
        self.sampler = drawing.make()
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
        denoiser: ActionDenoiser | None = None,
        sampler: Sampler | None = None,
    ) -> Tensor:
        """Draw actions, (S, number, a); each state's condition and the times are encoded once.

        Args:
            condition: Condition c (S, c).
            number: Number of actions for each state.
            absent: Null condition (S, c) of classifier-free guidance.
            guidance: Factor w of ``u + w (c − u)``; 1 needs no null condition.
            log_density: Function for classifier guidance: maps actions (S · number, a),
                state-major, to values (S · number,) such as Q(s, a), and is differentiable.
            density_scale: Factor of its gradient.
            noise: Source of the noise; the global generator if None.
            denoiser: Weights to use; the averaged ones by default.
            sampler: Sampler to use instead of the actor's own.
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
        drawn = (
            (sampler or self.sampler)
            .sample(
                denoise,
                self.schedule,
                (condition.shape[0] * number, self.action_dim),
                prediction="epsilon",
                generator=noise,
                device=condition.device,
            )
            .clamp(-1.0, 1.0)
        )  # which changes what no step has clipped, and nothing else
        return (self.centre + self.scale * drawn).view(condition.shape[0], number, self.action_dim)

    def update_ema(self) -> None:
        """Let the averaged denoiser follow the trained one."""
        polyak_update_(self.average, self.denoiser, self.ema_rate)


class DiffusionActorModule(ActorModule):
    """A method whose actor is a diffusion model with averaged weights.

    It acts by one sample of the averaged weights, unless a subclass says otherwise. A subclass
    builds ``self.actor`` by ``self.diffusion_actor(condition_dim)``.

    Args:
        denoiser: Network of the denoiser: ``residual`` blocks with LayerNorm (IDQL, ACD), or a
            plain ``mlp`` (DQL).
        width: Width of the residual stream, or of the layers of the ``mlp``, at least 1.
        blocks: Number of residual blocks, or of layers of the ``mlp``.
        dropout: Probability in [0, 1) of dropping a unit at a block's entrance.
        schedule: Noise schedule of the diffusion.
        diffusion_steps: Number T of diffusion steps, at least 1.
        sampler: Sampler that draws actions.
        sampling_steps: Number of the sampler's steps, 1 to T; all T by default.
        clipping: What is clipped to the actions' range in each step: the noisy ``sample``, the
            ``estimate`` of the clean action, or ``none``, so that only the final action is clipped.
        variance: Variance of the noise in a step of ``ddpm``: ``beta`` or ``posterior``.
        temperature: Factor, at least 0, of all noise in the sampler when the policy acts.
        actor_ema_rate: Rate in (0, 1] at which the averaged denoiser, which acts, follows the
            trained one in each step.
        **kwargs: Options of the method's other bases, see ``ActorModule``.
    """

    actor: DiffusionActor

    def __init__(
        self,
        *args: Any,
        denoiser: Literal["residual", "mlp"] = "residual",
        width: int = 256,
        blocks: int = 3,
        dropout: float = 0.1,
        schedule: Literal["vp", "cosine", "linear"] = "vp",
        diffusion_steps: Annotated[int, "[1, inf)"] = 5,
        sampler: SamplerName = "ddpm",
        sampling_steps: Annotated[int | None, "[1, inf)"] = None,
        clipping: Clipping = "sample",
        variance: Variance = "beta",
        temperature: Annotated[float, "[0, inf)"] = 1.0,
        actor_ema_rate: Annotated[float, "(0, 1]"] = 0.001,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.drawing = Drawing(sampler, sampling_steps, clipping, variance, temperature)
        self.diffusion_actor = partial(
            DiffusionActor,
            action_dim=self.action_dim,
            low=self.action_low,
            high=self.action_high,
            denoiser=denoiser,
            width=width,
            blocks=blocks,
            dropout=dropout,
            schedule=schedule,
            diffusion_steps=diffusion_steps,
            drawing=replace(self.drawing, temperature=1.0),  # as DQL draws in training
            ema_rate=actor_ema_rate,
        )

    def after_step(self) -> None:
        """Move the averaged denoiser, and what the method's other bases move."""
        super().after_step()
        if self.average_moves():
            self.actor.update_ema()

    def average_moves(self) -> bool:
        """Whether the averaged denoiser is updated after the current step; it is after every
        step."""
        return True

    def acting_sampler(self, **drawing: Any) -> Sampler:
        """Return the sampler that acts.

        Args:
            **drawing: Options of ``Drawing``; those that are None or left out are as trained.

        Raises:
            ConfigError: An option is out of its range, or there are more steps than T.
        """
        given = {name: value for name, value in drawing.items() if value is not None}
        sampler = replace(self.drawing, **given).make()
        sampler.steps(self.actor.schedule)
        return sampler

    def policy(
        self, *, execute_steps: Annotated[int | None, "[1, inf)"] = None, **drawing: Any
    ) -> Policy:
        """Act by one sample.

        Args:
            execute_steps: Number of steps, at most h, for which a chunk is executed; the module's
                own by default.
            **drawing: Options of ``Drawing``; those that are None or left out are as trained.
        """
        sampler = self.acting_sampler(**drawing)

        def act(rows: Tensor) -> Tensor:
            return self.actor.sample(self.normalize_observations(rows), sampler=sampler).squeeze(1)

        return self.acting(act, execute_steps)

    @classmethod
    def policy_options(cls) -> dict[str, Any]:
        """Types of the options of ``policy`` by name."""
        types = get_type_hints(Drawing).items()
        return super().policy_options() | {name: hint | None for name, hint in types}

    def best_of_samples(
        self,
        critic: EnsembleCritic,
        number: int,
        pick: Pick = "max",
        denoiser: ActionDenoiser | None = None,
        execute_steps: int | None = None,
        **drawing: Any,
    ) -> Policy:
        """Act by one of several samples, see ``best_of``; a single one needs no critic.

        Args:
            critic: Which chooses.
            number: Number of samples.
            pick: How it chooses.
            denoiser: Which weights draw them; the averaged ones by default.
            execute_steps: Number of steps for which a chunk is executed.
            **drawing: Options of ``Drawing``.
        """
        sampler = self.acting_sampler(**drawing)

        def act(rows: Tensor) -> Tensor:
            observations = self.normalize_observations(rows)
            candidates = self.actor.sample(
                observations, number=number, denoiser=denoiser, sampler=sampler
            )
            if number == 1:
                return candidates.squeeze(1)
            return best_of(critic, observations, candidates, pick)

        return self.acting(act, execute_steps)
