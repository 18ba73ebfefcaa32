"""Demonstrations in robomimic's layout."""

from __future__ import annotations

from typing import Any, Literal

from lit_offrl.common.errors import DatasetError
from lit_offrl.datamodules.base import OfflineDataModule
from lit_offrl.datasets.catalog import Reading, open_cache
from lit_offrl.datasets.robomimic import PREFIX, RobomimicOptions, RobomimicSource
from lit_offrl.datasets.sources import Source, find_source
from lit_offrl.datasets.views import View


class RobomimicDataModule(OfflineDataModule):
    """An HDF5 file of demonstrations as robomimic has them (Mandlekar et al. 2021).

    Demonstrations come in the order of their numbers. A row with ``dones`` is a terminal and ends
    an episode, also within a demonstration; a last row without it is a timeout. The first start
    reads and checks the file and keeps its columns as memory-mapped arrays.

    Args:
        dataset: Path of the file, with ``robomimic:`` before it or without.
        view: How rows become batches; by default the method chooses.
        observations: Keys of ``obs`` that are put behind each other, in this order, such as
            ``[robot0_eef_pos, robot0_eef_quat, robot0_gripper_qpos, object]``; by default the only
            one. Pictures are left out.
        mask: Filter key, of the group ``mask``, whose demonstrations are taken; by default all.
        validation_mask: Filter key whose demonstrations validate, and then nothing else is held
            out.
        dones: ``terminals``, or ``ignore``: robomimic's scripts may also write them on the last row
            of demonstrations whose task did not end.
        env_id: The gymnasium id of the environment, whose observations must be the ones chosen.
        cache: Whether columns are kept on disk; without it every process reads the file.
        cache_dir: Folder of the cached columns; by default the folder ``cache`` in ``data_dir``.
        kwargs: Options of :class:`OfflineDataModule`, whose errors are raised.

    Raises:
        ConfigError: An option names a key that is not there.
        DatasetError: There is no such file, or it cannot be used; the line names the demonstration,
            the array and the row.
    """

    def __init__(
        self,
        dataset: str,
        view: View | None = None,
        *,
        observations: list[str] | None = None,
        mask: str | None = None,
        validation_mask: str | None = None,
        dones: Literal["terminals", "ignore"] = "terminals",
        env_id: str | None = None,
        cache: bool = True,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        keys = None if observations is None else tuple(observations)
        self.options = RobomimicOptions(keys, mask, validation_mask, dones)
        folder, self.cache = open_cache(cache, cache_dir, kwargs.get("data_dir"))
        super().__init__(dataset, view, env_id=env_id, **kwargs)
        self.cache_dir = folder

    def _find(self, dataset: str) -> Source:
        text = dataset if dataset.startswith(PREFIX) else PREFIX + dataset
        reading = Reading(self.format, self.env_id, cache=self.cache)
        source = find_source(text, self.data_dir, reading, robomimic=self.options)
        if not isinstance(source, RobomimicSource):
            raise DatasetError(f"{dataset}: is no file of robomimic's: give another class_path.")
        return source
