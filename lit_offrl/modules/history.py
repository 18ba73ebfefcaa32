"""What came before a state: the sequential representation of a policy (DVF, section 3.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_offrl.datasets.normalizers import MinMaxNormalizer
from lit_offrl.datasets.views import FutureStateBatch


class History(NamedTuple):
    """The k states before each of B states, oldest first."""

    states: Tensor
    """(B, k, o), zeros where the episode had not begun."""
    actions: Tensor | None
    """The actions taken in them, (B, k, a), if known."""
    mask: Tensor
    """True where there is a state, bool (B, k)."""

    @classmethod
    def before(cls, batch: FutureStateBatch) -> History | None:
        """History of a batch's s_t, if its view gathers one."""
        if batch.history is None or batch.history_mask is None:
            return None
        return cls(batch.history, batch.history_actions, batch.history_mask)

    def advanced(self, observations: Tensor, actions: Tensor | None) -> History:
        """One step on: the oldest state goes, ``observations`` (B, o) come last."""
        taken = None
        if self.actions is not None and actions is not None:
            taken = torch.cat([self.actions[:, 1:], actions[:, None]], dim=1)
        return History(
            torch.cat([self.states[:, 1:], observations[:, None]], dim=1),
            taken,
            torch.cat([self.mask[:, 1:], torch.ones_like(self.mask[:, :1])], dim=1),
        )

    def normalised(self, normalizer: MinMaxNormalizer) -> History:
        """The same with normalised states."""
        return self._replace(states=normalizer.normalize(self.states))
