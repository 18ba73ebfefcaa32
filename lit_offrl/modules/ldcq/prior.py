"""The diffusion prior p(z | s), or p(z | s, goal), of standardised latents (LDCQ, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lit_offrl.common.randomness import Generator, ShardedGenerator, draw_normal, given_noise
from lit_offrl.diffusion import Denoise, Schedule, classifier_free_guidance, diffusion_loss
from lit_offrl.modules.ldcq.options import Against, Sampling
from lit_offrl.nets import UResNetDenoiser, frozen_copy, polyak_update_

CHAINS = 65_536  # sampled at once, which bounds the memory
_FEW_ROWS = 128  # whose products are smaller than what casting the weights for them costs


class LatentPrior(nn.Module):
    """A diffusion model of latents that predicts z_0, weighted by Min-SNR (LDCQ, Eq. 5).

    A condition is (s, 1) and, with goals, (g, 1). What is dropped becomes zeros with a flag of 0,
    so that a state of zeros is not a dropped one (paper: zeros alone).

    Each dimension of the latents is standardised. The linear schedule leaves ᾱ_T = 0.13 at T = 200,
    so chains, which begin at N(0, 1), begin where training was only if latents have that mean and
    variance. Given a state they have others. DDPM's noise makes a chain forget this, but a
    deterministic solver does not: ``ddim`` and ``dpm++`` therefore begin at α_T ẑ_0 + σ_T ε, with
    ẑ_0 predicted from ε by one more call of the network.

    Args:
        state_dim: Size s of a normalised state.
        latent_dim: Size z of a latent.
        goal_dim: Size g of a goal; 0 without goals.
        schedule: Name of the noise schedule; see ``LDCQStage2Module`` for what follows.
        diffusion_steps: Number T of diffusion steps.
        min_snr: Largest weight γ of the loss.
        ema_rate: Rate at which the averaged denoiser follows the trained one.
        **denoiser: Widths of the ``UResNetDenoiser``.
    """

    mean: Tensor
    std: Tensor
    is_fitted: Tensor

    def __init__(
        self,
        state_dim: int,
        latent_dim: int,
        goal_dim: int = 0,
        *,
        schedule: str = "linear",
        diffusion_steps: int = 200,
        min_snr: float = 5.0,
        ema_rate: float = 0.005,
        **denoiser: Any,
    ) -> None:
        super().__init__()
        self.latent_dim, self.goal_dim = latent_dim, goal_dim
        self.min_snr, self.ema_rate = min_snr, ema_rate
        self.schedule = Schedule(schedule, diffusion_steps)
        condition_dim = state_dim + 1 + (goal_dim + 1 if goal_dim else 0)
        self.denoiser = UResNetDenoiser(latent_dim, condition_dim, diffusion_steps, **denoiser)
        self.average = frozen_copy(self.denoiser)
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("std", torch.ones(latent_dim))
        self.register_buffer("is_fitted", torch.tensor(False))

    @property
    def fitted(self) -> bool:
        """Whether latents are standardised by the data's; checkpoints keep it."""
        return bool(self.is_fitted)

    def fit(self, mean: Tensor, std: Tensor) -> None:
        """Standardise by the mean and the standard deviation (z,) of the data's latents."""
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=1e-4))
        self.is_fitted.fill_(True)

    def condition(
        self,
        states: Tensor,
        goals: Tensor | None = None,
        *,
        with_state: Tensor | None = None,
        with_goal: Tensor | None = None,
    ) -> Tensor:
        """Return conditions (B, c) of states (B, s) and goals (B, g).

        Args:
            states: Normalised states.
            goals: Normalised goals; None drops all of them.
            with_state: Which rows (B,), bool, keep their state; all if None.
            with_goal: Which rows (B,), bool, keep their goal; all if None.
        """
        ones = states.new_ones(states.shape[0], 1)
        parts = [(states, ones if with_state is None else with_state[:, None].to(states))]
        if self.goal_dim:
            flag = ones if with_goal is None else with_goal[:, None].to(states)
            if goals is None:
                goals, flag = (
                    states.new_zeros(states.shape[0], self.goal_dim),
                    torch.zeros_like(ones),
                )
            parts.append((goals, flag))
        return torch.cat([x for part, flag in parts for x in (part * flag, flag)], dim=-1)

    def loss(
        self,
        states: Tensor,
        latents: Tensor,
        goals: Tensor | None,
        drop_probability: float,
        noise: ShardedGenerator,
    ) -> Tensor:
        """Return the denoising loss (B,) of latents (B, z) of snippets from states (B, s).

        State and goal are dropped together with ``drop_probability``, and the goal alone with the
        same, so that the prior can be used without goals too.
        """
        drawn = noise.uniform((len(states),))
        condition = self.condition(
            states,
            goals,
            with_state=drawn >= drop_probability,
            with_goal=drawn >= 2 * drop_probability,
        )
        with _products_of(len(latents), latents.device.type):
            encoded = self.denoiser.encode(condition)
            return diffusion_loss(
                partial(self.denoiser.denoise, encoded=encoded),
                self.schedule,
                (latents - self.mean) / self.std,
                generator=noise,
                prediction="x0",
                weighting="min_snr",
                gamma=self.min_snr,
            )

    @torch.no_grad()
    def sample(
        self,
        states: Tensor,
        number: int,
        how: Sampling,
        *,
        goals: Tensor | None = None,
        against: Against = "nothing",
        noise: Generator = None,
    ) -> Tensor:
        """Draw latents (S, number, z); each state's condition is encoded once.

        Args:
            states: Normalised states (S, s).
            number: Number n of latents of each state.
            how: The sampler and the guidance.
            goals: Normalised goals (S, g); dropped if None.
            against: What the unconditional model of the guidance sees.
            noise: Generator of the random numbers; the global one if None.
        """
        some = max(1, CHAINS // number)
        whole = isinstance(noise, ShardedGenerator) or given_noise() is not None  # in their draws
        if not whole and len(states) > some:
            parts = [None] * -(-len(states) // some) if goals is None else goals.split(some)
            return torch.cat(
                [
                    self.sample(state, number, how, goals=goal, against=against, noise=noise)
                    for state, goal in zip(states.split(some), parts, strict=True)
                ]
            )
        net = self.average
        encoded = net.encode(self.condition(states, goals))
        sampler = how.make()
        denoise = partial(
            net.denoise, times=self._times(step.t for step in sampler.steps(self.schedule))
        )
        if how.guidance == 1:
            bound: Denoise = partial(denoise, encoded=encoded)
        else:
            with_state = torch.full((states.shape[0],), against == "state", device=states.device)
            null = net.encode(self.condition(states, with_state=with_state))
            bound = classifier_free_guidance(denoise, encoded, null, how.guidance)
        shape, device = (states.shape[0] * number, self.latent_dim), states.device
        start = draw_normal(shape, noise, device=device)
        if how.sampler != "ddpm":
            last = torch.full((1,), self.schedule.num_steps, device=device).expand(start.shape[0])
            start = self.schedule.q_sample(bound(start, last).to(start.dtype), last, start)
        drawn = sampler.sample(
            bound,
            self.schedule,
            shape,
            prediction="x0",
            generator=noise,
            device=device,
            initial_noise=start,
        )
        return self.mean + self.std * drawn.view(states.shape[0], number, self.latent_dim)

    def _times(self, of: Iterable[int]) -> Tensor:
        """Return the averaged denoiser's part of times 1 … T.

        On a CPU that of T and those asked for, and zeros between; a GPU computes all as fast, and
        has nothing to copy from the host, which a graph could not capture.
        """
        if self.mean.device.type != "cpu":
            return self.average.times()
        used = torch.tensor(sorted({self.schedule.num_steps, *of}))
        part = self.average.times(used)
        whole = part.new_zeros(self.schedule.num_steps, part.shape[1])
        return whole.index_copy_(0, used - 1, part)

    def update_ema(self) -> None:
        """Let the averaged denoiser follow the trained one."""
        polyak_update_(self.average, self.denoiser, self.ema_rate)


def _products_of(rows: int, kind: str) -> AbstractContextManager[Any]:
    """Keep the products of few rows in the weights' precision, whatever autocast says."""
    return torch.autocast(kind, enabled=False) if rows < _FEW_ROWS else nullcontext()
