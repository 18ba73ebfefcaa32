"""``Transitions``: one step each, or a chunk of actions and the steps until the next state.

h = 2 actions, n = 3 steps:   s_t  a_t  a_{t+1}   r_t + γ r_{t+1} + γ² r_{t+2}   s_{t+3}
                                                                  next actions   a_{t+3}  a_{t+4}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.common.ranges import require_in
from lit_offrl.datasets.rows import Rows
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views.base import BoundView, View


class TransitionBatch(NamedTuple):
    """One step each, or n of them; at a true terminal the next state may be the state itself.

    The target of a value is ``rewards + discount(γ) * ~terminals * V(next_observations)``.

    Attributes:
        observations: States s_t.
        actions: Actions a_t, or a_t … a_{t+h−1} one after another; those past the episode's end
            are its last one again.
        rewards: Rewards r_t, or Σ_{i<n} γ^i r_{t+i}, to a true terminal; None where the data have
            none, which imitation does not need.
        next_observations: States s_{t+n}; where they are terminal and unknown the last ones.
        terminals: Whether s_{t+n}, or a state before it, is terminal.
        returns: Discounted rewards to the episode's end; None unless the view has a discount.
        next_actions: The data's actions in s_{t+n}, as many as ``actions``; at a true terminal,
            where they count for nothing, the last step's. None unless the view is made with them.
        discounts: Discounts γ^n; None where n is 1.
    """

    observations: Float[Tensor, "B o"]
    actions: Float[Tensor, "B _"]
    rewards: Float[Tensor, " B"] | None
    next_observations: Float[Tensor, "B o"]
    terminals: Bool[Tensor, " B"]
    returns: Float[Tensor, " B"] | None = None
    next_actions: Float[Tensor, "B _"] | None = None
    discounts: Float[Tensor, " B"] | None = None

    def discount(self, gamma: float) -> float | Tensor:
        """Return what a value of the next state is multiplied by: γ, or γ^n (B,)."""
        return gamma if self.discounts is None else self.discounts


@dataclass(frozen=True)
class Transitions(View):
    """Transitions (s, a, r, s', terminal) of one step, or of chunks of actions and n steps.

    A row is left out where its episode ends in a timeout before the last of what it needs, so that
    no row bootstraps from another state than the n-th: for one step, the last row of an episode
    without ``next_observations``, whose next state is not in the data. Rows before a true terminal
    stay, as they alone say what it is worth: the rewards' sum ends there, and ``terminals`` masks
    what would follow. What a chunk does past the end changes nothing; it repeats its last action.

    Args:
        returns: Discount in [0, 1] of the ``returns`` that come along; by default none do.
        next_actions: Whether the data's own next actions come along. An episode's last row has
            none: it is left out where the episode ended in a timeout, also if its next state is
            known; at a true terminal nothing follows that an action would be for (ReBRAC's data).
        chunk: Number h of actions, at least 1, that a row has (Q-chunking, Li et al. 2025).
        n_step: Number n of steps, at least h, to the next state; h by default.
        gamma: Discount γ, in [0, 1], of the rewards in these steps and of what follows them.

    Raises:
        ConfigError: A number is out of its range.
    """

    returns: float | None = None
    next_actions: bool = False
    chunk: int = 1
    n_step: int | None = None
    gamma: float = 0.99

    def __post_init__(self) -> None:
        require_in("[0, 1]", returns=self.returns, gamma=self.gamma)
        require_in("[1, inf)", chunk=self.chunk, n_step=self.n_step)
        if self.steps < self.chunk:
            raise ConfigError(
                f"n_step is {self.n_step} and chunk {self.chunk}: give an n_step of at least the "
                "chunk, whose every action is to count, or leave it out."
            )

    @property
    def steps(self) -> int:
        """Number n of steps to the next state."""
        return self.chunk if self.n_step is None else self.n_step

    def bind(self, dataset: OfflineDataset, device: torch.device | str = "cpu") -> BoundTransitions:
        """Put the columns on a device.

        Without actions, a valid row, or the rewards that returns need, raise DatasetError.
        """
        return BoundTransitions(dataset, device, self)


class BoundTransitions(BoundView):
    """``Transitions`` over one dataset on one device."""

    def __init__(
        self, dataset: OfflineDataset, device: torch.device | str, view: Transitions
    ) -> None:
        dataset.column("actions")
        self.view = view
        self._rows = Rows(dataset, device)
        gamma = view.returns
        self._returns = None if gamma is None else self._rows.discounted_returns(gamma)
        if gamma is not None and self._returns is None:
            raise DatasetError(
                f"{dataset.spec.origin}: Transitions with returns needs the reward "
                "of every row: take a dataset that has them, or leave 'returns' out."
            )
        self.device = self._rows.device
        self.spans = self._rows.with_next(
            steps=view.steps, actions=view.chunk if view.next_actions else 0
        )
        self._single = view.steps == 1
        self._ahead = torch.arange(view.steps, device=self.device)
        powers = view.gamma ** torch.arange(view.steps + 1, dtype=torch.float64)
        self._powers = powers.float().to(self.device)
        self._last = self._rows.stops - 1

    def batch(
        self, index: Int[Tensor, " B"], uniforms: Float[Tensor, "B 0"] | None = None
    ) -> TransitionBatch:
        """Return the transitions that begin at rows ``index``, elements of ``self.rows``."""
        rows = self._rows
        within = None if self._single else self._within(index)
        final = index if within is None else within[:, -1]
        terminals = rows.need("terminals", final)
        follows = self.view.next_actions
        return TransitionBatch(
            observations=rows.need("observations", index),
            actions=self.actions(index) if within is None else self._joined(within),
            rewards=rows.take("rewards", index) if within is None else self._summed(within),
            next_observations=rows.next_observations(final, terminals),
            terminals=terminals,
            returns=None if self._returns is None else self._returns.index_select(0, index),
            next_actions=self.actions(final + ~terminals) if follows else None,
            discounts=None if within is None else self._powers[-1].expand(len(index)),
        )

    def actions(self, index: Int[Tensor, " B"]) -> Float[Tensor, "B _"]:
        """Return the chunks (B, h · a) of any rows ``index``, an episode's last action repeated."""
        if self._single:
            return self._rows.need("actions", index)
        return self._joined(self._within(index))

    def _joined(self, within: Tensor) -> Tensor:
        chunks = within[:, : self.view.chunk]
        return self._rows.need("actions", chunks.flatten()).view(len(chunks), -1)

    def _summed(self, within: Tensor) -> Tensor | None:
        """Return Σ γ^i r_{t+i} (B,) of rows (B, n), to the n-th or to a true terminal."""
        rewards = self._rows.take("rewards", within.flatten())
        if rewards is None:
            return None
        counted = within - within[:, :1] == self._ahead  # the others are past the end
        return (rewards.view_as(within) * self._powers[:-1]).masked_fill_(~counted, 0).sum(dim=1)

    def _within(self, index: Tensor) -> Tensor:
        """Return the n rows (B, n) from each of ``index`` on, no further than its episode's end."""
        last = self._last.index_select(0, self._rows.episode.index_select(0, index))
        return torch.minimum(index[:, None] + self._ahead, last[:, None])
