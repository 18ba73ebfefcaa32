"""The tasks of OGBench."""

from __future__ import annotations

from typing import Any

from lit_offrl.common.errors import DatasetError
from lit_offrl.datamodules.base import OfflineDataModule
from lit_offrl.datasets.catalog import open_cache, resolve
from lit_offrl.datasets.ogbench import OGBenchSource
from lit_offrl.datasets.reading import Reading
from lit_offrl.datasets.sources import Source
from lit_offrl.datasets.views import View


class OGBenchDataModule(OfflineDataModule):
    """OGBench's data (Park et al. 2025), of a single task or for any goal.

    ``cube-single-play-singletask-task2-v0`` has the rewards of task 2, which the package ogbench
    gives to the file's states; without a number it is the environment's default task. Without
    ``singletask`` there are no rewards: methods with goals take them from later states
    (``hindsight``), and are evaluated on the environment's five tasks. ``NAME-val.npz`` in the same
    folder as ``NAME.npz`` is used for validation, and nothing else is held out. The first start
    reads and checks both files in blocks and keeps their columns as memory-mapped arrays.

    Args:
        dataset: A name that ``lit-offrl datasets list ogbench`` shows, or the path of an ``.npz``,
            whose name may be that of a task: ``DIR/cube-single-play-singletask-task2-v0.npz``.
        view: How rows become batches; by default the method chooses.
        env_id: The gymnasium id of OGBench's environment, where the file's name does not tell it.
        cache: Whether columns are kept on disk; without it every process reads the files.
        cache_dir: Folder of the cached columns; by default the folder ``cache`` in ``data_dir``.
        kwargs: Options of :class:`OfflineDataModule`, whose errors are raised.

    Raises:
        DatasetError: There are no such data, they cannot be used, or are not of OGBench.
        ConfigError: A task's rewards need the package ogbench, which is not installed.
    """

    def __init__(
        self,
        dataset: str,
        view: View | None = None,
        *,
        env_id: str | None = None,
        cache: bool = True,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        folder, self.cache = open_cache(cache, cache_dir, kwargs.get("data_dir"))
        super().__init__(
            dataset, view, env_id=env_id, validation_fraction=0.0, format="auto", **kwargs
        )
        self.cache_dir = folder

    def _find(self, dataset: str) -> Source:
        source = resolve(dataset, self.data_dir, Reading(env_id=self.env_id, cache=self.cache))
        if not isinstance(source, OGBenchSource):
            raise DatasetError(
                f"{dataset}: is none of OGBench's data, or nothing tells of which environment: "
                "give the env_id, or another data.class_path."
            )
        return source

    def setup(self, stage: str) -> None:
        """Read the rows, as :class:`OfflineDataModule` does, and check that they fit the method.

        Raises:
            DatasetError: The method needs rewards, and the data are of no task; or as there.
        """
        source, module = self.source, self._module()
        assert isinstance(source, OGBenchSource)
        if source.task is None and "rewards" in getattr(module, "required_columns", ()):
            name = source.name.removesuffix("-v0")
            raise DatasetError(
                f"{source.name}: has no rewards, which {type(module).__name__} needs: choose a "
                f"task, such as {name}-singletask-task1-v0."
            )
        super().setup(stage)
