"""Datasets as Lightning's data modules."""

from lit_offrl.datamodules.base import OfflineDataModule
from lit_offrl.datamodules.pybullet import PyBulletDataModule

__all__ = ["OfflineDataModule", "PyBulletDataModule"]
