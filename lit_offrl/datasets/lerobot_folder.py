"""A LeRobotDataset v3 folder: what its metadata say, each of it looked at before it is believed.

FOLDER/meta/info.json                              features, counts, templates of the files' paths
FOLDER/meta/tasks.parquet                          the tasks' texts and numbers
FOLDER/meta/episodes/chunk-000/file-000.parquet    of each episode its length and its file
FOLDER/data/chunk-000/file-000.parquet             a row a frame, many episodes in a file
FOLDER/videos/KEY/chunk-000/file-000.mp4           frames, see ``lerobot_frames``

Source: the files that the package lerobot writes (codebase version v3.0).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lit_offrl.common.errors import ConfigError, DatasetError, install, nearest, reason
from lit_offrl.datasets.columns import listed

STATE, ACTION, DONE = "observation.state", "action", "next.done"
NEXT_STATE = "next.observation.state"
REWARDS, TERMINAL, SUCCESS = ("next.reward", "reward"), "next.terminated", "next.success"
EXTRA = {"goal": "goals", "policy": "policy", "reward_mask": "reward_mask"}
EXTRA |= {"next_unknown": "next_unknown"}
"""Features that become columns of their own, under these names."""
PREFIX = "lerobot:"
AGAIN = "make or download the dataset again"
INFO = "meta/info.json"
EPISODES, TASKS = "meta/episodes", "meta/tasks.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VERSION = "v3.0"
"""The codebase version that is written; of those that are read it is the first."""

_NUMBERS = {"float16", "float32", "float64", "bool"}
_NUMBERS |= {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_PICTURES = ("image", "video")
_INDEX = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_LARGEST_INFO = 2**26  # bytes
_MOST = 2**40  # frames, or numbers in one
_FIELD = re.compile(r"\{(\w+)(?::0?\d{1,2}d)?\}")  # no attributes, no width without end


@dataclass(frozen=True)
class Feature:
    """A column of the data, as ``info.json`` describes it.

    Attributes:
        name: Its name, such as ``observation.state``.
        dtype: Type of its numbers, or ``image``, ``video``, ``string``.
        shape: Shape of a frame's value.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int | None:
        """How many numbers a frame has; None where it is no vector of numbers."""
        return math.prod(self.shape) if self.dtype in _NUMBERS else None

    @property
    def is_picture(self) -> bool:
        """Whether it is an image or a video."""
        return self.dtype in _PICTURES

    @property
    def text(self) -> str:
        """Its name and size, for people."""
        shape = " × ".join(map(str, self.shape))
        return f"{self.name} ({shape}{'' if self.size else f', {self.dtype}'})"


@dataclass(frozen=True)
class Episodes:
    """Of each episode, in order: where its rows are.

    Attributes:
        lengths: Rows (E,), int64, each at least 1.
        files: Data files in the order of their episodes, each with its number of rows.
        table: The other columns that were asked for, by name, (E,).
    """

    lengths: np.ndarray
    files: tuple[tuple[Path, int], ...]
    table: Mapping[str, np.ndarray]

    @property
    def starts(self) -> np.ndarray:
        """First row of each episode (E,)."""
        return np.cumsum(self.lengths) - self.lengths


def lerobot_folder(path: str | os.PathLike[str]) -> Path | None:
    """Return the folder of a LeRobot dataset; None where the path is no such folder."""
    place = Path(path).expanduser()
    return place if (place / INFO).is_file() else None


def fetch_folder(repository: str, videos: bool = False) -> Path:
    """Return the folder of a dataset of the hub, fetched to huggingface_hub's cache.

    Args:
        repository: ``ORG/NAME``, or ``ORG/NAME@REVISION``.
        videos: Whether its videos are needed, too.

    Raises:
        ConfigError: The package huggingface_hub is not installed.
        DatasetError: There is no such dataset, or it cannot be had.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConfigError(
            f"{PREFIX}{repository}: is no folder, and the hub needs the package huggingface_hub: "
            f"check the path, or run {install('lerobot')}."
        ) from None
    name, _, revision = repository.partition("@")
    patterns = ["meta/*", "data/*", *(["videos/*"] if videos else [])]
    try:
        found = snapshot_download(
            name, repo_type="dataset", revision=revision or None, allow_patterns=patterns
        )
    except Exception as error:  # the network's, the hub's, of names that cannot be
        raise DatasetError(
            f"{PREFIX}{repository}: is no folder with a {INFO}, and cannot be had from the hub "
            f"({reason(error, 120, named=True)}): check the path, or the name and the network."
        ) from None
    return Path(found)


class LeRobotFolder:
    """The metadata of a folder.

    Args:
        root: The folder.

    Attributes:
        root: The folder.
        features: Its columns by name, in the order of ``info.json``.
        frames: Number of rows of all episodes.
        episodes: Number of episodes.
        fps: Frames in a second.
        extra: What this library's own converter noted of the data, of plain types.

    Raises:
        DatasetError: The folder has no metadata, they are of another version, or cannot be.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.where = str(root / INFO)
        self._info = self._read_info()
        self._check_version()
        self.features = self._read_features()
        self.frames = self._count("total_frames")
        self.episodes = self._count("total_episodes")
        fps = self._info.get("fps")
        if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps < math.inf:
            raise self._wrong("fps", fps)
        self.fps = float(fps)
        noted = self._info.get("lit_offrl")
        self.extra: dict[str, Any] = noted if isinstance(noted, dict) else {}

    def need(self, name: str) -> Feature:
        """Return a feature of numbers, or raise DatasetError where it is none or not there."""
        feature = self.features.get(name)
        readable = [each.text for each in self.readable]
        if feature is None:
            raise DatasetError(
                f"{self.where}: has no feature '{name}' (of numbers it has {listed(readable)})."
                f"{nearest(name, self.features)}"
            )
        if not feature.size:
            raise DatasetError(
                f"{self.where}: feature '{name}' is {feature.text}, which is no vector of numbers: "
                f"of its features {listed(readable)} can be read."
            )
        return feature

    @property
    def readable(self) -> list[Feature]:
        """The features of numbers that are no index of rows."""
        return [each for each in self.features.values() if each.size and each.name not in _INDEX]

    @property
    def splits(self) -> dict[str, str]:
        """Ranges of episodes by the split's name, as written."""
        found = self._info.get("splits")
        return {} if not isinstance(found, dict) else {k: str(v) for k, v in found.items()}

    def metadata_files(self) -> list[Path]:
        """Return the files with metadata, in a fixed order."""
        tables = sorted((self.root / EPISODES).glob("*/*.parquet"))
        known = [self.root / INFO, self.root / TASKS]
        return [self.within(path) for path in (*known, *tables) if path.is_file()]

    def tasks(self) -> dict[int, str]:
        """Return the tasks' texts by their numbers."""
        path = self.root / TASKS
        if not path.is_file():
            raise DatasetError(f"{path}: is not there, and {INFO} counts tasks: {AGAIN}.")
        table = self._table(self.within(path))
        names = [name for name in table.column_names if name != "task_index"]
        try:
            numbers, texts = table["task_index"].to_pylist(), table[names[0]].to_pylist()
            found = {int(number): str(text) for number, text in zip(numbers, texts, strict=True)}
        except (KeyError, IndexError, TypeError, ValueError):
            raise DatasetError(
                f"{path}: has no columns 'task_index' and of texts (it has "
                f"{listed(table.column_names)}): {AGAIN}."
            ) from None
        if sorted(found) != list(range(len(numbers))):
            raise DatasetError(
                f"{path}: column 'task_index' is {listed(list(map(str, numbers)))}, where tasks "
                f"are numbered from 0 on: {AGAIN}."
            )
        return found

    def read_episodes(self, *more: str) -> Episodes:
        """Read where each episode's rows are; ``more`` names further columns of whole numbers.

        Raises:
            DatasetError: The tables of episodes are missing or cannot be; the line names file, row
                and column. Paths lead out of the folder, or to no file.
        """
        keys = ("episode_index", "length", "data/chunk_index", "data/file_index", *more)
        tables = sorted((self.root / EPISODES).glob("*/*.parquet"))
        if not tables:
            raise DatasetError(f"{self.root / EPISODES}: has no table of episodes: {AGAIN}.")
        parts: dict[str, list[np.ndarray]] = {key: [] for key in keys}
        for path in tables:
            for key, values in self._whole_numbers(self.within(path), keys).items():
                parts[key].append(values)
        found = {key: np.concatenate(values) for key, values in parts.items()}
        place = str(self.root / EPISODES)
        numbers = found.pop("episode_index")
        if len(numbers) != self.episodes:
            raise DatasetError(
                f"{place}: has {len(numbers):,} episodes and {INFO} says {self.episodes:,} as "
                f"'total_episodes': {AGAIN}."
            )
        order = np.flatnonzero(numbers != np.arange(len(numbers)))
        if len(order):
            row = int(order[0])
            raise DatasetError(
                f"{place}: column 'episode_index' has {numbers[row]} in row {row:,}, where "
                f"episodes are numbered from 0 on: {AGAIN}."
            )
        lengths = found.pop("length")
        self._check_lengths(lengths, place)
        chunks, files = found.pop("data/chunk_index"), found.pop("data/file_index")
        changes = np.flatnonzero((np.diff(chunks) != 0) | (np.diff(files) != 0)) + 1
        firsts = np.concatenate([[0], changes])
        rows = np.add.reduceat(lengths, firsts)
        paths = [self.data_file(int(chunks[first]), int(files[first])) for first in firsts]
        again = next((path for place, path in enumerate(paths) if path in paths[:place]), None)
        if again is not None:
            raise DatasetError(
                f"{place}: episodes of '{again.name}' are not next to each other: {AGAIN}."
            )
        sizes = tuple(zip(paths, map(int, rows), strict=True))
        return Episodes(lengths, sizes, found)

    def data_file(self, chunk: int, file: int) -> Path:
        """Return the data file of two numbers, which is there and in the folder."""
        given = self._info.get("data_path", DATA_PATH)
        return self._file(given, "data_path", chunk_index=chunk, file_index=file)

    def video_file(self, key: str, chunk: int, file: int) -> Path:
        """Return a video's file, which is there and in the folder."""
        given = self._info.get("video_path")
        return self._file(given, "video_path", video_key=key, chunk_index=chunk, file_index=file)

    def within(self, path: Path) -> Path:
        """Return a file, where it is none that a link outside of the folder leads to.

        The hub's cache keeps a folder's files as links to ``blobs`` beside its ``snapshots``.
        """
        root, real = self.root.resolve(), path.resolve()
        blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
        if not real.is_relative_to(root) and not real.is_relative_to(blobs):
            raise DatasetError(
                f"{path}: is a link that leads out of the folder, which is not followed: put the "
                "file itself there."
            )
        return path

    # ---- inside --------------------------------------------------------------------------------

    def _read_info(self) -> dict[str, Any]:
        path = self.root / INFO
        if not path.is_file():
            old = (self.root / "meta" / "episodes.jsonl").is_file()
            todo = "make v3 of it with lerobot's convert_dataset_v21_to_v30" if old else AGAIN
            raise DatasetError(f"{path}: no such file, so {self.root} is no LeRobot data: {todo}.")
        self.within(path)
        try:
            size = path.stat().st_size
            if size > _LARGEST_INFO:
                raise DatasetError(f"{path}: has {size:,} bytes, too many for metadata: {AGAIN}.")
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(f"{path}: cannot be read ({reason(error, 120)}): {AGAIN}.") from None
        if not isinstance(found, dict):
            raise DatasetError(f"{path}: holds {type(found).__name__}, no features: {AGAIN}.")
        return found

    def _check_version(self) -> None:
        stated = self._info.get("codebase_version")
        major = re.fullmatch(r"v?(\d{1,4})(\.\d+)*", str(stated))
        if major is None:
            raise self._wrong("codebase_version", stated)
        if int(major[1]) < 3:
            raise DatasetError(
                f"{self.where}: 'codebase_version' is {stated}, and {VERSION} is read: make v3 of "
                "it with lerobot's convert_dataset_v21_to_v30."
            )
        if int(major[1]) > 3:
            raise DatasetError(
                f"{self.where}: 'codebase_version' is {stated}, and {VERSION} is read: install a "
                "version of lit-offrl that reads it, or save the data as v3."
            )

    def _read_features(self) -> dict[str, Feature]:
        stated = self._info.get("features")
        if not isinstance(stated, dict) or not stated:
            raise self._wrong("features", stated)
        features = {}
        for name, about in stated.items():
            dtype, shape = (about.get(key) if isinstance(about, dict) else None
                            for key in ("dtype", "shape"))  # fmt: skip
            sizes: list[Any] = shape if isinstance(shape, list) else [None]
            possible = all(type(size) is int and 0 < size < _MOST for size in sizes)
            if dtype in _NUMBERS | {*_PICTURES} and not possible:
                raise self._wrong(f"features.{name}.shape", shape)
            if not isinstance(dtype, str):
                raise self._wrong(f"features.{name}.dtype", dtype)
            feature = Feature(name, dtype, tuple(sizes) if possible else ())
            if feature.size is not None and feature.size >= _MOST:
                raise self._wrong(f"features.{name}.shape", shape)
            features[name] = feature
        for name in ("episode_index", "frame_index"):
            if name not in features:
                has = listed([*features])
                raise DatasetError(
                    f"{self.where}: has no feature '{name}' (it has {has}): {AGAIN}."
                )
        return features

    def _count(self, key: str) -> int:
        found = self._info.get(key)
        if type(found) is not int or not 0 <= found < _MOST:
            raise self._wrong(key, found)
        if found == 0:
            raise DatasetError(f"{self.where}: '{key}' is 0, so there are no data: record some.")
        return found

    def _check_lengths(self, lengths: np.ndarray, place: str) -> None:
        odd = np.flatnonzero((lengths < 1) | (lengths >= _MOST))
        if len(odd):
            row = int(odd[0])
            raise DatasetError(
                f"{place}: column 'length' has {lengths[row]} in row {row:,}: {AGAIN}."
            )
        total = int(lengths.sum())
        if total != self.frames:
            raise DatasetError(
                f"{place}: episodes have {total:,} rows by column 'length', and {INFO} says "
                f"{self.frames:,} as 'total_frames': {AGAIN}."
            )

    def _file(self, template: object, key: str, **fields: object) -> Path:
        """Return the file of a template; whatever leads out of the folder is refused by its key."""
        given = str(template) if isinstance(template, str) else ""
        parts = PurePosixPath(given).parts
        leads_out = (
            given.startswith(("/", "~")) or ".." in parts or "\\" in given or ":" in parts[:1]
        )
        named = set(_FIELD.findall(given))
        if not given or leads_out or not named <= fields.keys() or "\0" in given:
            raise self._wrong(key, template)
        if re.search(r"[{}]", _FIELD.sub("", given)):
            raise self._wrong(key, template)
        video = str(fields.get("video_key", ""))
        if "/" in video or "\\" in video or ".." in video or "\0" in video:
            raise self._wrong("features", video)
        path = self.root / given.format(**fields)
        if not path.is_file():
            raise DatasetError(f"{path}: no such file, which {EPISODES} names: {AGAIN}.")
        return self.within(path)

    def _table(self, path: Path, columns: list[str] | None = None) -> Any:
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(path) as file:
                if file.metadata.num_rows > max(self.episodes, _LARGEST_INFO):
                    rows = file.metadata.num_rows
                    raise DatasetError(f"{path}: promises {rows:,} rows of metadata: {AGAIN}.")
                missing = [name for name in columns or () if name not in file.schema_arrow.names]
                if missing:
                    raise DatasetError(
                        f"{path}: has no column '{missing[0]}' (it has "
                        f"{listed(file.schema_arrow.names)}): {AGAIN}."
                    )
                return file.read(columns=columns)
        except DatasetError:
            raise
        except Exception as error:  # Arrow's, of damaged files
            raise DatasetError(f"{path}: cannot be read ({reason(error, 120)}): {AGAIN}.") from None

    def _whole_numbers(self, path: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
        from pyarrow import types

        table, found = self._table(path, list(keys)), {}
        for key in keys:
            column = table[key]
            if column.null_count or not types.is_integer(column.type):
                what = "is empty in a row" if column.null_count else f"holds {column.type}"
                raise DatasetError(
                    f"{path}: column '{key}' {what}, where whole numbers are needed: {AGAIN}."
                )
            found[key] = column.to_numpy().astype(np.int64)
        return found

    def _wrong(self, key: str, value: object) -> DatasetError:
        return DatasetError(f"{self.where}: '{key}' is {value!r:.80}, which cannot be: {AGAIN}.")
