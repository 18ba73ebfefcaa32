"""Datasets by whatever a command line names: a name, a file, ``minari:ID``, ``lerobot:PATH``, …"""

from __future__ import annotations

import os
from collections.abc import Sequence

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

D4RL_PREFIX = "d4rl:"


Source = FileSource | OGBenchSource | MinariSource | LeRobotSource | PackagedSource
"""Where a dataset comes from: files, a folder of Minari's or LeRobot's, or the package d4rl."""


def is_minari(text: str) -> bool:
    """Whether a name is ``minari:ID`` or the path of a Minari dataset's folder."""
    return text.startswith(PREFIX) or minari_folder(text) is not None


def is_lerobot(text: str) -> bool:
    """Whether a name is ``lerobot:PATH`` or the path of a LeRobot dataset's folder."""
    return text.startswith(LEROBOT_PREFIX) or lerobot_folder(text) is not None


def find_source(
    name_or_path: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    reading: Reading = DEFAULT_READING,
    *,
    minari_observations: Sequence[str] | None = None,
    lerobot: LeRobotOptions = DEFAULT_OPTIONS,
    guess: bool = False,
) -> Source:
    """Find a dataset.

    Args:
        name_or_path: ``minari:ID``; the folder of a Minari dataset, with ``minari:`` or without;
            ``lerobot:PATH`` or ``lerobot:ORG/NAME``; ``d4rl:NAME``; or what ``resolve`` takes.
        data_dir: Folder of downloaded files, as in ``resolve``.
        reading: How the rows are read.
        minari_observations: Parts of Minari's nested observations that are concatenated.
        lerobot: How a LeRobot dataset's frames become rows.
        guess: Whether the usual parts are taken where none are given.

    Raises:
        ConfigError: An option does not go with the dataset.
        DatasetError: There is no such dataset, or it cannot be opened.
    """
    text = os.fspath(name_or_path)
    minari, package = is_minari(text), text.startswith(D4RL_PREFIX)
    robot = not minari and is_lerobot(text)
    if text in (PREFIX, LEROBOT_PREFIX, D4RL_PREFIX):
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
    if robot:
        place = text.removeprefix(LEROBOT_PREFIX)
        return LeRobotSource(place, lerobot, guess, reading.cache, reading.env_id)
    if package:
        return PackagedSource(text.removeprefix(D4RL_PREFIX), reading)
    return resolve(text, data_dir, reading)
