"""``AdvantageLabelled``: one step each, with an advantage computed beforehand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_offrl.datasets.labels import COLUMN, load_labels
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views.base import View
from lit_offrl.datasets.views.transitions import BoundTransitions, Transitions


class AdvantageBatch(NamedTuple):
    """A ``TransitionBatch`` and, from frozen critics, the advantage A(s, a) of each step.

    ``rows`` are the steps' numbers in the dataset.
    """

    observations: Float[Tensor, "B o"]
    actions: Float[Tensor, "B _"]
    rewards: Float[Tensor, " B"] | None
    next_observations: Float[Tensor, "B o"]
    terminals: Bool[Tensor, " B"]
    advantages: Float[Tensor, " B"]
    rows: Int[Tensor, " B"]


@dataclass(frozen=True)
class AdvantageLabelled(View):
    """The steps of ``Transitions`` with the advantages that ``save_labels`` stored (ACD, Eq. 3).

    Args:
        labels: Path of the file of advantages that were made for this dataset.
        critic: Hash of the critic that must have made them, see ``critic_hash``; by default any
            critic may have.
        chunk: Number of actions, at least 1, that a row has, as in ``Transitions``.
    """

    labels: str
    critic: str | None = None
    chunk: int = 1

    def prepare(self, dataset: OfflineDataset) -> OfflineDataset:
        """Add the labels to the whole dataset as a column.

        Raises:
            DatasetError: The file is missing or broken, or the labels belong to other data or
                another critic, have another number, or are not finite.
        """
        labels = load_labels(Path(self.labels), dataset, critic=self.critic)
        spec = replace(dataset.spec, columns=(*dataset.spec.columns, COLUMN))
        return OfflineDataset({**dataset.columns, COLUMN: labels}, spec, dataset.provenance)

    def bind(
        self, dataset: OfflineDataset, device: torch.device | str = "cpu"
    ) -> BoundAdvantageLabelled:
        """Put the columns on a device; a dataset that is not prepared must be whole.

        Raises:
            DatasetError: As ``prepare``; or the data have no actions, or no valid row.
        """
        if COLUMN not in dataset.columns:
            dataset = self.prepare(dataset)
        return BoundAdvantageLabelled(dataset, device, Transitions(chunk=self.chunk))


class BoundAdvantageLabelled(BoundTransitions):
    """``AdvantageLabelled`` over one dataset on one device."""

    def batch(  # type: ignore[override]
        self, index: Int[Tensor, " B"], uniforms: Float[Tensor, "B 0"] | None = None
    ) -> AdvantageBatch:
        """Return the transitions that begin at rows ``index``, elements of ``self.rows``."""
        advantages = self._rows.need(COLUMN, index)
        return AdvantageBatch(*super().batch(index)[:5], advantages=advantages, rows=index)
