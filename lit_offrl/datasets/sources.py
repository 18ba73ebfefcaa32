"""Datasets by whatever a command line names: a name, a file, ``minari:ID``, ``d4rl:NAME``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.catalog import Source, resolve
from lit_offrl.datasets.d4rl_package import PackagedSource
from lit_offrl.datasets.hdf5 import Format
from lit_offrl.datasets.minari import MinariSource, minari_source
from lit_offrl.datasets.minari_opening import PREFIX, minari_folder

D4RL_PREFIX = "d4rl:"

AnySource = Source | MinariSource | PackagedSource


def is_minari(text: str) -> bool:
    """Say whether a name is ``minari:ID`` or the path of a Minari dataset's folder."""
    return text.startswith(PREFIX) or minari_folder(text) is not None


def find_source(
    name_or_path: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    minari_observations: Sequence[str] | None = None,
    guess: bool = False,
    format: Format = "auto",
) -> AnySource:
    """Find a dataset.

    Args:
        name_or_path: ``minari:ID``; the folder of a Minari dataset, with ``minari:`` or without;
            ``d4rl:NAME``; or what ``resolve`` takes.
        data_dir: as in ``resolve``.
        minari_observations: of Minari's nested observations, the parts to put behind each other.
        guess: take the usual parts where none are given.
        format: the layout of an HDF5 file, see ``read_hdf5``.

    Raises:
        ConfigError: an option does not go with the dataset.
        DatasetError: there is no such dataset, or it cannot be opened.
    """
    text = os.fspath(name_or_path)
    if text in (PREFIX, D4RL_PREFIX):
        raise ConfigError(f"'{text}' names no dataset: write its id behind it.")
    if format != "auto" and (is_minari(text) or text.startswith(D4RL_PREFIX)):
        raise ConfigError(f"{text}: format goes only with HDF5 files: leave it out.")
    if is_minari(text):
        return minari_source(text.removeprefix(PREFIX), minari_observations, guess=guess)
    if minari_observations is not None:
        raise ConfigError(f"{text}: minari_observations goes only with minari:ID.")
    if text.startswith(D4RL_PREFIX):
        return PackagedSource(text.removeprefix(D4RL_PREFIX))
    return replace(resolve(text, data_dir), format=format)
