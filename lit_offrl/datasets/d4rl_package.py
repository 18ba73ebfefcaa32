"""Datasets through the ``d4rl`` package, where it is installed: raw rows, read as its files are.

The package is no requirement: its files are read directly, with the same result.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_offrl.common.errors import ConfigError, DatasetError, nearest, reason
from lit_offrl.datasets import d4rl
from lit_offrl.datasets.catalog import DEFAULT_READING, Reading
from lit_offrl.datasets.columns import ALIASES, KINDS
from lit_offrl.datasets.entries import CATALOG
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset


class PackagedSource:
    """A dataset of D4RL that is read through its package, which downloads it if need be.

    Args:
        dataset: A D4RL name of the catalogue, such as ``hopper-medium-v2``.
        reading: How it is read; its cache keeps the hash of the package's file alone.

    Raises:
        DatasetError: There is no such dataset.
    """

    def __init__(self, dataset: str, reading: Reading = DEFAULT_READING) -> None:
        entry = CATALOG.get(dataset)
        if entry is None or entry.format != "d4rl":
            names = [key for key, known in CATALOG.items() if known.format == "d4rl"]
            raise DatasetError(f"d4rl:{dataset}: is no dataset of D4RL.{nearest(dataset, names)}")
        self.name, self.entry = f"d4rl:{dataset}", entry
        self._dataset, self._reading = dataset, reading
        self._read: OfflineDataset | None = None

    def header(self) -> DatasetSpec:
        """Return the spec of the rows, which only the package knows: so they are read.

        Raises:
            ConfigError: The package is not installed or cannot be used.
            DatasetError: The rows are refused, or cannot be used.
        """
        self._read = self.rows()
        return self._read.spec

    def read(self, *, require: Sequence[str] = ()) -> OfflineDataset:
        """Return the rows; those that ``header`` has read serve once, lest two copies be kept.

        Raises:
            ConfigError: As ``header``.
            DatasetError: As ``header``, or a column of ``require`` is missing.
        """
        dataset = self._read or self.rows()
        self._read = None
        for column in require:
            dataset.column(column)
        return dataset

    def rows(self) -> OfflineDataset:
        """Read the rows with ``gym.make(dataset).get_dataset()``; the errors are ``header``'s."""
        name, where, reading, entry = self._dataset, self.name, self._reading, self.entry
        if entry.refusal and not reading.accept_faults:
            raise DatasetError(f"{name}: is refused: {entry.refusal}.")
        environment = _make(name)
        try:
            raw = environment.get_dataset()
        except Exception as error:  # the network's, HDF5's, the package's assertions
            raise DatasetError(
                f"{where}: the package cannot read it ({reason(error, named=True)})."
            ) from error
        columns = {key: np.asarray(raw[key]) for key in (*KINDS, *ALIASES) if key in raw}
        if "goals" not in columns and "infos/goal" in raw:
            columns["goals"] = np.asarray(raw["infos/goal"])
        columns, handling = d4rl.fix_conventions(
            columns, name, entry.max_episode_steps, where, sparse_windows=reading.sparse_windows
        )
        file = Path(str(getattr(environment, "dataset_filepath", "")))
        cache = reading.cache
        dataset = OfflineDataset.from_columns(
            columns,
            name=name,
            origin=where,
            provenance={"source": "the d4rl package", "file": file.name},
            env_id=entry.env_id,
            sha256=cache.sha256(file) if cache is not None and file.is_file() else None,
            handling=handling,
        )
        return dataset.with_spec(entry.complete(dataset.spec))


def _make(name: str) -> Any:
    try:
        gym = importlib.import_module("gym")
        importlib.import_module("d4rl")
        return gym.make(name).unwrapped
    except Exception as error:  # its imports fail in many ways, of which ImportError is one
        said = reason(error, named=True)
        raise ConfigError(
            f"d4rl:{name}: the package d4rl cannot be used here ({said}): it needs Python "
            f"< 3.11, gym < 0.24 and mujoco_py. Its file is read without it: "
            f"`lit-offrl datasets download {name}`, and give just '{name}'."
        ) from error
