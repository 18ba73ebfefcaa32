"""Datasets by whatever a command line names: a name, a file, ``minari:ID``, ``lerobot:PATH``, …"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.catalog import FileSource, resolve
from lit_offrl.datasets.d4rl_package import PackagedSource
from lit_offrl.datasets.lerobot import DEFAULT_OPTIONS, LeRobotOptions, LeRobotSource
from lit_offrl.datasets.lerobot_folder import PREFIX as LEROBOT_PREFIX
from lit_offrl.datasets.lerobot_folder import lerobot_folder
from lit_offrl.datasets.minari import MinariSource
from lit_offrl.datasets.minari_opening import PREFIX, minari_folder
from lit_offrl.datasets.ogbench import OGBenchSource
from lit_offrl.datasets.reading import DEFAULT_READING, Reading
from lit_offrl.datasets.robomimic import DEFAULT_ROBOMIMIC, RobomimicOptions, RobomimicSource
from lit_offrl.datasets.robomimic import PREFIX as ROBOMIMIC_PREFIX
from lit_offrl.datasets.robomimic import is_robomimic as is_robomimic_file

D4RL_PREFIX = "d4rl:"


Source = (
    FileSource | OGBenchSource | MinariSource | LeRobotSource | RobomimicSource | PackagedSource
)
"""Where a dataset comes from: files, a folder of Minari's or LeRobot's, or the package d4rl."""


def is_minari(text: str) -> bool:
    """Whether a name is ``minari:ID`` or the path of a Minari dataset's folder."""
    return text.startswith(PREFIX) or minari_folder(text) is not None


def is_lerobot(text: str) -> bool:
    """Whether a name is ``lerobot:PATH`` or the path of a LeRobot dataset's folder."""
    return text.startswith(LEROBOT_PREFIX) or lerobot_folder(text) is not None


def is_robomimic(text: str) -> bool:
    """Whether a name is ``robomimic:FILE`` or the path of a file in robomimic's layout."""
    return text.startswith(ROBOMIMIC_PREFIX) or is_robomimic_file(Path(text).expanduser())


def find_source(
    name_or_path: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    reading: Reading = DEFAULT_READING,
    *,
    minari_observations: Sequence[str] | None = None,
    lerobot: LeRobotOptions = DEFAULT_OPTIONS,
    robomimic: RobomimicOptions = DEFAULT_ROBOMIMIC,
    guess: bool = False,
) -> Source:
    """Find a dataset.

    Args:
        name_or_path: ``minari:ID``; the folder of a Minari dataset, with ``minari:`` or without;
            ``lerobot:PATH`` or ``lerobot:ORG/NAME``; ``robomimic:FILE``; ``d4rl:NAME``; or what
            ``resolve`` takes.
        data_dir: Folder of downloaded files, as in ``resolve``.
        reading: How the rows are read.
        minari_observations: Parts of Minari's nested observations that are concatenated.
        lerobot: How a LeRobot dataset's frames become rows.
        robomimic: How demonstrations in robomimic's layout become rows.
        guess: Whether the usual parts are taken where none are given.

    Raises:
        ConfigError: An option does not go with the dataset.
        DatasetError: There is no such dataset, or it cannot be opened.
    """
    text = os.fspath(name_or_path)
    minari, package = is_minari(text), text.startswith(D4RL_PREFIX)
    log = not minari and is_lerobot(text)
    demos = not minari and not log and is_robomimic(text)
    robot = log or demos
    if text in (PREFIX, LEROBOT_PREFIX, ROBOMIMIC_PREFIX, D4RL_PREFIX):
        raise ConfigError(f"'{text}' names no dataset: write its id behind it.")
    if (minari or package) and reading.env_id is not None:
        raise ConfigError(f"{text}: env_id goes only with files: leave it out.")
    if (minari or robot or package) and reading.format != "auto":
        raise ConfigError(f"{text}: format goes only with HDF5 files: leave it out.")
    if (minari or robot) and reading.sparse_windows:
        raise ConfigError(
            f"{text}: rewards 'sparse_windows' is for D4RL's antmaze and maze2d: "
            "leave the option out."
        )
    if minari:
        dataset_id = text.removeprefix(PREFIX)
        return MinariSource(dataset_id, minari_observations, guess, reading.cache)
    if minari_observations is not None:
        raise ConfigError(f"{text}: minari_observations goes only with minari:ID.")
    if demos:
        place = text.removeprefix(ROBOMIMIC_PREFIX)
        return RobomimicSource(place, robomimic, guess, reading.cache, reading.env_id)
    if log:
        place = text.removeprefix(LEROBOT_PREFIX)
        return LeRobotSource(place, lerobot, guess, reading.cache, reading.env_id)
    if package:
        return PackagedSource(text.removeprefix(D4RL_PREFIX), reading)
    return resolve(text, data_dir, reading)
