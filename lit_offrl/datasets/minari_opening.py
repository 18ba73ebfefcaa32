"""Opening a Minari dataset through the ``minari`` package: by its id, or by its folder."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium

from lit_offrl.common.errors import ConfigError, DatasetError, install, reason

PREFIX = "minari:"
AGAIN = "make or download the dataset again"
"""What is to be done with a dataset that is not what it says."""
_METADATA = "metadata.json"


def minari_folder(path: str | os.PathLike[str]) -> Path | None:
    """Return the folder ``data`` of a Minari dataset's folder, or of that folder itself.

    None where the path is no such folder, as an id is none.
    """
    place = Path(path).expanduser()
    for folder in (place / "data", place):
        if (folder / _METADATA).is_file():
            return folder.absolute()
    return None


def minari_root() -> Path:
    """Return the folder that ids are below.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        minari = importlib.import_module("minari")
    except ImportError:
        raise ConfigError(
            f"{PREFIX}ID: needs the package minari: run {install('minari')}."
        ) from None
    return Path(minari.storage.get_dataset_path())


def open_minari(dataset_id: str, folder: Path | None) -> Any:
    """Return the package's dataset of a folder, or of an id under the package's root.

    Raises:
        ConfigError: the package is not installed.
        DatasetError: there is no such dataset, or it cannot be opened.
    """
    try:
        minari = importlib.import_module("minari")
    except ImportError:
        raise ConfigError(
            f"{PREFIX}{dataset_id}: needs the package minari: run {install('minari')}."
        ) from None
    if folder is None:
        folder = Path(minari.storage.get_dataset_path(dataset_id)) / "data"
    try:
        _check_metadata(folder)
        return minari.MinariDataset(folder)
    except DatasetError as error:
        raise DatasetError(f"{PREFIX}{dataset_id}: {error}") from None
    except FileNotFoundError:
        raise DatasetError(
            f"{PREFIX}{dataset_id}: is not on disk: run `minari download {dataset_id}`."
        ) from None
    except Exception as error:  # a broken folder raises whatever minari trips over
        said, todo = reason(error, named=True), AGAIN
        if "does not support the dataset" in said:
            todo = "install a version of minari that does"
        raise DatasetError(f"{PREFIX}{dataset_id}: cannot be opened ({said}): {todo}.") from None


def _check_metadata(folder: Path) -> None:
    """Refuse metadata that minari would take and that lead nowhere, or to the data's own code.

    Without spaces it would make the environment that they name, to ask it for them; and since they
    name any module with it, opening a folder from anywhere would run its code.
    """
    path = folder / _METADATA
    if folder.exists() and not path.exists():
        raise DatasetError(f"has no {path}: {AGAIN}.")
    stated = json.loads(path.read_text(encoding="utf-8"))
    missing = [key for key in ("observation_space", "action_space") if not stated.get(key)]
    if missing:
        raise DatasetError(
            f"its metadata have no '{missing[0]}', and nothing is run to find it out ({path}): "
            "make the dataset again, with its spaces."
        )
    for key in ("total_steps", "total_episodes"):
        found = stated[key]
        number = isinstance(found, int | float) and not isinstance(found, bool)
        if not number or not 0 <= found < 2**63 or found != int(found):
            raise DatasetError(f"its metadata say {found!r} as '{key}' ({path}): {AGAIN}.")
    scores = [stated.get(key) for key in ("ref_min_score", "ref_max_score")]
    if None not in scores:
        finite = all(isinstance(each, int | float) and math.isfinite(each) for each in scores)
        if not finite or scores[0] >= scores[1]:
            raise DatasetError(
                f"its metadata say {scores[0]!r} and {scores[1]!r} as 'ref_min_score' and "
                f"'ref_max_score' ({path}): write a smaller and a larger number, or leave them out."
            )


def environment(metadata: Mapping[str, Any]) -> tuple[str | None, int | None, str | None]:
    """Return id and step limit of the environment to evaluate in, else of that of the data.

    An id names it only where it was made with the options that gymnasium registers with the id;
    else there is no id, and the third is the reason.
    """
    stated = metadata.get("eval_env_spec") or metadata.get("env_spec")
    if not stated:
        return None, None, None
    facts = json.loads(stated)  # minari has read it, so it is sound
    env_id, limit = facts.get("id"), facts.get("max_episode_steps")
    options = facts.get("kwargs") or {}
    usual = gymnasium.registry[env_id].kwargs if env_id in gymnasium.registry else {}
    other = [name for name in options if name not in usual or options[name] != usual[name]]
    other += ["additional_wrappers"] if facts.get("additional_wrappers") else []
    if not other:
        return env_id, limit, None
    return None, limit, f"its {env_id} was made with options of its own ({', '.join(other)})"


def parquet_rows(file: Path) -> int:
    """Return how many rows a Parquet file promises, by its own metadata.

    A file that cannot be opened has none: its reader says why.
    """
    from pyarrow import ArrowException, parquet  # late: few datasets are in Parquet

    with contextlib.suppress(OSError, ArrowException):
        return int(parquet.read_metadata(file).num_rows)
    return 0
