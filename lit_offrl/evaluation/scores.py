"""Normalised scores: 0 is the reference policy that knows nothing, 100 the one that is good."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lit_offrl.common.errors import EvaluationError

if TYPE_CHECKING:
    from lit_offrl.datasets.schema import DatasetSpec


def has_references(spec: DatasetSpec) -> bool:
    """Whether returns in this environment can be normalised."""
    return spec.ref_min_score is not None and spec.ref_max_score is not None


def normalized_score(returns: np.ndarray | float, spec: DatasetSpec) -> np.ndarray:
    """Scale returns (K,) to scores 100 · (return − ref_min) / (ref_max − ref_min), (K,) float64.

    Fu et al., D4RL (2020), section 5, times 100. Scores below 0 and above 100 are no mistake.

    Raises:
        EvaluationError: the spec has no reference returns, or they are equal.
    """
    low, high = spec.ref_min_score, spec.ref_max_score
    if low is None or high is None:
        raise EvaluationError(
            f"'{spec.name}' has no reference returns, so its returns have no normalised score:"
            " give ref_min_score and ref_max_score, or report returns."
        )
    _require_order(low, high)
    return 100 * (np.asarray(returns, np.float64) - low) / (high - low)


def _require_order(low: float, high: float) -> None:
    if not low < high:
        raise EvaluationError(f"Reference returns {low:g} and {high:g}: the first must be smaller.")


class NormalizedScore(Metric):
    """Mean normalised score over episodes, right under DDP: no episode counts twice.

    Processes hand in the episodes that they ran with their numbers; where a number came twice (a
    padded shard, a repeated update), its first return counts. Without references there is no score:
    make one only where :func:`has_references` says so.

    Args:
        ref_min_score: the return that scores 0.
        ref_max_score: the return that scores 100.

    Raises:
        EvaluationError: the references are not in order.
    """

    higher_is_better = True
    full_state_update = False
    episodes: list[Tensor]
    returns: list[Tensor]

    def __init__(self, ref_min_score: float, ref_max_score: float) -> None:
        super().__init__()
        _require_order(ref_min_score, ref_max_score)
        self.low, self.high = ref_min_score, ref_max_score
        self.add_state("episodes", default=[], dist_reduce_fx="cat")
        self.add_state("returns", default=[], dist_reduce_fx="cat")

    def update(self, episodes: Tensor | np.ndarray, returns: Tensor | np.ndarray) -> None:
        """Add episodes by number (K,), integers, with their returns (K,); K may be 0."""
        self.episodes.append(torch.as_tensor(episodes, dtype=torch.int64, device=self.device))
        self.returns.append(torch.as_tensor(returns, dtype=torch.float64, device=self.device))

    def compute(self) -> Tensor:
        """Return the mean score of the distinct episodes, float64; NaN if there are none."""
        episodes, returns = dim_zero_cat(self.episodes), dim_zero_cat(self.returns)
        distinct, group = torch.unique(episodes, return_inverse=True)
        first = torch.full_like(distinct, len(episodes))
        rows = torch.arange(len(episodes), device=episodes.device)
        first.scatter_reduce_(0, group, rows, reduce="amin")
        return 100 * (returns[first].mean() - self.low) / (self.high - self.low)
