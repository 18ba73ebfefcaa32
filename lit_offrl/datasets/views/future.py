"""``FutureStates``: a state with a later one of its episode.

episode [start, stop), row t:   s_start … s_t, s_{t+1}, … s_{stop-1} | s_stop
                                history ──┘     └── future ──────────┘   └ next_observations
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_offrl.common.randomness import truncated_geometric
from lit_offrl.common.ranges import require_in
from lit_offrl.datasets.rows import Rows
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views.base import BoundView, View

_TAKEN = ("observations", "actions", "rewards", "reward_mask", "terminals", "policy")


class FutureStateBatch(NamedTuple):
    """States with one later state of the same episode; what the data lack is None.

    ``terminals`` says that s_{t+1} is terminal; ``future_absorbed`` that s_{t+Δt} lies at or past
    the terminal state, in which case ``future_observations`` is zeros. ``rows`` are the numbers of
    the s_t in the dataset.
    """

    observations: Float[Tensor, "B o"]
    actions: Float[Tensor, "B a"] | None
    rewards: Float[Tensor, " B"] | None
    reward_mask: Bool[Tensor, " B"] | None
    next_observations: Float[Tensor, "B o"]
    terminals: Bool[Tensor, " B"]
    future_observations: Float[Tensor, "B o"]
    future_absorbed: Bool[Tensor, " B"]
    offsets: Int[Tensor, " B"]
    policy: Float[Tensor, " B"] | None
    history: Float[Tensor, "B k o"] | None
    history_actions: Float[Tensor, "B k a"] | None
    history_mask: Bool[Tensor, "B k"] | None
    returns: Float[Tensor, " B"] | None
    rows: Int[Tensor, " B"]


@dataclass(frozen=True)
class FutureStates(View):
    """A state with a later one, Δt ~ Geometric(1−γ) on {1, 2, …} steps ahead (DVF, Section 4).

    Past a true terminal lies an absorbing state. Past a timeout nothing is known, so Δt follows
    the distribution conditional on Δt ≤ D, with D the later states known: to the last row, one
    more with ``next_observations``; rows with D = 0 are left out. The paper does not tell the two
    ends apart: cutting Δt at a terminal would forget that nothing is earned after it.

    Args:
        gamma: Discount γ in [0, 1) of the geometric distribution of Δt.
        max_offset: Largest Δt in steps, at least 1; Δt is conditioned on not being above it. By
            default only the episode's end limits it.
        history: Number k of states before s_t that come along, at least 0, for a sequential policy
            representation.
        terminals: Whether a terminal state is ``absorbing``, or whether Δt is cut there as at a
            timeout (``truncate``), which forgets that nothing is earned after it.
        near_share: Fraction in [0, 1) of the pairs whose Δt is log-uniform on [1, 1/(1−γ)] instead
            of geometric, P(Δt = k) ∝ log(1 + 1/k). A model that is given Δt learns the same ρ from
            any distribution of Δt, but with γ near 1 few pairs have a small Δt, and those are
            learned last.
    """

    gamma: float = 0.99
    max_offset: int | None = None
    history: int = 0
    terminals: Literal["absorbing", "truncate"] = "absorbing"
    near_share: float = 0.0

    def __post_init__(self) -> None:
        require_in("[0, 1)", gamma=self.gamma, near_share=self.near_share)
        require_in("[1, inf)", max_offset=self.max_offset)
        require_in("[0, inf)", history=self.history)

    def bind(
        self, dataset: OfflineDataset, device: torch.device | str = "cpu"
    ) -> BoundFutureStates:
        """Put the columns on a device; where no row is valid, raise DatasetError."""
        return BoundFutureStates(self, dataset, device)


class BoundFutureStates(BoundView):
    """``FutureStates`` over one dataset on one device."""

    num_uniforms = 1

    def __init__(
        self, view: FutureStates, dataset: OfflineDataset, device: torch.device | str
    ) -> None:
        self.view = view
        self._rows = Rows(dataset, device)
        self.device = self._rows.device
        self._absorbing = view.terminals == "absorbing"
        # The absorbing state as the next one is known, so the rule is Transitions' own.
        self.spans = self._rows.with_next(past_terminals=self._absorbing)
        self._returns = self._rows.discounted_returns(view.gamma)

    def batch(self, index: Int[Tensor, " B"], uniforms: Float[Tensor, "B 1"]) -> FutureStateBatch:
        """Return rows ``index`` (elements of ``self.rows``), each with a state Δt later."""
        rows = self._rows
        episode = rows.episode[index]
        stop = rows.stops[episode]
        absorbing = rows.terminated[episode] & self._absorbing
        known = stop - index - (~rows.beyond[episode]).long()
        offsets = self._offsets(uniforms[:, 0], known, absorbing)
        ahead = index + offsets
        absorbed = absorbing & (ahead >= stop)
        taken: dict[str, Any] = dict.fromkeys(_TAKEN)
        present = rows.columns.keys() & taken.keys()
        taken |= {name: rows.columns[name].index_select(0, index) for name in present}
        history, history_actions, mask = self._history(index, rows.starts[episode])
        return FutureStateBatch(
            **taken,
            next_observations=self._states(index + 1, stop),
            future_observations=self._states(ahead, stop).masked_fill(absorbed[:, None], 0.0),
            future_absorbed=absorbed,
            offsets=offsets,
            history=history,
            history_actions=history_actions,
            history_mask=mask,
            returns=None if self._returns is None else self._returns.index_select(0, index),
            rows=index,
        )

    def _states(self, ahead: Tensor, stop: Tensor) -> Tensor:
        """Return the states of rows ``ahead``, of those past an episode's end the last known."""
        columns = self._rows.columns
        if "next_observations" in columns:  # s_{t+Δt} is what row t+Δt−1 led to
            return columns["next_observations"].index_select(0, torch.minimum(ahead, stop) - 1)
        return columns["observations"].index_select(0, torch.minimum(ahead, stop - 1))

    def _offsets(self, uniforms: Tensor, known: Tensor, absorbing: Tensor) -> Tensor:
        limit = known.double()
        limit = limit.masked_fill(absorbing, math.inf)
        if self.view.max_offset is not None:
            limit = limit.clamp(max=self.view.max_offset)
        gamma, share = self.view.gamma, self.view.near_share
        if share == 0:
            return truncated_geometric(uniforms, gamma, limit)
        uniforms = uniforms.double()
        is_near = uniforms < share
        within = torch.where(is_near, uniforms / share, (uniforms - share) / (1 - share))
        within = within.clamp(max=1 - 2**-53)  # 1, which rounding may give, is an endless Δt
        reach = limit.clamp(max=round(1 / (1 - gamma)))
        near = torch.minimum((reach + 1).pow(within).floor(), reach).long()
        return torch.where(is_near, near, truncated_geometric(within, gamma, limit))

    def _history(
        self, index: Tensor, start: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return states and actions of rows t−k … t−1, zeros and False before the episode."""
        k = self.view.history
        if k == 0:
            return None, None, None
        before = index[:, None] + torch.arange(-k, 0, device=index.device)
        mask = before >= start[:, None]
        flat, empty = before.clamp(min=0).flatten(), ~mask[..., None]

        def gather(name: str) -> Tensor | None:
            column = self._rows.columns.get(name)
            if column is None:
                return None
            return column.index_select(0, flat).unflatten(0, mask.shape).masked_fill(empty, 0)

        return gather("observations"), gather("actions"), mask
