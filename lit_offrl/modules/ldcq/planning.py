"""Latent diffusion-constrained planning: skills tried in the world model (LDCQ, appendix B)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lit_offrl.errors import ConfigError

Search = Literal["exhaustive", "greedy"]
Scored = Literal["last", "nearest"]

_LEAVES = 10_000_000  # skills that one decision of one environment may try


class Planner:
    """Chooses the latent from which the world model comes nearest to a goal in d skills.

    At each level n latents of the prior are tried in each state. ``exhaustive`` goes on from all n
    of them, n^d ends in all (the paper's Algorithm 2 at depth d); ``greedy`` goes on, behind each
    first latent, from the nearest one alone, n + n² (d − 1) tries. At depth 2 they are the same.

    Args:
        draw: maps states (S, o) and a number n to latents (S, n, z).
        world: maps states (S, o) and latents (S, z) to the states after the skill (S, o).
        position: maps states (…, o) to positions (…, g).
        number: n.
        depth: d.
        search: what is gone on from.
        scored: the distance of the ``last`` state of d skills counts (paper), or that of the
            ``nearest`` one on the way, with which a goal less than d skills away is not overshot.

    Raises:
        ConfigError: a number is out of its range, or an unknown word.
    """

    def __init__(
        self,
        draw: Callable[[Tensor, int], Tensor],
        world: Callable[[Tensor, Tensor], Tensor],
        position: Callable[[Tensor], Tensor],
        *,
        number: int,
        depth: int = 2,
        search: Search = "exhaustive",
        scored: Scored = "last",
    ) -> None:
        if search not in ("exhaustive", "greedy"):
            raise ConfigError(f"search is '{search}'; choose exhaustive or greedy.")
        if scored not in ("last", "nearest"):
            raise ConfigError(f"scored is '{scored}'; choose last or nearest.")
        if number < 1 or depth < 1:
            raise ConfigError(
                f"num_latents is {number} and depth {depth}; give at least 1 of each."
            )
        if search == "exhaustive" and number**depth > _LEAVES:
            raise ConfigError(
                f"{number} latents at depth {depth} are {number**depth:,} ends a decision; take "
                f"fewer, or search greedy, which tries {number + number**2 * (depth - 1):,}."
            )
        self._draw, self._world, self._position = draw, world, position
        self.number, self.depth, self.search, self.scored = number, depth, search, scored

    @torch.no_grad()
    def choose(self, states: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (E, z) for states (E, o) and goals (E, g), and how near they lead (E,)."""
        first, after, gaps = self._try(states[:, None], goals)
        latents = first[:, 0]  # (E, n, z)
        ends, nearest = after[:, 0, :, None], gaps[:, 0, :, None]  # of each first latent: (E, n, k)
        for _ in range(1, self.depth):
            _, after, gaps = self._try(ends.flatten(1, 2), goals)
            after, gaps = (x.unflatten(1, ends.shape[1:3]) for x in (after, gaps))  # (E, n, k, n)
            if self.scored == "nearest":
                reached = torch.minimum(gaps, nearest[..., None])
            else:
                reached = gaps
            if self.search == "greedy":
                at = gaps.argmin(dim=-1, keepdim=True)
                after = after.gather(-2, at[..., None].expand(*at.shape, after.shape[-1]))
                reached = reached.gather(-1, at)
            ends, nearest = after.flatten(2, 3), reached.flatten(2, 3)
        gap, best = nearest.amin(dim=-1).min(dim=1)
        return latents[torch.arange(len(latents), device=best.device), best], gap

    def _try(self, states: Tensor, goals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """n latents for each of states (E, k, o): (E, k, n, z), the states after, and distances."""
        flat = states.flatten(0, 1)
        latents = self._draw(flat, self.number)
        repeated = flat.repeat_interleave(self.number, dim=0)
        after = self._world(repeated, latents.flatten(0, 1)).view(
            *states.shape[:2], self.number, -1
        )
        gaps = (self._position(after) - goals[:, None, None]).norm(dim=-1)
        return latents.unflatten(0, states.shape[:2]), after, gaps
