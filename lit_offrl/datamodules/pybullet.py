"""The PyBullet tasks."""

from __future__ import annotations

from typing import Any

from lit_offrl.datamodules.base import OfflineDataModule
from lit_offrl.datasets.views import View


class PyBulletDataModule(OfflineDataModule):
    """d4rl-pybullet's datasets, the bundled one, or any HDF5 file in either layout.

    Args:
        dataset: A name that ``lit-offrl datasets list`` shows, or the path of a file; by default
            the small dataset that comes with the package.
        view: How rows become batches; by default the method chooses.
        kwargs: Options of :class:`OfflineDataModule`, whose errors are raised.
    """

    def __init__(
        self, dataset: str = "hopper-bullet-bundled", view: View | None = None, **kwargs: Any
    ) -> None:
        super().__init__(dataset, view, **kwargs)
