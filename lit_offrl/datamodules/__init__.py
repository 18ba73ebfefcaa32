"""Datasets as Lightning's data modules."""

from lit_offrl.datamodules.base import OfflineDataModule
from lit_offrl.datamodules.d4rl import D4RLDataModule
from lit_offrl.datamodules.lerobot import LeRobotDataModule
from lit_offrl.datamodules.ogbench import OGBenchDataModule
from lit_offrl.datamodules.pybullet import PyBulletDataModule
from lit_offrl.datamodules.robomimic import RobomimicDataModule

__all__ = [
    "D4RLDataModule",
    "LeRobotDataModule",
    "OGBenchDataModule",
    "OfflineDataModule",
    "PyBulletDataModule",
    "RobomimicDataModule",
]
