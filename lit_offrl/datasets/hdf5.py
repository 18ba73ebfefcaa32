"""Datasets from and to HDF5: D4RL's layout, and d4rl-pybullet's, which is corrected."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from lit_offrl.common.errors import ConfigError, DatasetError, nearest
from lit_offrl.common.files import file_sha256, write_whole
from lit_offrl.datasets import d4rl, pybullet
from lit_offrl.datasets.autoreset import mark_autoresets
from lit_offrl.datasets.columns import clean_columns
from lit_offrl.datasets.ends import doubt, read_ends, stating
from lit_offrl.datasets.environments import (
    ENVIRONMENTS,
    OWN,
    REFERENCES,
    EnvironmentFacts,
    env_id_from_name,
    scored_quantity,
)
from lit_offrl.datasets.hdf5_file import Hdf5File
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset
from lit_offrl.datasets.values import remarks

Format = Literal["auto", "d4rl", "pybullet"]
LAYOUT_ATTRIBUTE = "lit_offrl_layout"
_LAYOUTS = ("d4rl", "pybullet")


def read_hdf5(
    path: str | os.PathLike[str],
    *,
    require: Sequence[str] = ("actions", "rewards"),
    format: Format = "auto",
    env_id: str | None = None,
    name: str | None = None,
    task: str | None = None,
    sparse_windows: bool = False,
) -> OfflineDataset:
    """Read a file whole, check every value, and return it as episodes.

    Args:
        path: The file.
        require: Columns that are required in addition to ``observations`` and the ends of episodes.
            Other columns are read if the file has them.
        format: ``d4rl``; ``pybullet`` (rewards shifted by one, no timeouts); or ``auto``: what the
            file's attribute ``lit_offrl_layout`` says, else ``pybullet`` if the file has no
            ``timeouts``, its ``terminals`` are (N, 1) and the action on every terminal row is
            zero, else ``d4rl``. A guess stands in the spec's ``handling``.
        env_id: Id of the environment in gymnasium, if the file does not name it or names a wrong
            one.
        name: Name of the dataset; the file's own by default.
        task: Task whose conventions apply in layout ``d4rl`` (see ``d4rl.fix_conventions``), if
            they are not those of the environment's id.
        sparse_windows: Whether episodes end with their first reward (see ``d4rl.fix_conventions``).

    Raises:
        DatasetError: one line with the file, the column and the row of the first thing wrong.
        ConfigError: if the format is none of the three.
    """
    with Hdf5File(path) as file:
        layout, spec = _header(file, tuple(require), format, env_id, name)
        guessed = layout == "pybullet" and format == "auto" and not _stated(file)
        wanted = pybullet.COLUMNS if layout == "pybullet" else tuple(file.columns)
        columns = {key: file.read(key) for key in wanted if key in file.columns}
        ended = file.read_ends() if file.ends else {}
        if layout == "pybullet":  # whose extra rows a counter counts as it likes
            ended = {key: ended[key] for key in stating(ended)}
    as_stored = columns
    digest = file_sha256(path)
    handling: tuple[str, ...] = ()
    if ended:
        read, handling = read_ends(ended, len(columns["observations"]), str(path))
        columns = columns | read
    doubtful = doubt(ended | as_stored)
    if layout == "pybullet":
        if "timeouts" in columns:
            raise DatasetError(
                f"{path}: says with '{next(iter(file.ends), 'timeouts')}' which ends are timeouts, "
                "which format 'pybullet' has no place for: use format 'd4rl'."
            )
        limit = spec.max_episode_steps or pybullet.STEP_LIMIT
        rows = len(columns["observations"])
        columns = pybullet.to_transitions(columns, limit, str(path))
        handling = (pybullet.handling(rows - len(columns["observations"]), guessed),)
    else:
        own = spec.env_id if (spec.env_id or "").startswith(OWN) else None
        columns, done = d4rl.fix_conventions(
            columns,
            task or own,
            spec.max_episode_steps,
            str(path),
            sparse_windows=sparse_windows,
        )
        handling += done
    provenance = {key: str(value) for key, value in file.attributes.items()}
    provenance[LAYOUT_ATTRIBUTE] = layout
    spec = replace(spec, sha256=digest, handling=handling)
    dataset = OfflineDataset(columns, spec, provenance)
    dataset = dataset.with_spec(replace(spec, notices=(*remarks(as_stored), *doubtful)))
    if "next_observations" not in dataset.columns and len(dataset.episodes) == len(dataset):
        raise DatasetError(
            f"{path}: its 'terminals' and 'timeouts' end every row, from row 0 on, so that no row "
            "has a next one: write them True only on each episode's last row."
        )
    return mark_autoresets(dataset)


def read_header(
    path: str | os.PathLike[str],
    *,
    require: Sequence[str] = (),
    format: Format = "auto",
    env_id: str | None = None,
    name: str | None = None,
    to_read: bool = False,
) -> DatasetSpec:
    """Read what a file says of itself; names, shapes and dtypes are checked, values are not.

    The arguments and errors are those of ``read_hdf5``, and so is the spec, except that ``sha256``
    is None and ``handling`` and ``notices`` are empty. What the memory cannot hold is refused if it
    is ``to_read``.
    """
    with Hdf5File(path) as file:
        spec = _header(file, tuple(require), format, env_id, name)[1]
        if to_read:
            file.require_memory()
        return spec


def write_hdf5(
    path: str | os.PathLike[str],
    columns: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any] | None = None,
) -> Path:
    """Write columns in D4RL's layout, compressed; the file appears whole or not at all.

    Args:
        path: The file. Missing folders are made, and an existing file is replaced.
        columns: Columns, as in ``OfflineDataset``.
        attributes: Provenance, and what readers look for: ``env_id``, ``max_episode_steps``,
            ``action_low``, ``action_high``, ``ref_min_score``, ``ref_max_score``, ``ref_source``,
            ``score_of``. A value of None is left out; what HDF5 has no type for is written as text.

    Returns:
        The path.

    Raises:
        DatasetError: if a column is wrong.
        FileError: if the file cannot be written; what was there is there still.
    """
    path = Path(path)
    cleaned = clean_columns(columns, str(path))
    # Made in memory: where a disk is full, HDF5 crashes the process instead of raising.
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        for key, values in cleaned.items():
            # Whole rows a chunk: h5py's own guess splits rows, and reads several times slower.
            chunk = (min(len(values), 8192), *values.shape[1:])
            file.create_dataset(key, data=values, chunks=chunk, compression="gzip", shuffle=True)
        for key, value in (attributes or {}).items():
            if value is not None:
                plain = isinstance(value, str | int | float | np.ndarray | np.generic)
                numbers = isinstance(value, tuple | list) and len(value) > 0
                file.attrs[key] = value if plain or numbers else str(value)
        file.attrs[LAYOUT_ATTRIBUTE] = "d4rl"
    write_whole(path, image.getbuffer())
    return path


def _header(
    file: Hdf5File, require: tuple[str, ...], format: str, env_id: str | None, name: str | None
) -> tuple[str, DatasetSpec]:
    file.check_columns(())
    layout = _layout(file, format)
    if layout == "pybullet":  # these two are made from the others
        require = tuple(key for key in require if key not in ("next_observations", "timeouts"))
        has = [key for key in pybullet.COLUMNS if key in file.columns] + ["next_observations"]
    else:
        has = list(file.columns)
    file.check_columns(require)
    where = str(file.path)
    dims = {key: column.shape[1] for key, column in file.columns.items() if len(column.shape) == 2}
    sizes = (dims["observations"], dims.get("actions", 0))
    facts_id = env_id or _env_id(file, sizes)
    facts = ENVIRONMENTS.get(facts_id or "")
    for column, expected in facts.sizes.items() if facts is not None else ():
        found = dims.get(column, 0)
        if found != expected and (column != "actions" or found):
            raise DatasetError(
                f"{where}: column '{column}' has {found} dimensions but {facts_id} has "
                f"{expected}: give the env_id that the data are from."
            )
    spec = DatasetSpec(
        name=name or file.path.stem,
        observation_dim=sizes[0],
        action_dim=sizes[1],
        env_id=facts_id,
        origin=where,
        columns=tuple(dict.fromkeys([*has, "terminals", "timeouts"])),
        **_facts(file, facts, sizes[1]),
    )
    return layout, spec


def _layout(file: Hdf5File, format: str) -> str:
    if format in _LAYOUTS:
        if format == "pybullet" and "terminals" not in file.columns:
            raise DatasetError(
                f"{file.path}: has no column 'terminals', which format 'pybullet' needs: "
                "use format 'd4rl'."
            )
        if format == "pybullet" and "timeouts" in file.columns:
            raise DatasetError(
                f"{file.path}: has a column 'timeouts', which format 'pybullet' has not: "
                "use format 'd4rl'."
            )
        return format
    if format != "auto":
        known = ("auto", *_LAYOUTS)
        raise ConfigError(f"format '{format}': use one of {known}.{nearest(format, known)}")
    if stated := _stated(file):
        return stated
    if "timeouts" in file.columns or "terminals" not in file.columns or stating(file.ends):
        return "d4rl"
    if file.columns["terminals"].ndim != 2:
        return "d4rl"
    actions = file.read("actions") if "actions" in file.columns else None
    found = pybullet.looks_like(file.read("terminals"), actions)
    if found is None:
        raise DatasetError(
            f"{file.path}: its 'terminals' are (N, 1) as d4rl-pybullet's are, and without 'actions'"
            " nothing tells whether each episode ends in an extra row as there: give format 'd4rl' "
            "or 'pybullet' (--data.init_args.format, or `lit-offrl datasets check --format`)."
        )
    return "pybullet" if found else "d4rl"


def _stated(file: Hdf5File) -> str | None:
    """Return the layout that the file's attribute names."""
    stated = file.attributes.get(LAYOUT_ATTRIBUTE)
    return str(stated) if stated in _LAYOUTS else None


def _env_id(file: Hdf5File, sizes: tuple[int, int]) -> str | None:
    """Return the id in the file's attributes, or one guessed from its name that fits its sizes."""
    parts = str(file.attributes.get("env_id", "")).split()
    if parts:  # ids have no spaces, so what follows one is a remark, as "(regenerated)"
        own = OWN + parts[0]  # D4RL's name of a task that has an environment here
        return own if own in ENVIRONMENTS else parts[0]
    guess = env_id_from_name(file.path.name)
    facts = ENVIRONMENTS.get(guess or "")
    if facts is None or facts.observation_dim != sizes[0]:
        return None
    return guess if sizes[1] in (0, facts.action_dim) else None


def _facts(file: Hdf5File, facts: EnvironmentFacts | None, action_dim: int) -> dict[str, Any]:
    """Return bounds, step limit and references: the file's attributes go before what is known."""
    given = file.attributes
    low = _vector(file, "action_low", action_dim)
    high = _vector(file, "action_high", action_dim)
    if facts is not None and action_dim:
        low = low or (-1.0,) * action_dim
        high = high or (1.0,) * action_dim
    if low is not None and high is not None:
        _require_below(file, "action_low", low, "action_high", high)
    steps = _number(file, "max_episode_steps")
    if steps is not None and not 1 <= steps < 2**31:
        raise DatasetError(
            f"{file.path}: attribute 'max_episode_steps' is {steps:g}: write the step limit, or "
            "leave it out."
        )
    if steps is None and facts is not None:
        steps = facts.max_episode_steps
    scores = least, most = _number(file, "ref_min_score"), _number(file, "ref_max_score")
    if least is not None and most is not None:
        _require_below(file, "ref_min_score", [least], "ref_max_score", [most])
    references: dict[str, Any] = {}
    if scores != (None, None):  # never one reference from each source
        references = dict(zip(REFERENCES, scores, strict=False))
        references["ref_source"] = str(given.get("ref_source", "the file's attributes"))
        references["score_of"] = scored_quantity(
            given.get("score_of"), scores, facts, str(file.path)
        )
    elif facts is not None:
        references = facts.references
    return {
        "action_low": low,
        "action_high": high,
        "max_episode_steps": None if steps is None else int(steps),
        **references,
    }


def _number(file: Hdf5File, key: str) -> float | None:
    found = _numbers(file, key, 1, "it as a finite number")
    return None if found is None else found[0]


def _vector(file: Hdf5File, key: str, size: int) -> tuple[float, ...] | None:
    return _numbers(file, key, size, f"one finite number an action dimension ({size})")


def _numbers(file: Hdf5File, key: str, size: int, wanted: str) -> tuple[float, ...] | None:
    value = file.attributes.get(key)
    if value is None or size == 0:
        return None
    values = value if isinstance(value, tuple) else (value,) * size
    with contextlib.suppress(ValueError):  # of text
        numbers = tuple(map(float, values))
        if len(numbers) == size and all(map(math.isfinite, numbers)):
            return numbers
    raise DatasetError(
        f"{file.path}: attribute '{key}' is {value!r}: write {wanted}, or leave it out."
    )


def _require_below(
    file: Hdf5File, low_key: str, low: Sequence[float], high_key: str, high: Sequence[float]
) -> None:
    for dimension, (least, most) in enumerate(zip(low, high, strict=True)):
        if least >= most:
            where = f" in dimension {dimension}" if len(low) > 1 else ""
            raise DatasetError(
                f"{file.path}: attribute '{low_key}' is {least:g} and '{high_key}' {most:g}{where}:"
                " write a smaller and a larger number."
            )
