"""OGBench's data: ``NAME.npz`` to train on, ``NAME-val.npz`` to validate on, cached as columns.

Rows are states, so an episode's last row has no successor and is in no transition. What the files
call ``terminals`` is the end of a recording, a timeout here. Data of a single task are labelled for
it from the simulator's positions by ``ogbench.relabel_utils``, each row by its own state:

    file's terminals   .   .   .   .   .   T
    solved             .   .   x   x   .   .        the task is solved in this state
    rewards           -1  -1   0   0  -1  -1        minus the number of unmet subgoals
    terminals          .   .   T   T   .   .        the task ends there: no bootstrap
    timeouts           .   .   .   .   .   T
    episodes          [0       3) [4) [      6)

As ``ogbench.make_env_and_datasets`` has it, whose ``masks`` are 0 in solved states; a last row that
is solved stays a timeout, as it is no transition there. Park et al. (2025), arXiv:2410.20092.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from lit_offrl.common.errors import ConfigError, DatasetError, install, nearest
from lit_offrl.common.files import file_sha256
from lit_offrl.datasets.environments import OWN
from lit_offrl.datasets.npz_file import NpzFile
from lit_offrl.datasets.ogbench_entries import OGBENCH, OGBenchEntry, ogbench_spec, validation_name
from lit_offrl.datasets.ogbench_tasks import ENV_TASKS, data_name
from lit_offrl.datasets.reading import DEFAULT_READING, Reading
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset
from lit_offrl.datasets.scratch import scratch
from lit_offrl.datasets.sidecar import refuse_changed
from lit_offrl.datasets.values import remarks

SUFFIX = ".npz"
_ROWS = ("observations", "actions", "terminals")
_PRIVILEGED = ("qpos", "button_states")  # what tasks are told by
_KINDS = {"actions": "f", "terminals": "b", "qpos": "f", "button_states": "iu"}


@dataclass(frozen=True)
class OGBenchSource:
    """OGBench's data in two files.

    Attributes:
        name: Name of the dataset.
        path: The training file; ``validation`` is beside it.
        env_id: Id of the environment in gymnasium, a key of ``ENVIRONMENTS``.
        entry: Its entry in the catalogue, if it has one.
        reading: How it is read; of its options only the cache concerns these data.
    """

    name: str
    path: Path
    env_id: str
    entry: OGBenchEntry | None = None
    reading: Reading = DEFAULT_READING
    bundled = False

    @property
    def validation(self) -> Path:
        """The validation file."""
        return self.path.with_name(validation_name(self.path.stem) + SUFFIX)

    @property
    def on_disk(self) -> bool:
        """Whether both files are there."""
        return self.path.is_file() and self.validation.is_file()

    @property
    def task(self) -> int | None:
        """Number of the task that rows are labelled for."""
        return ENV_TASKS[self.env_id.removeprefix(OWN)].task

    @property
    def _needed(self) -> tuple[str, ...]:
        return _ROWS if self.task is None else (*_ROWS, *_PRIVILEGED)

    def require_on_disk(self) -> None:
        """Raise DatasetError where one of the files is not there."""
        for path in (self.path, self.validation):
            if not path.is_file():
                what = (
                    f"run `lit-offrl datasets download {self.name}`"
                    if self.entry is not None
                    else "OGBench's data are two files, to train and to validate on, side by side"
                )
                raise DatasetError(f"{self.name}: is not on disk ({path}): {what}.")

    def header(self) -> DatasetSpec:
        """Return the spec, the training file's sizes compared with the environment's."""
        if self.path.is_file():
            with NpzFile(self.path, self._needed) as file:
                self.check(file)
        elif self.entry is None:
            self.require_on_disk()
        return ogbench_spec(self.name, self.env_id, str(self.path))

    def read(self, *, require: Sequence[str] = ()) -> OfflineDataset:
        """Read both files, or what the cache has of them; the training episodes come first.

        Raises:
            DatasetError: A file is missing, broken, or of another environment.
            ConfigError: A task's rewards need the package ogbench, which is not installed.
        """
        self.require_on_disk()
        cache = self.reading.cache
        spec = self.header()  # what it refuses need not be hashed
        digests = []
        for path in (self.path, self.validation):
            digest = file_sha256(path) if cache is None else cache.sha256(path)
            assert digest is not None  # computed
            if self.entry is not None:
                refuse_changed(path, digest, self.name)
            digests.append(digest)
        spec = replace(spec, sha256=digests[0])

        def make() -> OfflineDataset:
            return self._read(spec, None if cache is None else cache.folder)

        if cache is None:
            dataset = make()
        else:
            options = {"ogbench": self.env_id, "validation": digests[1]}
            dataset = cache.fetch(digests[0], options, make)
        for name in require:
            dataset.column(name)
        kept = {key: getattr(dataset.spec, key) for key in ("handling", "notices")}
        return dataset.with_spec(replace(spec, **kept))

    def _read(self, spec: DatasetSpec, folder: Path | None) -> OfflineDataset:
        with (
            NpzFile(self.path, self._needed) as train,
            NpzFile(self.validation, self._needed) as validation,
        ):
            for file in (train, validation):
                self.check(file)
            names = [name for name in self._needed if name in train.arrays]
            for name in names:
                validation.need(name)
            columns = {name: _column(name, (train, validation), folder) for name in names}
            begins = train.arrays["terminals"].shape[0]
            for file, row in ((train, begins - 1), (validation, -1)):
                if not columns["terminals"][row]:
                    raise DatasetError(
                        f"{file.path}: array 'terminals' is not True in its last row, so its last "
                        "episode does not end: make or download the file again."
                    )
        ended = columns.pop("terminals")
        handling = [
            f"validation on {self.validation.name}, and nothing else is held out",
            "the ends of recordings are timeouts, whose rows have no next state",
        ]
        solved = np.zeros_like(ended)
        if self.task is not None:
            privileged = {key: columns.pop(key) for key in _PRIVILEGED if key in columns}
            columns["rewards"], solved = relabel(self.env_id, privileged, str(self.path))
            handling.append(
                f"rewards: those of task {self.task}, from ogbench.relabel_utils, of each row's "
                "own state, which is terminal where the task is solved"
            )
        columns["terminals"], columns["timeouts"] = solved & ~ended, ended
        columns["validation"] = np.arange(len(ended)) >= begins
        spec = replace(spec, handling=tuple(handling))
        dataset = OfflineDataset(columns, spec, {"source": "ogbench"})
        return dataset.with_spec(replace(spec, notices=remarks(dataset.columns)))

    def check(self, file: NpzFile) -> None:
        """Compare arrays' lengths, types and sizes with each other and the environment's.

        Raises:
            DatasetError: One does not fit.
        """
        family = ENV_TASKS[self.env_id.removeprefix(OWN)].family
        rows = file.need("observations").shape[0]
        for name in (*_ROWS, *(_PRIVILEGED[:1] if self.task is not None else ())):
            file.need(name)
        sizes = {"observations": family.observation_dim, "actions": family.action_dim}
        for name, (shape, dtype) in file.arrays.items():
            if shape[0] != rows:
                raise DatasetError(
                    f"{file.path}: array '{name}' has {shape[0]:,} rows and 'observations' has "
                    f"{rows:,}: make or download the file again."
                )
            if name in _KINDS and dtype.kind not in _KINDS[name]:
                raise DatasetError(
                    f"{file.path}: array '{name}' has dtype {dtype}, where OGBench's has "
                    f"{ {'f': 'float32', 'b': 'bool', 'iu': 'int64'}[_KINDS[name]] }: make or "
                    "download the file again."
                )
            expected = (sizes[name],) if name in sizes else () if name == "terminals" else None
            if expected is not None and shape[1:] != expected:
                raise DatasetError(
                    f"{file.path}: array '{name}' has shape {shape}, where {self.env_id} has "
                    f"{(rows, *expected)}: give the env_id that the data are from."
                )
        if rows < 2:
            raise DatasetError(
                f"{file.path}: array 'observations' has {rows} row{'s' * (rows != 1)}: at least 2 "
                "make a transition."
            )


def check_file(path: Path, entry: OGBenchEntry) -> None:
    """Raise DatasetError where a file has not the arrays, types and sizes of an entry's data."""
    assert entry.env_id is not None
    source = OGBenchSource(entry.name, path, entry.env_id, entry)
    with NpzFile(path, (*_ROWS, *_PRIVILEGED)) as file:
        source.check(file)


def find_ogbench(text: str, folder: Path, reading: Reading) -> OGBenchSource | None:
    """Find OGBench's data by a name of the catalogue, or an ``.npz`` by its path; None if neither.

    The name of a file may be that of a task: ``DIR/cube-single-play-singletask-task2-v0.npz`` is
    ``DIR/cube-single-play-v0.npz`` labelled for the task. A file ``cube-single-mine-v0.npz`` in the
    data directory goes by ``cube-single-mine-v0`` and ``cube-single-mine-singletask-task2-v0``.

    Raises:
        DatasetError: It is an ``.npz``, and nothing tells of which environment.
        ConfigError: An option does not go with these data.
    """
    entry, path = OGBENCH.get(text), Path(text).expanduser()
    named = data_name(text if entry is not None else path.name.removesuffix(SUFFIX))
    env_id = reading.env_id
    if entry is None and path.suffix != SUFFIX:
        if named is None or len(path.parts) > 1:
            return None
        path = folder / (named.file + SUFFIX)
        if not path.is_file():
            return None
    if env_id is not None and env_id.removeprefix(OWN) not in ENV_TASKS:
        raise ConfigError(
            f"{text}: env_id '{env_id}' is none of OGBench's environments."
            f"{nearest(env_id.removeprefix(OWN), ENV_TASKS)}"
        )
    if env_id is not None:
        env_id = OWN + env_id.removeprefix(OWN)
    if entry is not None:
        found = entry.env_id if env_id is None else env_id
        assert found is not None
        if found != entry.env_id:
            raise ConfigError(f"{text}: is of {entry.env_id}: leave env_id out.")
        return OGBenchSource(text, folder / entry.files[0], found, entry, reading)
    if reading.format != "auto":
        raise ConfigError(f"{text}: format goes only with HDF5 files: leave it out.")
    if env_id is None and named is None:
        return None
    if named is not None and not path.is_file():
        path = path.with_name(named.file + SUFFIX)
    task = "" if env_id is None else env_id.removeprefix(OWN)
    name = Path(text).name.removesuffix(SUFFIX)
    if named is not None and env_id is not None and OWN + named.env_id != env_id:
        name = f"{name} ({task})"
    return OGBenchSource(name, path, env_id or OWN + str(named and named.env_id), None, reading)


def relabel(
    env_id: str, privileged: dict[str, np.ndarray], where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return rewards (N,), float32, of a task in states, and in which (N,), bool, it is solved.

    Args:
        env_id: Of an environment with one task.
        privileged: ``qpos`` (N, q), and ``button_states`` (N, b) where there are buttons.
        where: The file, for messages.

    Raises:
        ConfigError: The package ogbench is not installed.
        DatasetError: The states are not of the environment.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a missing screen
            gymnasium = importlib.import_module("gymnasium")
            importlib.import_module("ogbench")
            relabel_utils = importlib.import_module("ogbench.relabel_utils")
            env = gymnasium.make(env_id.removeprefix(OWN), disable_env_checker=True)
    except ImportError:
        raise ConfigError(
            f"{where}: the rewards of a task need the package ogbench: run {install('ogbench')}."
        ) from None
    own = env_id.removeprefix(OWN)
    labelled: dict[str, Any] = dict(privileged)
    global_numbers = np.random.get_state()  # noqa: NPY002  which a maze draws its start from
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bounds in float64
            relabel_utils.relabel_dataset(own, env, labelled)
    except (IndexError, KeyError, ValueError) as error:
        raise DatasetError(
            f"{where}: its states are not those of {own} ({error}): give the env_id that the data "
            "are from."
        ) from None
    finally:
        np.random.set_state(global_numbers)  # noqa: NPY002
        env.close()
    return labelled["rewards"], labelled["masks"] == 0


def _column(name: str, files: Sequence[NpzFile], folder: Path | None) -> np.ndarray:
    """Return an array of both files as one column, mapped from a file without a name."""
    shape, dtype = files[0].arrays[name]
    if any(file.arrays[name].shape[1:] != shape[1:] for file in files):
        raise DatasetError(
            f"{files[1].path}: array '{name}' has rows of shape "
            f"{files[1].arrays[name].shape[1:]}, and {files[0].path.name} of {shape[1:]}: make or "
            "download both files again."
        )
    rows = sum(file.arrays[name].shape[0] for file in files)
    kept = dtype if name not in ("observations", "actions") else np.dtype(np.float32)
    blocks = chain.from_iterable(file.rows(name) for file in files)
    return scratch(blocks, (rows, *shape[1:]), kept, folder)
