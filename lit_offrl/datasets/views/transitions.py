"""``Transitions``: one step each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_offrl.datasets.rows import Rows
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views.base import BoundView, View


class TransitionBatch(NamedTuple):
    """One step each; at a true terminal whose next state is unknown that is the state itself.

    ``rewards`` is None where the data have none, which imitation does not need.
    """

    observations: Float[Tensor, "B o"]
    actions: Float[Tensor, "B a"]
    rewards: Float[Tensor, " B"] | None
    next_observations: Float[Tensor, "B o"]
    terminals: Bool[Tensor, " B"]


@dataclass(frozen=True)
class Transitions(View):
    """One-step transitions (s, a, r, s', terminal).

    Without ``next_observations`` the last row of an episode that ended in a timeout is left out,
    since its next state is not in the data; that of one that ended in a true terminal stays, with
    its own observation as the next one, which ``terminals`` masks.
    """

    def bind(self, dataset: OfflineDataset, device: torch.device | str = "cpu") -> BoundTransitions:
        """Put the columns on a device.

        Raises:
            DatasetError: if the data have no actions, or no valid row.
        """
        return BoundTransitions(dataset, device)


class BoundTransitions(BoundView):
    """``Transitions`` over one dataset on one device."""

    def __init__(self, dataset: OfflineDataset, device: torch.device | str) -> None:
        dataset.column("actions")
        self._rows = Rows(dataset, device)
        self.device = self._rows.device
        self.spans = self._rows.with_next()

    def batch(
        self, index: Int[Tensor, " B"], uniforms: Float[Tensor, "B 0"] | None = None
    ) -> TransitionBatch:
        """Return the transitions that begin at rows ``index``, elements of ``self.rows``."""
        rows = self._rows
        return TransitionBatch(
            observations=rows.need("observations", index),
            actions=rows.need("actions", index),
            rewards=rows.take("rewards", index),
            next_observations=rows.next_observations(index),
            terminals=rows.need("terminals", index),
        )

    def column(self, name: str, index: Int[Tensor, " B"]) -> Tensor:
        """Return rows ``index`` of any column of the dataset."""
        return self._rows.need(name, index)
