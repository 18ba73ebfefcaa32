"""The PyBullet tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lit_offrl.datamodules.base import OfflineDataModule
from lit_offrl.datasets.hdf5 import Format
from lit_offrl.datasets.views import View


class PyBulletDataModule(OfflineDataModule):
    """d4rl-pybullet's datasets, the bundled one, or any HDF5 file in either layout.

    Args:
        dataset: a name of ``lit-offrl datasets list``, or a path; by default the small dataset
            that comes with the package.
        view: as in the base class.
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
        ConfigError: a number that cannot be.
    """

    def __init__(
        self,
        dataset: str = "hopper-bullet-bundled",
        view: View | None = None,
        *,
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
