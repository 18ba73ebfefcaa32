"""A LeRobotDataset v3 folder, written whole or not at all; the package lerobot reads it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import make_folder, part_path, refusals
from lit_offrl.datasets.lerobot_folder import DATA_PATH, INFO, TASKS, VERSION

_FILE_BYTES = 100 * 2**20  # of numbers in a data file, as lerobot's own
_CHUNK = 1000  # files in a folder
_EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder beside ``path`` to write to, which becomes ``path`` if the block succeeds.

    Raises:
        ConfigError: There is something at ``path`` already.
        FileError: It cannot be written.
    """
    if path.exists():
        raise ConfigError(f"{path}: is there already: name another place.")
    make_folder(path.parent)
    temporary = part_path(path)
    try:
        with refusals(path):
            temporary.mkdir()
            yield temporary
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_lerobot(
    path: Path,
    columns: Mapping[str, np.ndarray],
    lengths: Sequence[int] | np.ndarray,
    *,
    fps: int = 10,
    tasks: Sequence[str] = ("",),
    splits: Mapping[str, tuple[int, int]] | None = None,
    note: Mapping[str, Any] | None = None,
) -> Path:
    """Write columns as features of the same names and types.

    Args:
        path: The folder, which is not there yet.
        columns: Features by name, (N,) or (N, d); a vector of one number is written as a number, as
            lerobot does. ``task_index`` may be among them; without it all frames are of task 0.
        lengths: Rows of each episode (E,), which sum to N.
        fps: Frames in a second, at least 1, by which timestamps are made.
        tasks: Texts of the tasks.
        splits: Episodes [first, last) by the split's name; all are ``train`` by default.
        note: What ``info.json`` keeps under ``lit_offrl``; plain types.

    Returns:
        The path.

    Raises:
        ConfigError: There is something at the path already.
        FileError: The folder cannot be written.
    """
    import pandas
    import pyarrow
    from pyarrow import parquet

    lengths = np.asarray(lengths, dtype=np.int64)
    rows, stops = int(lengths.sum()), np.cumsum(lengths)
    starts = stops - lengths
    given = {name: values for name, values in columns.items() if name != "task_index"}
    with new_folder(path) as folder:
        files = _files(given, lengths)
        for number, (first, last) in enumerate(files):
            file = folder / DATA_PATH.format(
                chunk_index=number // _CHUNK, file_index=number % _CHUNK
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            schema = pyarrow.schema([*_types(given), *_index_types()])
            few = ["episode_index", "task_index"]  # a dictionary of floats is as long as they are
            options = {"compression": "snappy", "use_dictionary": few}
            with parquet.ParquetWriter(file, schema, **options) as writer:
                for episode in range(first, last):
                    part = slice(int(starts[episode]), int(stops[episode]))
                    values = [_arrow(given[name][part]) for name in given]
                    frames = np.arange(lengths[episode])
                    task = columns.get("task_index")
                    index = [
                        pyarrow.array((frames / fps).astype(np.float32)),
                        pyarrow.array(frames),
                        pyarrow.array(np.full(len(frames), episode)),
                        pyarrow.array(frames + starts[episode]),
                        pyarrow.array(0 * frames if task is None else task[part].astype(np.int64)),
                    ]
                    writer.write_table(pyarrow.table([*values, *index], schema))  # a group each
        of = np.repeat(np.arange(len(files)), [last - first for first, last in files])
        table = pyarrow.table({
            "episode_index": np.arange(len(lengths)),
            "tasks": [_tasks_of(columns, tasks, a, b) for a, b in zip(starts, stops, strict=True)],
            "length": lengths,
            "data/chunk_index": of // _CHUNK,
            "data/file_index": of % _CHUNK,
            "dataset_from_index": starts,
            "dataset_to_index": stops,
            "meta/episodes/chunk_index": 0 * of,
            "meta/episodes/file_index": 0 * of,
        })  # fmt: skip
        (folder / _EPISODES).parent.mkdir(parents=True)
        parquet.write_table(table, folder / _EPISODES)
        frame = pandas.DataFrame({"task_index": range(len(tasks))}, index=pandas.Index(tasks))
        frame.to_parquet(folder / TASKS)
        ranges = splits or {"train": (0, len(lengths))}
        info = {
            "codebase_version": VERSION,
            "robot_type": None,
            "total_episodes": len(lengths),
            "total_frames": rows,
            "total_tasks": len(tasks),
            "chunks_size": _CHUNK,
            "data_files_size_in_mb": _FILE_BYTES >> 20,
            "video_files_size_in_mb": 200,
            "fps": fps,
            "splits": {name: f"{low}:{high}" for name, (low, high) in ranges.items()},
            "data_path": DATA_PATH,
            "video_path": None,
            "features": _features(given),
            **({"lit_offrl": dict(note)} if note else {}),
        }
        _write_json(folder / INFO, info)
        _write_json(folder / "meta/stats.json", {k: _statistics(v) for k, v in given.items()})
    return path


def _files(columns: Mapping[str, np.ndarray], lengths: np.ndarray) -> list[tuple[int, int]]:
    """Return the episodes [first, last) of each data file, none larger than lerobot's."""
    row = sum(values.dtype.itemsize * math.prod(values.shape[1:]) for values in columns.values())
    most = max(1, _FILE_BYTES // max(1, row))
    files, first, held = list[tuple[int, int]](), 0, 0
    for episode, length in enumerate(lengths.tolist()):
        if held and held + length > most:
            files.append((first, episode))
            first, held = episode, 0
        held += length
    return [*files, (first, len(lengths))]


def _types(columns: Mapping[str, np.ndarray]) -> list[Any]:
    import pyarrow

    found = []
    for name, values in columns.items():
        kind, size = pyarrow.from_numpy_dtype(values.dtype), math.prod(values.shape[1:])
        found.append(pyarrow.field(name, kind if size == 1 else pyarrow.list_(kind, size)))
    return found


def _index_types() -> list[Any]:
    import pyarrow

    whole = [(name, pyarrow.int64()) for name in ("frame_index", "episode_index", "index")]
    return [
        pyarrow.field(name, kind)
        for name, kind in (
            ("timestamp", pyarrow.float32()), *whole, ("task_index", pyarrow.int64()),
        )
    ]  # fmt: skip


def _arrow(values: np.ndarray) -> Any:
    import pyarrow

    size = math.prod(values.shape[1:])
    flat = pyarrow.array(np.ascontiguousarray(values).reshape(-1))
    return flat if size == 1 else pyarrow.FixedSizeListArray.from_arrays(flat, size)


def _features(columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    made = {
        name: {"dtype": str(values.dtype), "shape": list(values.shape[1:]) or [1], "names": None}
        for name, values in columns.items()
    }
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        dtype = "float32" if name == "timestamp" else "int64"
        made[name] = {"dtype": dtype, "shape": [1], "names": None}
    return made


def _tasks_of(columns: Mapping[str, np.ndarray], tasks: Sequence[str], a: int, b: int) -> list[str]:
    if "task_index" not in columns:
        return [tasks[0]]
    return [tasks[int(number)] for number in np.unique(columns["task_index"][a:b])]


def _statistics(values: np.ndarray) -> dict[str, list[float]]:
    """Return least, largest, mean and deviation of each dimension, and the number of rows."""
    rows = values.reshape(len(values), -1)
    sums = np.zeros((2, rows.shape[1]))
    middle = rows[: 1 << 16].mean(axis=0, dtype=np.float64)
    for start in range(0, len(rows), 1 << 16):
        block = rows[start : start + (1 << 16)].astype(np.float64) - middle
        sums += [block.sum(axis=0), (block**2).sum(axis=0)]
    mean, square = sums / len(rows)
    return {
        "min": rows.min(axis=0).astype(np.float64).tolist(),
        "max": rows.max(axis=0).astype(np.float64).tolist(),
        "mean": (middle + mean).tolist(),
        "std": np.sqrt(np.maximum(square - mean**2, 0.0)).tolist(),
        "count": [len(rows)],
    }


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
