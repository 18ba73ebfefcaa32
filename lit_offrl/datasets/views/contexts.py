"""``Contexts``: K steps of an episode, each with the return that followed it.

episode [start, stop), K = 4:   s_start … s_t  s_{t+1} s_{t+2} s_{t+3} | s_{t+4} …
                                context ──┘────────────────────────┘
cut short by its end:           s_t  s_{t+1}  0  0                       mask 1 1 0 0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_offrl.common.errors import DatasetError
from lit_offrl.common.ranges import require_in
from lit_offrl.datasets.rows import Rows, Spans
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views.base import BoundView, View
from lit_offrl.datasets.views.snippets import OverlappingRows


class ContextBatch(NamedTuple):
    """Steps t … t + n − 1 of an episode, n ≤ K, then zeros.

    Attributes:
        observations: States s_t … s_{t+n−1}.
        actions: Actions a_t … a_{t+n−1}.
        returns_to_go: Sums of the rewards from each step to the episode's end, without discount.
        timesteps: Number of each step in its episode, from 0.
        mask: Which of the K steps are real.
    """

    observations: Float[Tensor, "B K o"]
    actions: Float[Tensor, "B K a"]
    returns_to_go: Float[Tensor, "B K"]
    timesteps: Int[Tensor, "B K"]
    mask: Bool[Tensor, "B K"]


@dataclass(frozen=True)
class Contexts(View):
    """K steps of an episode from any of its rows on, fewer where it ends (Chen et al. 2021).

    The rows that are missing come last, where a causal mask hides them from the others; the
    authors' code has them first, and hides them by a mask of its own.

    Args:
        length: Number K of steps, at least 1.
    """

    length: int = 20

    def __post_init__(self) -> None:
        require_in("[1, inf)", length=self.length)

    def bind(self, dataset: OfflineDataset, device: torch.device | str = "cpu") -> BoundContexts:
        """Put the columns on a device; without actions, or all rewards, raise DatasetError."""
        return BoundContexts(self, dataset, device)


class BoundContexts(BoundView):
    """``Contexts`` over one dataset on one device."""

    def __init__(self, view: Contexts, dataset: OfflineDataset, device: torch.device | str) -> None:
        dataset.column("actions")
        self.view = view
        self._rows = rows = Rows(dataset, device)
        returns = rows.discounted_returns(1.0)
        if returns is None:
            raise DatasetError(
                f"{dataset.spec.origin}: Contexts need the reward of every row, which returns are "
                "made of: take a dataset that has them."
            )
        self._returns = returns
        self.device = rows.device
        self.spans = Spans(rows.starts.cpu(), rows.stops.cpu())
        columns = {name: rows.columns[name] for name in ("observations", "actions")}
        last = len(dataset) - 1
        self._columns = {
            name: OverlappingRows(column, view.length, last)
            for name, column in (columns | {"returns_to_go": returns}).items()
        }
        self._steps = torch.arange(view.length, device=self.device)

    def batch(
        self, index: Int[Tensor, " B"], uniforms: Float[Tensor, "B 0"] | None = None
    ) -> ContextBatch:
        """Return the contexts that begin at rows ``index``, elements of ``self.rows``."""
        episode = self._rows.episode[index]
        mask = self._steps < (self._rows.stops[episode] - index)[:, None]
        steps = (index - self._rows.starts[episode])[:, None] + self._steps
        parts = {
            name: part.masked_fill(~mask.view(*mask.shape, *[1] * (part.ndim - 2)), 0)
            for name, part in ((n, column.at(index)) for n, column in self._columns.items())
        }
        return ContextBatch(**parts, timesteps=steps.masked_fill(~mask, 0), mask=mask)

    def best_return(self) -> float:
        """The largest return of the episodes that the view has rows of."""
        rows = self.rows
        first = rows[rows == self._rows.starts[self._rows.episode[rows]]]
        return float(self._returns[first].max())
