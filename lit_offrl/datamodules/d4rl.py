"""The tasks of D4RL, from wherever their rows can be had."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.quiet import say
from lit_offrl.datamodules.base import OfflineDataModule
from lit_offrl.datasets.cache import ColumnCache
from lit_offrl.datasets.catalog import default_cache_dir
from lit_offrl.datasets.d4rl_package import PackagedSource, read_d4rl
from lit_offrl.datasets.hdf5 import Format
from lit_offrl.datasets.minari import MinariSource
from lit_offrl.datasets.rewards import Rewards, handle_rewards
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset
from lit_offrl.datasets.sources import D4RL_PREFIX, find_source, is_minari
from lit_offrl.datasets.views import View


class D4RLDataModule(OfflineDataModule):
    """D4RL's datasets, Minari's, or any HDF5 file in their layout.

    The first start reads and checks the file and keeps its columns as memory-mapped arrays, which
    all processes of a host share; later starts read those. What is done to rows and rewards stands
    with every score.

    Args:
        dataset: a name of ``lit-offrl datasets list``; a path; ``minari:ID``, through the package
            minari, or the path of a Minari dataset's folder; or ``d4rl:NAME``, through the package
            d4rl, which is not cached.
        view: as in the base class.
        rewards: ``as_recorded``; ``minus_one`` (AntMaze), ``centred`` (AntMaze), ``return_range``
            (locomotion), ``differences`` (kitchen), ``sparse_windows`` (AntMaze, maze2d): see
            ``handle_rewards`` and ``d4rl.fix_conventions``. The policy is always scored on the
            environment's own rewards.
        minari_observations: of Minari's dictionary observations, the parts to put behind each
            other, such as ``[observation, desired_goal]`` or ``[desired_goal.microwave]``.
        accept_faults: use data that the catalogue refuses.
        cache: keep columns on disk; without it every process reads the file.
        cache_dir: where; the folder ``cache`` in ``data_dir`` by default.
        batch_size: B, rows a process takes in a step.
        validation_fraction: share of the episodes that is held out.
        validation_batches: so many batches a process in a validation at most.
        data_dir: where downloaded datasets are.
        env_id: the environment's gymnasium id, where the file is silent or wrong.
        format: the file's layout, ``auto``, ``d4rl`` or ``pybullet``, as in the base class.
        action_low: lower bound of the actions, where the data's are unknown or others; as in the
            base class.
        action_high: the upper one.
        device: ``auto`` keeps data that fit on the training device, ``cpu`` in main memory.
        seed: of the order of rows and of the choice of held-out episodes.
        hold_out_policies: values of the column ``policy`` that are in no batch, as in the base
            class.

    Raises:
        DatasetError: there is no such dataset, or it cannot be used.
        ConfigError: an option that cannot be, or does not go with the dataset.
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
        batch_size: int = 256,
        validation_fraction: float = 0.1,
        validation_batches: int | None = 20,
        data_dir: str | None = None,
        env_id: str | None = None,
        format: Format = "auto",
        action_low: float | list[float] | None = None,
        action_high: float | list[float] | None = None,
        device: Literal["auto", "cpu"] = "auto",
        seed: int = 0,
        hold_out_policies: Sequence[float] = (),
    ) -> None:
        self.rewards = rewards
        self.minari_observations = minari_observations
        self.accept_faults = accept_faults
        self._folder = Path(cache_dir).expanduser() if cache_dir else default_cache_dir(data_dir)
        self.cache = ColumnCache(self._folder) if cache else None
        super().__init__(
            dataset,
            view,
            batch_size=batch_size,
            validation_fraction=validation_fraction,
            validation_batches=validation_batches,
            data_dir=data_dir,
            env_id=env_id,
            format=format,
            action_low=action_low,
            action_high=action_high,
            device=device,
            seed=seed,
            hold_out_policies=hold_out_policies,
        )

    def _open(self, dataset: str) -> DatasetSpec:
        minari = is_minari(dataset)
        if (minari or dataset.startswith(D4RL_PREFIX)) and self.env_id is not None:
            raise ConfigError(f"{dataset}: env_id goes with files alone: leave it out.")
        if minari and self._sparse:
            raise ConfigError(
                f"{dataset}: rewards 'sparse_windows' is for D4RL's antmaze and maze2d: "
                "leave the option out."
            )
        found = find_source(
            dataset,
            self.data_dir,
            minari_observations=self.minari_observations,
            format=self.format,
        )
        self._found = found
        if isinstance(found, MinariSource):
            return found.header()
        if found.entry is not None and found.entry.warning:
            say(f"{dataset}: {found.entry.warning}")
        if isinstance(found, PackagedSource):
            self._packaged: OfflineDataset | None = self._from_package(found)
            return self._packaged.spec
        return found.header(env_id=self.env_id, sparse_windows=self._sparse, cache=self.cache)

    def _read(self, require: Sequence[str]) -> OfflineDataset:
        found = self._found
        if isinstance(found, MinariSource):
            rows = found.read(self.cache)
        elif isinstance(found, PackagedSource):
            rows = self._packaged or self._from_package(found)
            self._packaged = None  # its copy of the rows, which may be other ones from here on
        else:
            rows = found.read(
                require=require,
                env_id=self.env_id,
                sparse_windows=self._sparse,
                accept_faults=self.accept_faults,
                cache=self.cache,
            )
        handled = handle_rewards(rows, self.rewards)
        # `differences` restores what the environment pays; the others serve training alone.
        self._recorded = handled if self.rewards == "differences" else rows
        return handled

    @property
    def cache_dir(self) -> Path:
        """The folder for what is computed once a dataset."""
        return self._folder

    @property
    def recorded(self) -> OfflineDataset | None:
        """All episodes with the rewards that the environment paid; None before setup."""
        return None if self.dataset is None else self._recorded

    @property
    def _sparse(self) -> bool:
        return self.rewards == "sparse_windows"

    def _from_package(self, found: PackagedSource) -> OfflineDataset:
        return read_d4rl(
            found.dataset,
            sparse_windows=self._sparse,
            accept_faults=self.accept_faults,
            cache=self.cache,
        )
