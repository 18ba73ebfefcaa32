"""Whose an episode is, by the column ``policy``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lit_offrl.common.errors import DatasetError
from lit_offrl.datasets.schema import OfflineDataset

_SHOWN = 12  # values that a message lists at most


def episodes_of_policies(dataset: OfflineDataset, policies: Sequence[float]) -> np.ndarray:
    """Return which episodes (E,), bool, have any row of these values of the column ``policy``.

    Raises:
        DatasetError: there is no such column, or a value does not occur in it.
    """
    column = dataset.column("policy")
    values = np.asarray(policies, dtype=column.dtype)  # 0.1 is stored as the float32 next to it
    occurring = np.unique(column)
    for given, value in zip(policies, values, strict=True):
        if value not in occurring:
            has = ", ".join(f"{one:g}" for one in occurring[:_SHOWN])
            more = f", … ({len(occurring)} values)" if len(occurring) > _SHOWN else ""
            raise DatasetError(
                f"{dataset.spec.origin}: column 'policy' never has the value {given:g} "
                f"(it has {has}{more}): choose among those."
            )
    return np.maximum.reduceat(np.isin(column, values), dataset.episodes[:, 0])
