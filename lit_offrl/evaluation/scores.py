"""Normalised scores: 0 is the reference policy that knows nothing, 100 the one that is good."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lit_offrl.common.errors import EvaluationError

if TYPE_CHECKING:
    from lit_offrl.datasets.schema import DatasetSpec


def has_references(spec: DatasetSpec) -> bool:
    """Whether returns in this environment can be normalised."""
    return spec.ref_min_score is not None and spec.ref_max_score is not None


def normalized_score(returns: np.ndarray | float, spec: DatasetSpec) -> np.ndarray:
    """Scale returns (K,) to scores 100 · (return − ref_min) / (ref_max − ref_min), (K,) float64.

    Where scores are of success (``DatasetSpec.score_of``), 0 and 1 take the returns' place.

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
    if not low < high:
        raise EvaluationError(f"Reference returns {low:g} and {high:g}: the first must be smaller.")
    return 100 * (np.asarray(returns, np.float64) - low) / (high - low)
