"""The tasks of D4RL, from wherever their rows can be had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lit_offrl.common.quiet import say
from lit_offrl.datamodules.base import OfflineDataModule
from lit_offrl.datasets.catalog import Reading, open_cache
from lit_offrl.datasets.rewards import Rewards, environment_rewards, handle_rewards
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.sources import Source, find_source
from lit_offrl.datasets.views import View


class D4RLDataModule(OfflineDataModule):
    """D4RL's datasets, Minari's, or any HDF5 file in their layout.

    The first start reads and checks the file and keeps its columns as memory-mapped arrays, which
    all processes of a host share; later starts read those. What is done to rows and rewards is
    recorded with every score.

    Args:
        dataset: A name that ``lit-offrl datasets list`` shows; the path of a file; ``minari:ID``,
            read by the package minari, or the path of a Minari dataset's folder; or ``d4rl:NAME``,
            read by the package d4rl and not cached.
        view: How rows become batches; by default the method chooses.
        rewards: Rewards that are trained on: ``as_recorded``; ``minus_one``, ``centred``
            or ``hundredfold`` for AntMaze; ``return_range`` for locomotion; ``differences`` for the
            kitchen; or ``sparse_windows`` for AntMaze and maze2d; see ``handle_rewards``. The
            policy is always scored on the environment's own rewards.
        minari_observations: Parts of Minari's dictionary observations that are concatenated, such
            as ``[observation, desired_goal]`` or ``[desired_goal.microwave]``.
        accept_faults: Whether data that the catalogue refuses are used all the same.
        cache: Whether columns are kept on disk; without it every process reads the file.
        cache_dir: Folder of the cached columns; by default the folder ``cache`` in ``data_dir``.
        kwargs: Options of :class:`OfflineDataModule`, whose errors are raised.
    """

    def __init__(
        self,
        dataset: str,
        view: View | None = None,
        *,
        rewards: Rewards = "as_recorded",
        minari_observations: list[str] | None = None,
        accept_faults: bool = False,
        cache: bool = True,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.rewards = rewards
        self.minari_observations = minari_observations
        self.accept_faults = accept_faults
        folder, self.cache = open_cache(cache, cache_dir, kwargs.get("data_dir"))
        super().__init__(dataset, view, **kwargs)
        self.cache_dir = folder

    def _find(self, dataset: str) -> Source:
        sparse = self.rewards == "sparse_windows"
        reading = Reading(self.format, self.env_id, sparse, self.accept_faults, self.cache)
        source = find_source(
            dataset, self.data_dir, reading, minari_observations=self.minari_observations
        )
        if source.entry is not None and source.entry.warning:
            say(f"{dataset}: {source.entry.warning}")
        return source

    def _read(self, require: Sequence[str]) -> OfflineDataset:
        rows = super()._read(require)
        handled = handle_rewards(rows, self.rewards)
        # `differences` restores the environment's rewards; the others serve training alone.
        self.recorded = handled if self.rewards == "differences" else rows
        return handled

    def environment_rewards(self) -> Callable[[np.ndarray], np.ndarray]:
        """What makes the environment's rewards (n,) those of the option ``rewards``."""
        self._require_rows()
        assert self.recorded is not None  # there are rows
        return environment_rewards(self.recorded, self.rewards)
