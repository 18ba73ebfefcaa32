"""``Transitions``: one step each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_offrl.common.errors import DatasetError
from lit_offrl.common.ranges import require_in
from lit_offrl.datasets.rows import Rows
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views.base import BoundView, View


class TransitionBatch(NamedTuple):
    """One step each; at a true terminal whose next state is unknown that is the state itself.

    ``rewards`` is None where the data have none, which imitation does not need; ``returns``, the
    discounted ones to the episode's end, is None unless the view is made with a discount.
    ``next_actions``, those of the data in the next states and at a true terminal the actions
    themselves, is None unless the view is made with them.
    """

    observations: Float[Tensor, "B o"]
    actions: Float[Tensor, "B a"]
    rewards: Float[Tensor, " B"] | None
    next_observations: Float[Tensor, "B o"]
    terminals: Bool[Tensor, " B"]
    returns: Float[Tensor, " B"] | None = None
    next_actions: Float[Tensor, "B a"] | None = None


@dataclass(frozen=True)
class Transitions(View):
    """One-step transitions (s, a, r, s', terminal).

    Without ``next_observations`` the last row of an episode that ended in a timeout is left out,
    since its next state is not in the data; that of one that ended in a true terminal stays, with
    its own observation as the next one, which ``terminals`` masks.

    Args:
        returns: Discount in [0, 1] of the ``returns`` that come along; by default none do.
        next_actions: Whether the data's own next actions come along. An episode's last row has
            none: it is left out where the episode ended in a timeout, also if its next state is
            known; at a true terminal nothing follows that an action would be for (ReBRAC's data).
    """

    returns: float | None = None
    next_actions: bool = False

    def __post_init__(self) -> None:
        require_in("[0, 1]", returns=self.returns)

    def bind(self, dataset: OfflineDataset, device: torch.device | str = "cpu") -> BoundTransitions:
        """Put the columns on a device.

        Without actions, a valid row, or the rewards that returns need, raise DatasetError.
        """
        return BoundTransitions(dataset, device, self)


class BoundTransitions(BoundView):
    """``Transitions`` over one dataset on one device."""

    def __init__(
        self,
        dataset: OfflineDataset,
        device: torch.device | str,
        view: Transitions | None = None,
    ) -> None:
        dataset.column("actions")
        self.view = view = view or Transitions()
        self._rows = Rows(dataset, device)
        gamma = view.returns
        self._returns = None if gamma is None else self._rows.discounted_returns(gamma)
        if gamma is not None and self._returns is None:
            raise DatasetError(
                f"{dataset.spec.origin}: Transitions with returns needs the reward "
                "of every row: take a dataset that has them, or leave 'returns' out."
            )
        self.device = self._rows.device
        self.spans = self._rows.with_next(actions=view.next_actions)

    def batch(
        self, index: Int[Tensor, " B"], uniforms: Float[Tensor, "B 0"] | None = None
    ) -> TransitionBatch:
        """Return the transitions that begin at rows ``index``, elements of ``self.rows``."""
        rows = self._rows
        terminals = rows.need("terminals", index)
        return TransitionBatch(
            observations=rows.need("observations", index),
            actions=rows.need("actions", index),
            rewards=rows.take("rewards", index),
            next_observations=rows.next_observations(index, terminals),
            terminals=terminals,
            returns=None if self._returns is None else self._returns.index_select(0, index),
            next_actions=rows.need("actions", index + ~terminals)
            if self.view.next_actions
            else None,
        )
