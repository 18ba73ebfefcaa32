"""Logs of robots in LeRobot's layout."""

from __future__ import annotations

from typing import Any, Literal

from lit_offrl.common.errors import DatasetError
from lit_offrl.datamodules.base import OfflineDataModule
from lit_offrl.datasets.catalog import Reading, open_cache
from lit_offrl.datasets.lerobot import LeRobotOptions, LeRobotSource
from lit_offrl.datasets.lerobot_folder import PREFIX
from lit_offrl.datasets.sources import Source, find_source
from lit_offrl.datasets.views import View


class LeRobotDataModule(OfflineDataModule):
    """A LeRobotDataset (v3): the folder that the package lerobot records, or a name on the hub.

    Each frame is a row: what was observed and the action that was then taken. An episode's last row
    is a terminal where the episode succeeded, or where ``terminal`` says so, and else a timeout.
    The first start streams and checks the Parquet files and keeps their columns as memory-mapped
    arrays. Images and videos are left out unless ``frames`` says what is made of them.

    Args:
        dataset: Path of the folder, or ``ORG/NAME`` or ``ORG/NAME@REVISION`` on the hub, with
            ``lerobot:`` before it or without.
        view: How rows become batches; by default the method chooses.
        observations: Features that are put behind each other, in this order; by default
            ``observation.state``.
        reward: Feature of rewards. By default the rewards are what ``success`` says where it is
            given, else ``next.reward`` or ``reward``, else what ``next.success`` says.
        success: What says which episodes succeeded, whose last row has the reward 1 and all other
            rows 0: the name of a feature that is true in some row of them, the numbers of these
            episodes, or the path of a file with the numbers. By default ``next.success``.
        terminal: Feature that is true on the last row of episodes whose task ended there; by
            default ``next.terminated``, else what ``success`` says.
        tasks: What becomes of the task's number: ``ignore``; ``observations``, a one-hot vector
            behind the observation; or ``goals``, that vector as the column ``goals``.
        frames: By the name of an image's or a video's feature the function of its frames, as
            ``{observation.images.top: my_robot.features}``. It takes frames
            (B, height, width, 3) of bytes and returns numbers (B, k), which are stored once and put
            behind the observation.
        env_id: The gymnasium id of the environment, whose observations must be the ones chosen.
        cache: Whether columns are kept on disk; without it every process reads the files.
        cache_dir: Folder of the cached columns; by default the folder ``cache`` in ``data_dir``.
        kwargs: Options of :class:`OfflineDataModule`, whose errors are raised.

    Raises:
        ConfigError: An option names a feature that is not there, or does not go with the others.
        DatasetError: There is no such dataset, or it cannot be used; the line names the file, the
            feature and the row.
    """

    def __init__(
        self,
        dataset: str,
        view: View | None = None,
        *,
        observations: list[str] | None = None,
        reward: str | None = None,
        success: str | list[int] | None = None,
        terminal: str | None = None,
        tasks: Literal["ignore", "observations", "goals"] = "ignore",
        frames: dict[str, str] | None = None,
        env_id: str | None = None,
        cache: bool = True,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.options = LeRobotOptions(
            observations=None if observations is None else tuple(observations),
            reward=reward,
            success=tuple(success) if isinstance(success, list) else success,
            terminal=terminal,
            tasks=tasks,
            frames=frames,
        )
        folder, self.cache = open_cache(cache, cache_dir, kwargs.get("data_dir"))
        super().__init__(dataset, view, env_id=env_id, **kwargs)
        self.cache_dir = folder

    def _find(self, dataset: str) -> Source:
        text = dataset if dataset.startswith(PREFIX) else PREFIX + dataset
        reading = Reading(self.format, self.env_id, cache=self.cache)
        source = find_source(text, self.data_dir, reading, lerobot=self.options)
        if not isinstance(source, LeRobotSource):
            raise DatasetError(f"{dataset}: is no LeRobot dataset: give another data.class_path.")
        return source

    def setup(self, stage: str) -> None:
        """Read the rows, as :class:`OfflineDataModule` does, and check that they fit the method.

        Raises:
            DatasetError: The method needs rewards, and nothing says what they are; or as there.
        """
        module = self._module()
        needed = getattr(module, "required_columns", ())
        if "rewards" in needed and "rewards" not in self.spec.columns:
            raise DatasetError(
                f"{self.spec.origin}: has no rewards, which {type(module).__name__} needs: name "
                "with data.init_args.success which episodes succeeded, or with reward a feature."
            )
        super().setup(stage)
