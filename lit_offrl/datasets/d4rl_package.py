"""Datasets through the ``d4rl`` package, where it is installed: raw rows, read as its files are.

The package is no requirement: its files are read directly, with the same result.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_offrl.common.errors import ConfigError, DatasetError, nearest, reason
from lit_offrl.datasets import d4rl
from lit_offrl.datasets.cache import ColumnCache
from lit_offrl.datasets.columns import ALIASES, KINDS
from lit_offrl.datasets.entries import CATALOG, CatalogEntry
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset


def read_d4rl(
    name: str,
    *,
    sparse_windows: bool = False,
    accept_faults: bool = False,
    cache: ColumnCache | None = None,
) -> OfflineDataset:
    """Read a dataset with ``gym.make(name).get_dataset()``, which downloads it if need be.

    Args:
        name: a D4RL name of the catalogue, such as ``hopper-medium-v2``.
        sparse_windows: see ``d4rl.fix_conventions``.
        accept_faults: read data that the catalogue refuses.
        cache: keeps the hash of the package's file, if given.

    Raises:
        ConfigError: the package is not installed or cannot be used.
        DatasetError: there is no such dataset, or its rows cannot be used.
    """
    entry = _entry(name)
    if entry.refusal and not accept_faults:
        raise DatasetError(f"{name}: is refused: {entry.refusal}.")
    where = f"d4rl:{name}"
    environment = _make(name)
    try:
        raw = environment.get_dataset()
    except Exception as error:  # of many kinds: the network's, HDF5's, the package's assertions
        raise DatasetError(
            f"{where}: the package cannot read it ({reason(error, named=True)})."
        ) from error
    columns = {key: np.asarray(raw[key]) for key in (*KINDS, *ALIASES) if key in raw}
    if "goals" not in columns and "infos/goal" in raw:
        columns["goals"] = np.asarray(raw["infos/goal"])
    columns, handling = d4rl.fix_conventions(
        columns, name, entry.max_episode_steps, where, sparse_windows=sparse_windows
    )
    file = Path(str(getattr(environment, "dataset_filepath", "")))
    digest = cache.sha256(file) if cache is not None and file.is_file() else None
    dataset = OfflineDataset.from_columns(
        columns,
        name=name,
        origin=where,
        provenance={"source": "the d4rl package", "file": file.name},
        env_id=entry.env_id,
        sha256=digest,
        handling=handling,
    )
    return dataset.with_spec(entry.complete(dataset.spec))


@dataclass(frozen=True)
class PackagedSource:
    """A dataset of D4RL, read with its package: what ``Source`` is for files.

    Args:
        dataset: a D4RL name of the catalogue.

    Raises:
        DatasetError: there is no such dataset.
    """

    dataset: str

    def __post_init__(self) -> None:
        _entry(self.dataset)

    @property
    def name(self) -> str:
        """The name with its prefix."""
        return f"d4rl:{self.dataset}"

    @property
    def entry(self) -> CatalogEntry:
        """The catalogue's entry."""
        return _entry(self.dataset)

    def header(self) -> DatasetSpec:
        """Return what the catalogue knows; the package is not imported.

        Raises:
            DatasetError: not even the sizes are known.
        """
        return self.entry.spec()

    def read(self, *, require: Sequence[str] = (), accept_faults: bool = False) -> OfflineDataset:
        """Read it through the package; see ``read_d4rl``.

        Raises:
            ConfigError: as ``read_d4rl``.
            DatasetError: as ``read_d4rl``, or a column of ``require`` is missing.
        """
        dataset = read_d4rl(self.dataset, accept_faults=accept_faults)
        for column in require:
            dataset.column(column)
        return dataset


def _entry(name: str) -> CatalogEntry:
    entry = CATALOG.get(name)
    if entry is None or entry.format != "d4rl":
        names = [key for key, known in CATALOG.items() if known.format == "d4rl"]
        raise DatasetError(f"d4rl:{name}: is no dataset of D4RL.{nearest(name, names)}")
    return entry


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
