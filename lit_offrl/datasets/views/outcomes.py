"""``Outcomes``: transitions, with what became of their episodes and whose actions they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_offrl.common.errors import DatasetError
from lit_offrl.common.ranges import require_in
from lit_offrl.datasets.rows import Spans
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views.transitions import BoundTransitions, Transitions

INTERVENTIONS = "interventions"
"""Column of the rows whose action is a human's who corrected the policy, (N,) of bool."""


class OutcomeBatch(NamedTuple):
    """A ``TransitionBatch``, and whether each row's action corrected the policy.

    ``corrected`` is False where the data have no column ``interventions``.
    """

    observations: Float[Tensor, "B o"]
    actions: Float[Tensor, "B _"]
    rewards: Float[Tensor, " B"] | None
    next_observations: Float[Tensor, "B o"]
    terminals: Bool[Tensor, " B"]
    returns: Float[Tensor, " B"] | None
    discounts: Float[Tensor, " B"] | None
    corrected: Bool[Tensor, " B"]


@dataclass(frozen=True)
class Outcomes(Transitions):
    """The transitions of ``Transitions``, where running out of time may be a failure (RECAP).

    With ``returns`` or ``failure`` the rows of an episode that the data break off, as that under
    way among a run's own steps, are left out: how it ends is not known.

    Args:
        failure: Reward, added to that of the last step, of an episode that a timeout ended: the
            task has failed, which is as true an end as any terminal. By default a timeout is none.
        **kwargs: Options of ``Transitions``; next actions do not come along.
    """

    failure: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in("(-inf, inf)", failure=self.failure)

    def bind(self, dataset: OfflineDataset, device: torch.device | str = "cpu") -> BoundOutcomes:
        """Put the columns on a device; raises what ``Transitions`` does."""
        return BoundOutcomes(dataset, device, self)


class BoundOutcomes(BoundTransitions):
    """``Outcomes`` over one dataset on one device."""

    def __init__(self, dataset: OfflineDataset, device: torch.device | str, view: Outcomes) -> None:
        if view.failure is not None:
            dataset = _with_failures(dataset, view.failure)
        super().__init__(dataset, device, view)
        if dataset.cut_off and (view.returns is not None or view.failure is not None):
            begun = torch.tensor([int(dataset.episodes[-1, 0])])
            self.spans = self.spans.within(Spans(torch.zeros_like(begun), begun))
            if len(self.spans) == 0:
                raise DatasetError(
                    f"{dataset.spec.origin}: no episode of it has ended, so no return is known: "
                    "record whole episodes."
                )

    def batch(  # type: ignore[override]
        self, index: Int[Tensor, " B"], uniforms: Float[Tensor, "B 0"] | None = None
    ) -> OutcomeBatch:
        """Return the transitions that begin at rows ``index``, elements of ``self.rows``."""
        made = super().batch(index)
        corrected = self._rows.take(INTERVENTIONS, index)
        if corrected is None:
            corrected = torch.zeros_like(made.terminals)
        return OutcomeBatch(*made[:6], discounts=made.discounts, corrected=corrected)

    def returns(self) -> Tensor | None:
        """Discounted returns (n,) of ``rows``; None of a view without them."""
        return None if self._returns is None else self._returns[self.rows]


def _with_failures(dataset: OfflineDataset, failure: float) -> OfflineDataset:
    """Return a dataset whose timeouts are terminal, their rewards those of failures."""
    failed = np.zeros(len(dataset), np.bool_)
    failed[dataset.episodes[:, 1] - 1] = ~dataset.episode_terminated
    columns = dict(dataset.columns)
    columns["terminals"] = columns["terminals"] | failed
    if "rewards" in columns:
        columns["rewards"] = columns["rewards"] + np.float32(failure) * failed
    return OfflineDataset.from_checked(
        columns, dataset.spec, dataset.provenance, dataset.episodes, dataset.cut_off
    )
