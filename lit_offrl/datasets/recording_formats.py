"""The formats that a ``Recording`` is written in; what one has no place for is named or refused.

Of each, what other programs read is as they expect it. What only this library needs to read the
very same rows again (which last states are unknown, the bounds of actions) stands in a note.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lit_offrl.common.errors import ConfigError, DatasetError, install
from lit_offrl.common.files import whole_file, write_whole
from lit_offrl.datasets.environments import OWN
from lit_offrl.datasets.hdf5 import LAYOUT_ATTRIBUTE
from lit_offrl.datasets.lerobot_folder import (
    ACTION,
    DONE,
    EXTRA,
    NEXT_STATE,
    REWARDS,
    STATE,
    TERMINAL,
)
from lit_offrl.datasets.lerobot_writing import write_lerobot
from lit_offrl.datasets.minari import NOTE
from lit_offrl.datasets.ogbench_entries import validation_name
from lit_offrl.datasets.ogbench_tasks import ENV_TASKS
from lit_offrl.datasets.recordings import INFOS, SHAPES, STATES, Recording
from lit_offrl.datasets.robomimic import SPLIT
from lit_offrl.datasets.robomimic_writing import write_robomimic

_FPS = 10


def to_d4rl(recording: Recording, folder: Path, name: str) -> list[str]:
    """Write an HDF5 file in D4RL's layout, whose columns and ``infos`` keep their types."""
    image = io.BytesIO()  # where a disk is full, HDF5 crashes the process instead of raising
    with h5py.File(image, "w") as file:
        for key, values in recording.columns.items():
            chunk = (min(len(values), 8192), *values.shape[1:])
            file.create_dataset(key, data=values, chunks=chunk, compression="gzip", shuffle=True)
        for key, value in recording.note.items():
            file.attrs[key] = str(value) if key == "tasks" else value
        file.attrs[LAYOUT_ATTRIBUTE] = "d4rl"
        file.attrs["source"] = "lit-offrl datasets convert"
    write_whole(folder / name, image.getbuffer())
    return []


def to_lerobot(recording: Recording, folder: Path, name: str) -> list[str]:
    """Write a LeRobotDataset v3 folder."""
    columns = dict(recording.columns)
    named = {"observations": STATE, "actions": ACTION, "rewards": REWARDS[0]}
    named |= {"next_observations": NEXT_STATE, "terminals": TERMINAL}
    named |= {column: feature for feature, column in EXTRA.items()}
    features = {named[key]: values for key, values in columns.items() if key in named}
    features[DONE] = columns["terminals"] | columns["timeouts"]
    tasks = recording.note.get("tasks") or ["unknown"]
    for info, values in recording.infos.items():
        key = info if info == "task_index" else f"infos.{info}".replace("/", ".")
        features[key] = values
    validation, episodes = recording.validation, len(recording.lengths)
    splits = None
    if validation is not None:
        first, last = validation
        if 0 < first and last < episodes:
            raise _refusal(
                recording, "LeRobot's splits are ranges, and episodes validate among others"
            )
        train = (last, episodes) if first == 0 else (0, first)
        splits = {"train": train, "val": validation}
    note = {k: v for k, v in recording.note.items() if k not in ("fps", "tasks")}
    note |= {SHAPES: recording.shapes}
    fps = recording.note.get("fps", _FPS)
    known: dict[str, Any] = {"fps": fps, "tasks": tasks, "splits": splits, "note": note}
    write_lerobot(folder / name, features, recording.lengths, **known)
    said = [] if "fps" in recording.note else [f"timestamps count {_FPS} frames a second"]
    return said


def to_robomimic(recording: Recording, folder: Path, name: str) -> list[str]:
    """Write a file in robomimic's layout."""
    columns = recording.columns
    _refuse(recording, "robomimic", {*EXTRA.values()} - {"next_unknown"})
    if "actions" not in columns:
        raise _refusal(recording, "robomimic needs actions, and there are none")
    masks, validation = None, recording.validation
    if validation is not None:
        chosen = set(range(*validation))
        others = [n for n in range(len(recording.lengths)) if n not in chosen]
        masks = {"train": others, "valid": sorted(chosen)}
    note = dict(recording.note) | {SHAPES: recording.shapes}
    note |= {SPLIT: "valid"} if masks else {}
    given = {k: v for k, v in columns.items() if not k.startswith(INFOS)}
    path = folder / name
    write_robomimic(path, given, recording.lengths, infos=recording.infos, masks=masks, note=note)
    said = ["the filter keys train and valid are the split"] if masks else []
    return said


def to_ogbench(recording: Recording, folder: Path, name: str) -> list[str]:
    """Write OGBench's two files; only recordings of its environments without rewards fit."""
    columns, where = recording.columns, "OGBench's files"
    env = str(recording.note.get("env_id", "")).removeprefix(OWN)
    if env not in ENV_TASKS:
        raise _refusal(recording, f"{where} are of its environments, and 'env_id' names none")
    _refuse(recording, where, {"rewards", "next_observations", *EXTRA.values()})
    if columns["terminals"].any():
        raise _refusal(recording, f"{where} have no true terminals")
    validation = recording.validation
    if validation is None or validation[1] != len(recording.lengths) or validation[0] == 0:
        raise _refusal(recording, f"{where} are two, and no episodes at the end validate")
    begins = int(np.cumsum(recording.lengths)[validation[0] - 1])
    arrays = {"observations": columns["observations"], "actions": columns["actions"]}
    arrays["terminals"] = columns["timeouts"]
    arrays |= {k: v for k, v in recording.infos.items() if k in STATES}
    stem = Path(name).stem
    for file, part in ((stem, slice(begins)), (validation_name(stem), slice(begins, None))):
        with whole_file(folder / f"{file}.npz") as place:
            with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
                for key, values in arrays.items():
                    with archive.open(f"{key}.npy", "w", force_zip64=True) as stream:
                        np.lib.format.write_array(stream, np.asarray(values[part]))
    others = [info for info in recording.infos if info not in STATES]
    return [f"'{INFOS}{info}' is left out: OGBench's files have no place for it" for info in others]


def to_minari(recording: Recording, folder: Path, name: str) -> list[str]:
    """Write a Minari dataset, whose id is the name below the folder."""
    try:
        import minari
        from gymnasium.spaces import Box
        from minari.data_collector import EpisodeBuffer
    except ImportError:
        raise ConfigError(f"{name}: needs the package minari: run {install('minari')}.") from None
    columns, lengths = recording.columns, recording.lengths
    if "actions" not in columns:
        raise _refusal(recording, "Minari needs actions, and there are none")
    states, actions = columns["observations"], columns["actions"]
    following = columns.get("next_observations")
    unknown = columns.get("next_unknown")
    beside = {
        k: columns[k] for k in ("goals", "policy", "reward_mask", "validation") if k in columns
    }
    infos = beside | recording.infos
    rewards = columns.get("rewards", np.zeros(len(states), np.float32))
    buffers, repeated = [], list[int]()
    stops = np.cumsum(lengths)
    for number, (stop, length) in enumerate(zip(stops.tolist(), lengths.tolist(), strict=True)):
        part, start = slice(stop - length, stop), stop - length
        final = states[stop - 1]
        if following is not None and not (unknown is not None and unknown[stop - 1]):
            final = following[stop - 1]
        else:
            repeated.append(number)
        if (
            following is not None
            and (following[start : stop - 1] != states[start + 1 : stop]).any()
        ):
            raise _refusal(
                recording, "Minari's next states are those of the next row, and these are not"
            )
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=np.concatenate([states[part], final[None]]),
                actions=np.asarray(actions[part]),
                rewards=np.asarray(rewards[part]),
                terminations=np.asarray(columns["terminals"][part]),
                truncations=np.asarray(columns["timeouts"][part]),
                infos={
                    key: np.concatenate([values[part], values[stop - 1 : stop]])
                    for key, values in infos.items()
                },
            )
        )
    low, high = (
        np.broadcast_to(
            np.asarray(recording.note.get(key, bound), actions.dtype), actions.shape[1:]
        )
        for key, bound in (("action_low", -np.inf), ("action_high", np.inf))
    )
    spaces: dict[str, Any] = {
        "observation_space": Box(-np.inf, np.inf, states.shape[1:], states.dtype),
        "action_space": Box(low, high, dtype=actions.dtype),
    }
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        made = minari.create_dataset_from_buffers(
            name, buffers, **spaces, description="lit-offrl datasets convert",
            author="unknown", author_email="unknown", code_permalink="unknown",
            algorithm_name="unknown", requirements=[],
        )  # fmt: skip
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before
    note = dict(recording.note) | {"columns": [*beside], "infos": [*recording.infos]}
    note |= {"next_unknown": repeated, "absent": [] if "rewards" in columns else ["rewards"]}
    made.storage.update_metadata({NOTE: note})
    said = [f"the last state of {len(repeated):,} episodes, which have no next one, stands twice"]
    said += ["rewards, which there are none of, are 0"] if "rewards" not in columns else []
    return said if repeated else said[1:]


@dataclass(frozen=True)
class Target:
    """A format to convert to.

    Attributes:
        prefix: What stands before a path to name it; the first that fits is taken.
        suffixes: Ends of a file's name; empty for a folder.
        write: Writes a recording under a name in a folder; returns what to know of it, a line each.
    """

    prefix: str
    suffixes: tuple[str, ...]
    write: Callable[[Recording, Path, str], list[str]]


TARGETS: Mapping[str, Target] = {
    "d4rl": Target("", (".hdf5", ".h5"), to_d4rl),
    "ogbench": Target("", (".npz",), to_ogbench),
    "lerobot": Target("lerobot:", (), to_lerobot),
    "robomimic": Target("robomimic:", (".hdf5", ".h5"), to_robomimic),
    "minari": Target("minari:", (), to_minari),
}


def _refuse(recording: Recording, where: str, names: set[str]) -> None:
    for name in sorted(names & recording.columns.keys()):
        raise _refusal(recording, f"{where} has no place for the column '{name}'")


def _refusal(recording: Recording, why: str) -> DatasetError:
    return DatasetError(
        f"{recording.origin}: {why}, so that other rows would be trained on: choose another format."
    )
