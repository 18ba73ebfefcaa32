"""A diffusion model of the discounted state occupancy: where a policy goes next."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.datasets.normalizers import MinMaxNormalizer
from lit_offrl.datasets.views import FutureStateBatch
from lit_offrl.diffusion import (
    Prediction,
    Schedule,
    Variance,
    Weighting,
    diffusion_loss,
    make_sampler,
)
from lit_offrl.nets import (
    FutureCondition,
    PerceiverDenoiser,
    StatePerceiverDenoiser,
    frozen_copy,
    polyak_update_,
)


class History(NamedTuple):
    """The k states before each of B states, oldest first: the sequential representation of φ(π)."""

    states: Tensor
    """States (B, k, o), zeros where the episode had not begun."""
    actions: Tensor | None
    """Actions that were taken in them, (B, k, a), if known."""
    mask: Tensor
    """True where there is a state, bool (B, k)."""

    @classmethod
    def before(cls, batch: FutureStateBatch) -> History | None:
        """Return the history of a batch's s_t, if its view gathers one."""
        if batch.history is None or batch.history_mask is None:
            return None
        return cls(batch.history, batch.history_actions, batch.history_mask)

    def advanced(self, observations: Tensor, actions: Tensor | None) -> History:
        """Return the history one step later, whose last states are ``observations`` (B, o)."""
        taken = None
        if self.actions is not None and actions is not None:
            taken = torch.cat([self.actions[:, 1:], actions[:, None]], dim=1)
        return History(
            torch.cat([self.states[:, 1:], observations[:, None]], dim=1),
            taken,
            torch.cat([self.mask[:, 1:], torch.ones_like(self.mask[:, :1])], dim=1),
        )

    def normalised(self, normalizer: MinMaxNormalizer) -> History:
        """Return the same with normalised states."""
        return self._replace(states=normalizer.normalize(self.states))


class OccupancyModel(nn.Module):
    """ρ(s' | s, Δt, φ(π)) by diffusion (DVF, section 3.3, Eq. 8).

    States are normalised to [−1, 1] and have one extra dimension that marks the absorbing state:
    −1 for a state of the environment, +1 past a true terminal (all other dimensions are 0 there).
    The paper does not say what happens at terminals; without the mark a policy that falls at once
    would look as good as one that walks on.

    Args:
        observation_dim: Size o of an observation.
        history_action_dim: Size a of an action where the history has actions, else 0.
        policy_representation: Kind of φ(π): ``sequential``, ``scalar`` or ``none`` (section 3.1).
        history: Number k of preceding states in the sequential representation.
        schedule: Name of the noise schedule; see ``DVFModule`` for what follows.
        diffusion_steps: Number T of diffusion steps.
        prediction: What the denoiser predicts.
        weighting: Weight of the loss over diffusion times.
        ema_rate: Rate at which the averaged denoiser, which samples, follows the trained one.
        sampler: Name of the sampler.
        variance: Variance of DDPM's noise.
        sampling_steps: Number of its steps.
        latents_per: What has latents of its own: each ``sample`` or each ``state``.
        draws: How the samples of one state draw their noise.
        **denoiser: Further options of ``PerceiverDenoiser``.

    Raises:
        ConfigError: There are more sampling steps than T.
    """

    def __init__(
        self,
        observation_dim: int,
        history_action_dim: int = 0,
        *,
        policy_representation: Literal["sequential", "scalar", "none"],
        history: int,
        schedule: str,
        diffusion_steps: int,
        prediction: Prediction,
        weighting: Weighting,
        ema_rate: float,
        sampler: str,
        variance: Variance,
        sampling_steps: int,
        latents_per: Literal["sample", "state"] = "sample",
        draws: Literal["independent", "antithetic"] = "independent",
        **denoiser: Any,
    ) -> None:
        super().__init__()
        self.state_dim = observation_dim + 1
        self.policy_representation = policy_representation
        self.history, self.history_actions = history, history_action_dim > 0
        self.prediction, self.weighting = prediction, weighting
        self.ema_rate, self.draws = ema_rate, draws
        self.schedule = Schedule(schedule, diffusion_steps)
        kind = StatePerceiverDenoiser if latents_per == "state" else PerceiverDenoiser
        self.denoiser = kind(
            self.state_dim,
            policy=policy_representation,
            history=history,
            action_dim=history_action_dim,
            **denoiser,
        )
        self.average = frozen_copy(self.denoiser)
        self.sampler = make_sampler(sampler, variance=variance, num_steps=sampling_steps, clip=1.0)
        self.sampler.steps(self.schedule)  # refuses what could not sample, before it is trained

    @staticmethod
    def mark(states: Tensor, absorbed: Tensor | None = None) -> Tensor:
        """Append the absorbing mark, (…, o) → (…, o + 1); absorbed states (…,) become zeros."""
        if absorbed is None:
            return torch.cat([states, -torch.ones_like(states[..., :1])], dim=-1)
        flag = torch.where(absorbed, 1.0, -1.0).to(states.dtype)[..., None]
        return torch.cat([states * (~absorbed)[..., None], flag], dim=-1)

    def condition(
        self,
        observations: Tensor,
        offsets: Tensor,
        history: History | None,
        policy: Tensor | None,
    ) -> FutureCondition:
        """Build the condition of samples, from normalised states.

        Args:
            observations: States s (S, o).
            offsets: Offsets Δt in steps (S, n).
            history: What came before; the sequential representation needs it.
            policy: Scalar representation (S,), which only that representation needs.

        Raises:
            ConfigError: What the representation needs is missing.
        """
        if self.policy_representation != "sequential":
            history = None
        elif history is None:
            raise ConfigError(
                "policy_representation is 'sequential', but the batch has no history: set the "
                f"view's history to {self.history}, or leave the view to the model."
            )
        elif history.states.shape[1] > self.history:
            raise ConfigError(
                f"the batch has a history of {history.states.shape[1]} states, the model one of "
                f"{self.history}: set the view's history to that, or leave the view to the model."
            )
        elif self.history_actions and history.actions is None:
            raise ConfigError(
                "history_actions is true, but the history has no actions: give them, or train "
                "with history_actions false."
            )
        if self.policy_representation == "scalar" and policy is None:
            raise ConfigError(
                "policy_representation is 'scalar', but the dataset has no 'policy' column; "
                "use 'sequential' or 'none'."
            )
        return FutureCondition(
            states=self.mark(observations),
            offsets=offsets,
            policy=policy if self.policy_representation == "scalar" else None,
            history=None if history is None else self.mark(history.states),
            history_actions=history.actions if history and self.history_actions else None,
            history_mask=None if history is None else history.mask,
        )

    def loss(
        self, targets: Tensor, absorbed: Tensor, condition: FutureCondition, noise: ShardedGenerator
    ) -> Tensor:
        """Return the diffusion loss of each row (B,) for normalised targets (B, o)."""
        encoded = self.denoiser.encode(condition)
        return diffusion_loss(
            partial(self.denoiser.denoise, encoded=encoded),
            self.schedule,
            self.mark(targets, absorbed),
            generator=noise,
            prediction=self.prediction,
            weighting=self.weighting,
        )

    @torch.no_grad()
    def sample(self, condition: FutureCondition, noise: ShardedGenerator) -> tuple[Tensor, Tensor]:
        """Draw one state per offset.

        Args:
            condition: S states with offsets (S, n).
            noise: Source of all random numbers.

        Returns:
            Normalised states (S, n, o) and which of them are absorbed, bool (S, n).
        """
        states, samples = condition.offsets.shape
        encoded = self.average.encode(condition)
        initial = None
        if self.draws == "antithetic":  # z, −z, z', −z', …: each of them is standard normal
            half = noise.normal((states, (samples + 1) // 2, self.state_dim))
            initial = torch.stack([half, -half], dim=2).flatten(1, 2)[:, :samples].flatten(0, 1)
        drawn = self.sampler.sample(
            partial(self.average.denoise, encoded=encoded),
            self.schedule,
            (states * samples, self.state_dim),
            prediction=self.prediction,
            generator=noise,
            device=condition.states.device,
            initial_noise=initial,
        ).view(states, samples, self.state_dim)
        return drawn[..., :-1], drawn[..., -1] > 0

    def update_ema(self) -> None:
        """Move the averaged denoiser towards the trained one."""
        polyak_update_(self.average, self.denoiser, self.ema_rate)
