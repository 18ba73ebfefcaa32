"""``Recording``: a dataset in no format, with the types that its numbers were stored in.

What trains are the columns of ``OfflineDataset``; beside them a recording has what a format keeps
and no method reads, as ``infos/qpos``. It is what ``convert`` reads from one format and writes in
another, and how it tells that nothing was lost on the way.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import h5py
import numpy as np

from lit_offrl.common.errors import DatasetError
from lit_offrl.datasets import hdf5_limits
from lit_offrl.datasets.catalog import FileSource
from lit_offrl.datasets.columns import KINDS, NUMERIC, listed
from lit_offrl.datasets.lerobot import LeRobotSource
from lit_offrl.datasets.lerobot_columns import Columns
from lit_offrl.datasets.lerobot_folder import ACTION, DONE, EXTRA, NEXT_STATE, STATE
from lit_offrl.datasets.minari import MinariSource
from lit_offrl.datasets.noted import note_of
from lit_offrl.datasets.npz_file import NpzFile
from lit_offrl.datasets.ogbench import OGBenchSource
from lit_offrl.datasets.robomimic import RobomimicSource, next_states
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.scratch import scratch
from lit_offrl.datasets.sources import Source

INFOS = "infos/"
SHAPES = "shapes"
"""Key of a note: of each of ``infos`` the shape of a row."""
STATES = ("qpos", "qvel", "button_states")
"""Of a simulator, which OGBench's files keep; ``infos/qpos`` and so on here."""


@dataclass(frozen=True)
class Recording:
    """Columns and what is known of them.

    Attributes:
        columns: Those of ``OfflineDataset`` by their names, in the types stored, flags as bool; and
            others as ``infos/NAME``, (N, …).
        note: As ``noted.note_of``, and ``fps`` and ``tasks`` where a format has them.
        origin: Where it is from, for messages.
        left_out: What of the source is not in it, a line each.
    """

    columns: Mapping[str, np.ndarray]
    note: Mapping[str, Any]
    origin: str
    left_out: tuple[str, ...] = field(default=())

    @property
    def lengths(self) -> np.ndarray:
        """Rows of each episode (E,)."""
        ends = self.columns["terminals"] | self.columns["timeouts"]
        return np.diff(np.flatnonzero(ends), prepend=-1)

    @property
    def infos(self) -> dict[str, np.ndarray]:
        """The columns that no method reads, by their names without ``infos/``."""
        return {k.removeprefix(INFOS): v for k, v in self.columns.items() if k.startswith(INFOS)}

    @property
    def shapes(self) -> dict[str, list[int]]:
        """The shape of a row of each of ``infos``, for a note."""
        return {name: list(values.shape[1:]) for name, values in self.infos.items()}

    @property
    def validation(self) -> tuple[int, int] | None:
        """The episodes [first, last) that validate, if there are any and they are together.

        Raises:
            DatasetError: They are not next to each other.
        """
        if "validation" not in self.columns:
            return None
        stops = np.cumsum(self.lengths)
        chosen = np.flatnonzero(self.columns["validation"][stops - 1])
        if not len(chosen):
            return None
        if chosen[-1] - chosen[0] + 1 != len(chosen):
            raise DatasetError(
                f"{self.origin}: its episodes that validate are not next to each other: sort them."
            )
        return int(chosen[0]), int(chosen[-1]) + 1

    def refuse_difference(self, other: Recording, target: str) -> None:
        """Raise DatasetError where another recording has not the very same columns."""
        for name in dict.fromkeys([*self.columns, *other.columns]):
            mine, found = self.columns.get(name), other.columns.get(name)
            what = None
            if found is None and name.startswith(INFOS):
                continue  # which no method reads; whoever left it out says so
            if mine is None or found is None:
                what = f"column '{name}' {'would be lost' if found is None else 'would be new'}"
            elif (mine.shape, mine.dtype) != (found.shape, found.dtype):
                what = (
                    f"column '{name}' would be {found.dtype} of shape {found.shape}, and is "
                    f"{mine.dtype} of shape {mine.shape}"
                )
            else:
                for start in range(0, len(mine), 1 << 16):
                    part = slice(start, start + (1 << 16))
                    same = (mine[part] == found[part]).reshape(len(mine[part]), -1).all(axis=1)
                    if not same.all():
                        row = start + int(np.argmin(same))
                        what = f"column '{name}' would differ in row {row:,}"
                        break
            if what is not None:
                raise DatasetError(
                    f"{self.origin}: {what} in {target}, so other rows would be trained on: choose "
                    "another format."
                )


def read_recording(source: Source) -> Recording:
    """Read a dataset whole, from whatever format.

    Raises:
        DatasetError: As the source's ``read``.
    """
    if isinstance(source, OGBenchSource) and source.task is None:
        return _of_ogbench(source)
    dataset = source.read()
    columns, left_out = dict(dataset.columns), list[str]()
    if isinstance(source, FileSource):
        columns, left_out = _of_hdf5(source, columns)
    elif isinstance(source, LeRobotSource):
        columns, left_out = _of_lerobot(source, columns)
    elif isinstance(source, RobomimicSource):
        columns, left_out = _of_robomimic(source, columns)
    elif isinstance(source, MinariSource):
        columns, left_out = _of_minari(source, columns)
    note: dict[str, Any] = note_of(dataset.spec)
    if isinstance(source, LeRobotSource):
        note |= {"fps": round(source.folder.fps)}
        if source.folder.features.get("task_index"):
            note |= {"tasks": [*source.folder.tasks().values()]}
    elif isinstance(source, FileSource | RobomimicSource | MinariSource):
        note |= _texts(source, dataset)
    return Recording(_plain(columns), note, dataset.spec.origin, tuple(left_out))


def _texts(source: FileSource | RobomimicSource | MinariSource, dataset: OfflineDataset) -> Any:
    """Return the frames a second and the tasks that an earlier conversion noted."""
    found: dict[str, Any] = {}
    if isinstance(source, FileSource):
        for key in ("fps", "tasks"):
            with contextlib.suppress(ValueError, SyntaxError, KeyError):
                found[key] = ast.literal_eval(dataset.provenance[key])
        if isinstance(found.get("tasks"), tuple):
            found["tasks"] = [*found["tasks"]]
    else:
        found = {key: source.note[key] for key in ("fps", "tasks") if key in source.note}
    fits = isinstance(found.get("fps", 1), int) and isinstance(found.get("tasks", []), list)
    return found if fits else {}


def _plain(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leave next states out where the rows tell all of them."""
    if "next_observations" not in columns or "next_unknown" not in columns:
        return columns
    last = columns["terminals"] | columns["timeouts"]
    if not (columns["next_unknown"] == last).all():
        return columns
    repeated = columns["observations"], columns["next_observations"], last
    if next_states(*repeated):
        return columns
    return {k: v for k, v in columns.items() if k not in ("next_observations", "next_unknown")}


def _of_ogbench(source: OGBenchSource) -> Recording:
    """Return both files' arrays as stored; the ends of recordings are timeouts."""
    source.require_on_disk()
    spec = source.header()
    names = ("observations", "actions", "terminals", *STATES)
    with NpzFile(source.path, names) as train, NpzFile(source.validation, names) as validation:
        files = (train, validation)
        for file in files:
            source.check(file)
        columns: dict[str, np.ndarray] = {}
        for name in names:
            if name not in train.arrays:
                continue
            parts = [file.need(name) for file in files]
            rows = sum(part.shape[0] for part in parts)
            shape = (rows, *parts[0].shape[1:])
            blocks = chain.from_iterable(file.rows(name) for file in files)
            columns[name] = scratch(blocks, shape, parts[0].dtype, None)
        begins = train.arrays["terminals"].shape[0]
    ended = columns.pop("terminals")
    rows = len(ended)
    kept = {f"{INFOS}{k}" if k in STATES else k: v for k, v in columns.items()}
    kept |= {"terminals": np.zeros(rows, dtype=np.bool_), "timeouts": ended}
    kept["validation"] = np.arange(rows) >= begins
    for row in (begins - 1, rows - 1):
        if not ended[row]:
            raise DatasetError(f"{source.path}: its last episode does not end: make it again.")
    return Recording(kept, note_of(spec), str(source.path))


def _exact(
    columns: dict[str, np.ndarray], name: str, read: Callable[[], np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the columns with one in its stored type, where that is the very same numbers."""
    known = columns[name]
    stored = read()
    if stored.size != known.size or KINDS.get(name) == "flags":
        return columns
    stored = stored.reshape(known.shape)
    with np.errstate(over="ignore"):
        same = bool((stored.astype(known.dtype) == known).all())
    return columns | ({name: stored} if same else {})


def _shaped(note: Mapping[str, Any], name: str, values: np.ndarray) -> np.ndarray:
    """Return a column in the shape that a note says of its rows, where that is one."""
    shapes = note.get(SHAPES)
    shape = shapes.get(name) if isinstance(shapes, dict) else None
    try:
        return values if shape is None else values.reshape(len(values), *shape)
    except (TypeError, ValueError):
        return values


def _of_hdf5(
    source: FileSource, columns: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the columns as stored, and the file's other arrays of as many rows."""
    path, left_out, others = source.path, list[str](), list[str]()
    rows = len(columns["observations"])
    if hdf5_limits.refuse_ways_out(path, str(path)) == 0:
        return columns, left_out
    with h5py.File(path, "r") as file:
        same = file["observations"].shape[0] == rows
        for name in [*columns] if same else ():
            if name in file and file[name].dtype.kind in NUMERIC:
                columns = _exact(columns, name, partial(file[name].__getitem__, ()))
        arrays: list[str] = []
        file.visititems(lambda key, node: arrays.append(key) if _is_array(node) else None)
        for key in arrays:
            if key in columns or (key == "infos/goal" and "goals" in columns):
                continue
            node = file[key]
            values = None
            if same and node.shape[:1] == (rows,) and node.dtype.kind in NUMERIC and "/" in key:
                values = node[()]
            if values is not None and np.isfinite(values).all():
                columns[INFOS + key.removeprefix(INFOS)] = values
            elif key not in KINDS:
                others.append(key)
    if others:
        left_out.append(f"{listed(others)}: left out, as they are no finite numbers of each row")
    return columns, left_out


def _is_array(node: object) -> bool:
    return isinstance(node, h5py.Dataset)


def _of_lerobot(
    source: LeRobotSource, columns: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str]]:
    folder, features = source.folder, source.folder.features
    data = Columns(folder.read_episodes(), str(source.path))

    def stored(name: str) -> np.ndarray:
        feature = folder.need(name)
        blocks = (block for (block,) in data.blocks([feature]))
        made = scratch(blocks, (data.rows, feature.size or 0), np.dtype(feature.dtype), None)
        return made.reshape(data.rows, *feature.shape) if feature.shape != (1,) else made[:, 0]

    named = {STATE: "observations", ACTION: "actions", NEXT_STATE: "next_observations"}
    named |= {k: v for k, v in EXTRA.items() if k in features}
    taken = {DONE, *([] if source.terminal is None else [source.terminal.name])}
    if source.reward is not None:
        named[source.reward.name] = "rewards"
    for feature in folder.readable:
        name = feature.name
        if name in named and named[name] in columns:
            if features[name].dtype != "float32":
                columns = _exact(columns, named[name], partial(stored, name))
        elif name not in taken:
            name = name.removeprefix("infos.")
            columns[INFOS + name] = _shaped(folder.extra, name, stored(feature.name))
    if len(folder.tasks() if "task_index" in features else {}) > 1:
        columns[INFOS + "task_index"] = stored("task_index")
    pictures = [each.text for each in features.values() if not each.size]
    return columns, [f"'{text}' is left out: it is no vector of numbers" for text in pictures]


def _of_robomimic(
    source: RobomimicSource, columns: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str]]:
    keys = {"observations": [f"obs/{key}" for key in source.keys], "actions": ["actions"]}
    keys |= {"rewards": ["rewards"]} if "rewards" in columns else {}
    if "next_observations" in columns:
        keys["next_observations"] = [f"next_obs/{key}" for key in source.keys]
    for name, places in keys.items():
        columns = _exact(columns, name, partial(source.stored, *places))
    for name in source.infos:
        columns[INFOS + name] = _shaped(source.note, name, source.stored(f"infos/{name}"))
    return columns, [f"observation '{text}' is left out" for text in source.left_out()]


def _of_minari(
    source: MinariSource, columns: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str]]:
    names = source.note.get("infos", ())
    stored = source.columns(*names)
    for name in columns:
        if name in stored:
            columns = _exact(columns, name, partial(stored.__getitem__, name))
    return columns | {k: v for k, v in stored.items() if k.startswith(INFOS)}, []
