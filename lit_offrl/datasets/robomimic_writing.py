"""A file in robomimic's layout, written whole or not at all; the package robomimic reads it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import write_whole
from lit_offrl.datasets.robomimic import NOTE

KEY = "flat"
"""Key of an observation that is one vector, as in robomimic's own conversions."""
_GYM = 2  # robomimic's number of environments of gym


def write_robomimic(
    path: Path,
    columns: Mapping[str, np.ndarray],
    lengths: Sequence[int] | np.ndarray,
    *,
    infos: Mapping[str, np.ndarray] | None = None,
    masks: Mapping[str, Sequence[int]] | None = None,
    note: Mapping[str, Any] | None = None,
) -> Path:
    """Write episodes as demonstrations.

    Args:
        path: The file, which is not there yet.
        columns: ``observations`` (N, o) and ``actions`` (N, a); where there are any, ``rewards``
            (N,), ``terminals`` (N,), ``next_observations`` (N, o) and ``next_unknown`` (N,). Next
            states that are not given are those of the next row; an unknown one repeats the state.
        lengths: Rows of each episode (E,), which sum to N.
        infos: Arrays (N, …) that no method reads, for the group ``infos`` of each demonstration.
        masks: Numbers of episodes by the filter key.
        note: What is known of the data beside the rows; plain types. ``env_id`` names the
            environment in ``env_args``.

    Returns:
        The path.

    Raises:
        ConfigError: There is something at the path already.
        FileError: The file cannot be written.
    """
    if path.exists():
        raise ConfigError(f"{path}: is there already: name another file.")
    states, stops = columns["observations"], np.cumsum(lengths)
    unknown = columns.get("next_unknown")
    image = io.BytesIO()  # where a disk is full, HDF5 crashes the process instead of raising
    with h5py.File(image, "w") as file:
        data = file.create_group("data")
        for number, (stop, length) in enumerate(zip(stops.tolist(), lengths, strict=True)):
            part = slice(stop - int(length), stop)
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = int(length)
            following = np.concatenate([states[part][1:], states[part][-1:]])
            if "next_observations" in columns:
                following = columns["next_observations"][part].copy()
                if unknown is not None and unknown[stop - 1]:
                    following[-1] = states[stop - 1]
            demo[f"obs/{KEY}"], demo[f"next_obs/{KEY}"] = states[part], following
            demo["actions"] = columns["actions"][part]
            for name, key in (("rewards", "rewards"), ("terminals", "dones")):
                if name in columns:
                    values = columns[name][part]
                    demo[key] = values.astype(np.int64) if values.dtype == np.bool_ else values
            for name, values in (infos or {}).items():
                demo[f"infos/{name}"] = values[part]
        data.attrs["total"] = int(stops[-1])
        env = str((note or {}).get("env_id", "unknown"))
        data.attrs["env_args"] = json.dumps({"env_name": env, "type": _GYM, "env_kwargs": {}})
        if note:
            data.attrs[NOTE] = json.dumps(dict(note))
        for key, episodes in (masks or {}).items():
            names = [f"demo_{number}" for number in episodes]
            file[f"mask/{key}"] = np.array(names, dtype="S")
    write_whole(path, image.getbuffer())
    return path
