"""Which episodes of a dataset are trained on, which validate, and which are in neither."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.common.seeds import mix
from lit_offrl.datasets.schema import OfflineDataset

_SPLIT = 0x5B17  # keeps the streams of one seed apart
_LISTED = 12  # values that a message lists at most


@dataclass(frozen=True)
class Split:
    """Numbers of episodes, rising.

    Attributes:
        train: Episodes that are trained on.
        held_out: Episodes that validate; None if there are none.
        is_whole: Whether ``train`` is all episodes of the dataset.
    """

    train: np.ndarray
    held_out: np.ndarray | None
    is_whole: bool


def split_episodes(
    dataset: OfflineDataset,
    validation_fraction: float,
    seed: int,
    hold_out_policies: Sequence[float] = (),
) -> Split:
    """Choose the held-out episodes at random; those of ``hold_out_policies`` are in neither part.

    Where the data come with a split of their own, the column ``validation``, that one holds.

    Args:
        dataset: Whole.
        validation_fraction: Fraction of the episodes, in [0, 1), that is held out.
        seed: Seed of the choice.
        hold_out_policies: Values of the column ``policy``.

    Raises:
        ConfigError: No episode would be left to train on.
        DatasetError: As ``episodes_of_policies``.
    """
    kept = np.arange(len(dataset.episodes))
    if hold_out_policies:
        kept = kept[~episodes_of_policies(dataset, hold_out_policies)]
    if len(kept) == 0:
        raise ConfigError(
            f"{dataset.spec.origin}: hold_out_policies names every policy of the data, which "
            "leaves none to train on: name fewer."
        )
    if "validation" in dataset.columns:
        validates = dataset.columns["validation"][dataset.episodes[kept, 0]]
        train, held_out = kept[~validates], kept[validates]
        is_whole = len(train) == len(dataset.episodes)
        if len(train) == 0:
            raise ConfigError(
                f"{dataset.spec.origin}: column 'validation' is True in every episode, which "
                "leaves none to train on: write it False where they are trained on."
            )
        return Split(train, held_out if len(held_out) else None, is_whole)
    count = math.ceil(validation_fraction * len(kept) - 1e-9)
    if count == 0:
        return Split(kept, None, len(kept) == len(dataset.episodes))
    if count >= len(kept):
        raise ConfigError(
            f"{dataset.spec.origin}: holding {count} of {len(kept)} episodes out leaves none to "
            "train on: set validation_fraction to 0 or take more episodes."
        )
    order = np.random.default_rng(mix(seed, _SPLIT)).permutation(len(kept))
    return Split(kept[np.sort(order[count:])], kept[np.sort(order[:count])], False)


def episodes_of_policies(dataset: OfflineDataset, policies: Sequence[float]) -> np.ndarray:
    """Return which episodes (E,), bool, have any row of these values of the column ``policy``.

    Raises:
        DatasetError: There is no such column, or a value does not occur in it.
    """
    column = dataset.column("policy")
    values = np.asarray(policies, dtype=column.dtype)  # 0.1 is stored as the float32 next to it
    occurring = np.unique(column)
    for given, value in zip(policies, values, strict=True):
        if value not in occurring:
            has = ", ".join(f"{one:g}" for one in occurring[:_LISTED])
            more = f", … ({len(occurring)} values)" if len(occurring) > _LISTED else ""
            raise DatasetError(
                f"{dataset.spec.origin}: column 'policy' never has the value {given:g} "
                f"(it has {has}{more}): choose among those."
            )
    return np.maximum.reduceat(np.isin(column, values), dataset.episodes[:, 0])
