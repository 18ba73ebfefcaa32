"""Latent diffusion-constrained planning: a search over skills in the world model (LDCQ, app. B)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lit_offrl.common.randomness import given_noise
from lit_offrl.modules.ldcq.options import PlanOptions
from lit_offrl.modules.ldcq.prior import CHAINS


class Planner:
    """Chooses the latent with which d skills come nearest to a goal in the world model.

    At each level n latents of the prior are tried in each state. The ``exhaustive`` search
    continues from all n of them, which makes n^d plans (the paper's Algorithm 2 at depth d). The
    ``greedy`` one continues, behind each first latent, only from the state nearest to the goal,
    which takes n + n² (d − 1) tries. At depth 2 both are the same.

    Args:
        draw: Maps states (S, o) and a number n to latents (S, n, z).
        world: Maps states (S, o) and latents (S, z) to the states (S, o) after the skill.
        position: Maps states (…, o) to positions (…, g).
        how: The options of the plan.
    """

    def __init__(
        self,
        draw: Callable[[Tensor, int], Tensor],
        world: Callable[[Tensor, Tensor], Tensor],
        position: Callable[[Tensor], Tensor],
        how: PlanOptions,
    ) -> None:
        self._draw, self._world, self._position = draw, world, position
        self._number, self._depth = how.num_latents, how.depth
        self._exhaustive, self._nearest = how.search == "exhaustive", how.scored == "nearest"

    @torch.no_grad()
    def choose(self, states: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents (E, z) for states (E, o) and goals (E, g), and their distances (E,)."""
        latents = self._draw(states, self._number)  # (E, n, z)
        ends = self._after(states, latents)[:, :, None]  # of each first latent: (E, n, k, o)
        nearest = self._gaps(ends, goals[:, None, None])  # (E, n, k)
        for level in range(2, self._depth + 1):
            keep_all = self._exhaustive and level < self._depth
            ends, gaps = self._try(ends, goals, keep_all)
            if self._nearest:
                gaps = torch.minimum(gaps, nearest[..., None])
            nearest = gaps.flatten(2)
        gap, best = nearest.amin(dim=-1).min(dim=1)
        return latents[torch.arange(latents.shape[0], device=best.device), best], gap

    def _try(self, ends: Tensor, goals: Tensor, keep_all: bool) -> tuple[Tensor, Tensor]:
        """Try n latents in each of the states (E, n, k, o), as many at once as the prior samples.

        Returns states (E, n, k · m, o) and distances (E, n, k, m): m is n if all are kept, else 1.
        """
        flat = ends.flatten(0, 2)
        aims = goals.repeat_interleave(ends.shape[1] * ends.shape[2], dim=0)
        size = max(1, CHAINS // self._number)
        kept, parts = [], [(flat, aims)]
        if given_noise() is None:  # whose numbers are for all states at once
            parts = list(zip(flat.split(size), aims.split(size), strict=True))
        for states, aim in parts:
            after = self._after(states, self._draw(states, self._number))
            gaps = self._gaps(after, aim[:, None])
            if not keep_all:
                at = gaps.argmin(dim=1, keepdim=True)
                rows = torch.arange(at.shape[0], device=at.device)
                after, gaps = after[rows[:, None], at], gaps.gather(1, at)
            kept.append((after, gaps))
        after, gaps = (torch.cat(p).unflatten(0, ends.shape[:3]) for p in zip(*kept, strict=True))
        return after.flatten(2, 3), gaps

    def _after(self, states: Tensor, latents: Tensor) -> Tensor:
        """Return the states (S, n, o) after latents (S, n, z) in states (S, o)."""
        repeated = states.repeat_interleave(latents.shape[1], dim=0)
        return self._world(repeated, latents.flatten(0, 1)).unflatten(0, latents.shape[:2])

    def _gaps(self, states: Tensor, goals: Tensor) -> Tensor:
        return (self._position(states) - goals).norm(dim=-1)
