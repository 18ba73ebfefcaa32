"""robomimic's HDF5: a group for each demonstration, observations by key, chosen demos in ``mask``.

FILE.hdf5  data/                attributes total, env_args
           data/demo_0/         attribute num_samples
               obs/KEY          (T, …)  what was observed; next_obs/KEY after the action
               actions          (T, a)
               rewards, dones   (T,)
           mask/train           names of demonstrations, of a filter key

Demonstrations come in the order of their numbers. A row with ``dones`` is a terminal and ends an
episode; a demonstration's last row without it is a timeout. Where a last row's ``next_obs`` repeats
its ``obs``, as robomimic's own conversion of D4RL writes it, the next state is unknown and the row
is in no transition. Source: Mandlekar et al. (2021), arXiv:2108.03298, and the package's files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from lit_offrl.common.errors import ConfigError, DatasetError, nearest, reason
from lit_offrl.common.files import file_sha256
from lit_offrl.common.ranges import require_fields
from lit_offrl.datasets import hdf5_limits
from lit_offrl.datasets.cache import ColumnCache
from lit_offrl.datasets.columns import NUMERIC, listed
from lit_offrl.datasets.hdf5_file import open_hdf5
from lit_offrl.datasets.noted import noted
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset
from lit_offrl.datasets.scratch import scratch
from lit_offrl.datasets.values import remarks

PREFIX = "robomimic:"
NOTE = "lit_offrl"
"""Attribute of ``data`` with what this library's converter noted."""
SPLIT = "split"
"""Key of that note: the filter key that validates where no option says otherwise."""
_DEMO = re.compile(r"demo_(\d{1,9})")
_AGAIN = "collect or download the file again"
_MOST = 10**6  # demonstrations


@dataclass(frozen=True)
class RobomimicOptions:
    """How demonstrations become rows.

    Attributes:
        observations: Keys of ``obs`` that are put behind each other, in this order; None takes the
            only one.
        mask: Filter key whose demonstrations are taken; None takes all.
        validation_mask: Filter key whose demonstrations validate, beside those of ``mask``.
        dones: Whether a row with ``dones`` is a terminal, or they are ignored.
    """

    observations: tuple[str, ...] | None = None
    mask: str | None = None
    validation_mask: str | None = None
    dones: Literal["terminals", "ignore"] = "terminals"

    def __post_init__(self) -> None:
        require_fields(self)


DEFAULT_ROBOMIMIC = RobomimicOptions()


def is_robomimic(path: Path) -> bool:
    """Say by its groups whether a file is in robomimic's layout."""
    try:
        if not path.is_file() or not h5py.is_hdf5(path):
            return False
        with h5py.File(path, "r") as file:
            data = file.get("data")
            return isinstance(data, h5py.Group) and any(_DEMO.fullmatch(name) for name in data)
    except (OSError, RuntimeError, KeyError):
        return False


class RobomimicSource:
    """Demonstrations in one file.

    Args:
        path: The file.
        options: How demonstrations become rows.
        guess: Whether all keys of numbers are taken where there are several and none are given.
        cache: Where columns are kept between starts; None reads the file at each start.
        env_id: Id of the environment in gymnasium.

    Attributes:
        name: The name it goes by in tables.
        path: The file.
        keys: Keys of the observations, in order.
        infos: Names of the group ``infos`` in a demonstration, where the converter wrote one.
        note: What the converter noted.

    Raises:
        ConfigError: An option names a key that is not there.
        DatasetError: The file is missing, damaged, or not in this layout.
    """

    entry = None  # the catalogue has none of robomimic's

    def __init__(
        self,
        path: str,
        options: RobomimicOptions = DEFAULT_ROBOMIMIC,
        guess: bool = False,
        cache: ColumnCache | None = None,
        env_id: str | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        self.name, self.options, self.cache = PREFIX + self.path.stem, options, cache
        self._env_id = env_id
        with open_hdf5(self.path) as file:
            self._bytes = hdf5_limits.refuse_ways_out(self.path, str(self.path))
            try:
                self._look(file, guess)
            except (OSError, RuntimeError, KeyError) as error:
                raise self._wrong("its groups", f"cannot be listed ({reason(error, 80)})") from None

    def facts(self) -> dict[str, str]:
        """Return what the file says beside the spec, for people."""
        facts = {"demonstrations": f"{len(self._demos):,}", "rows": f"{self._rows:,}"}
        facts["observation keys"] = ", ".join(map(self._text, self._shapes))
        if self._masks:
            facts["filter keys"] = ", ".join(f"{k} ({len(v)})" for k, v in self._masks.items())
        name = self._env_args.get("env_name")
        return facts | ({"made in": str(name)} if name else {})

    def left_out(self) -> list[str]:
        """Return observations that are not among those chosen, for people."""
        return [self._text(key) for key in self._shapes if key not in self.keys]

    def header(self) -> DatasetSpec:
        """Return what the file's headers say."""
        size = sum(math.prod(self._shapes[key]) for key in self.keys)
        sizes = {"observations": size, "actions": self._action_dim}
        columns = ["observations", "actions", *(["rewards"] if "rewards" in self._has else [])]
        columns += ["validation"] if self.options.validation_mask is not None else []
        handling = [f"observations: {' + '.join(map(self._text, self.keys))}"]
        if self.options.mask is not None:
            handling.append(f"demonstrations of the filter key '{self.options.mask}'")
        if self.options.validation_mask is not None:
            handling.append(f"validation on the filter key '{self.options.validation_mask}'")
        ends = "are terminals" if "dones" in self._has else "are not in the file"
        if "dones" in self._has and self.options.dones == "ignore":
            ends = "are ignored"
        handling.append(f"dones {ends}; other ends of demonstrations are timeouts")
        return DatasetSpec.from_dict(
            {
                **noted(self.note, self._env_id, sizes, str(self.path)),
                "name": self.name,
                "observation_dim": size,
                "action_dim": self._action_dim,
                "origin": str(self.path),
                "columns": (*columns, "terminals", "timeouts"),
                "handling": tuple(handling),
                "notices": tuple(self._notices()),
            }
        )

    def read(self, *, require: Sequence[str] = ()) -> OfflineDataset:
        """Read the demonstrations, or what the cache has of them.

        Raises:
            DatasetError: An array is missing or wrong; the line names the file, the demonstration
                and the row.
        """
        spec = self.header()
        spec.require(name for name in require if name != "next_observations")
        digest = file_sha256(self.path) if self.cache is None else self.cache.sha256(self.path)
        assert digest is not None  # computed

        def make() -> OfflineDataset:
            folder = None if self.cache is None else self.cache.folder
            columns, said = self._columns(folder)
            names = tuple(dict.fromkeys([*spec.columns, *columns]))
            known = replace(spec, sha256=digest, columns=names, notices=(*spec.notices, *said))
            return OfflineDataset(columns, known, {"source": "robomimic"})

        if self.cache is None:
            dataset = make()
        else:
            options = {**vars(self.options), "observations": self.keys}
            dataset = self.cache.fetch(digest, {"robomimic": options}, make)
        for name in require:
            dataset.column(name)
        kept = {key: getattr(dataset.spec, key) for key in ("columns", "notices")}
        return dataset.with_spec(replace(spec, sha256=digest, **kept))

    # ---- looking -------------------------------------------------------------------------------

    def _look(self, file: h5py.File, guess: bool) -> None:
        data = file.get("data")
        if not isinstance(data, h5py.Group) or not len(data):
            raise DatasetError(
                f"{self.path}: has no group 'data' with demonstrations (it has "
                f"{listed([*file])}): choose a file in robomimic's layout."
            )
        odd = next((name for name in data if not _DEMO.fullmatch(name)), None)
        if odd is not None:
            raise self._wrong(f"data/{odd}", "is no demonstration, which is called demo_NUMBER")
        if len(data) > _MOST:
            raise self._wrong("data", f"has {len(data):,} demonstrations, too many to list")
        every = sorted(data, key=lambda name: int(name[5:]))
        self._masks = self._read_masks(file, every)
        self.note = self._json(data, NOTE)
        split, given = self.note.get(SPLIT), self.options
        if split in self._masks and given.mask is None and given.validation_mask is None:
            self.options = replace(given, validation_mask=split)
        self._demos = every
        chosen = (self.options.mask, self.options.validation_mask)
        if chosen != (None, None):
            trained = self._masked("mask", every)
            held_out = self._masked("validation_mask", [])
            if self.options.mask is None:
                trained = [name for name in every if name not in held_out]
            both = [name for name in trained if name in held_out]
            if both:
                raise ConfigError(
                    f"{self.path}: '{both[0]}' is in mask and in validation_mask: name filter keys "
                    "that share no demonstration."
                )
            taken = {*trained, *held_out}
            self._demos = [name for name in every if name in taken]
        self._validates = {*self._masked("validation_mask", [])}
        self._env_args = self._json(data, "env_args")
        first = data[self._demos[0]]
        self._has = {key for key in ("rewards", "dones") if key in first}
        self._shapes = self._observed(first, f"data/{self._demos[0]}")
        self.keys = self._choose(guess)
        infos = first.get("infos")
        self.infos = tuple(infos) if isinstance(infos, h5py.Group) else ()
        self._has |= {"next_obs"} if isinstance(first.get("next_obs"), h5py.Group) else set()
        actions = self._array(data, f"{self._demos[0]}/actions")
        self._action_dim = math.prod(actions.shape[1:])
        self._lengths = np.array([self._check(data, name) for name in self._demos], np.int64)
        self._rows = int(self._lengths.sum())
        size = self.path.stat().st_size
        hdf5_limits.refuse_unwritten({"data": self._bytes}, size, str(self.path))

    def _read_masks(self, file: h5py.File, every: Sequence[str]) -> dict[str, list[str]]:
        known, found = {*every}, dict[str, list[str]]()
        group = file.get("mask")
        for key in group if isinstance(group, h5py.Group) else ():
            try:
                names = [
                    name.decode() if isinstance(name, bytes) else str(name)
                    for name in group[key][()]
                ]
            except (TypeError, AttributeError, UnicodeDecodeError, ValueError):
                raise self._wrong(f"mask/{key}", "is no list of demonstrations' names") from None
            odd = next((name for name in names if name not in known or names.count(name) > 1), None)
            if odd is not None:
                raise self._wrong(f"mask/{key}", f"names '{odd}', which is unknown or named twice")
            found[key] = names
        return found

    def _masked(self, option: str, otherwise: Sequence[str]) -> list[str]:
        key = getattr(self.options, option)
        if key is None:
            return list(otherwise)
        if not self._masks.get(key):
            raise ConfigError(
                f"{self.path}: {option} is '{key}', of which there are no demonstrations (it has "
                f"the filter keys {listed([*self._masks])}).{nearest(key, self._masks)}"
            )
        return self._masks[key]

    def _observed(self, demo: h5py.Group, where: str) -> dict[str, tuple[int, ...]]:
        """Return the shape of each key's observation; a key may be a path below ``obs``."""
        group = demo.get("obs")
        if not isinstance(group, h5py.Group) or not len(group):
            raise self._wrong(f"{where}/obs", "is not there, or has no observation")
        found = {}
        self._pictures = set[str]()
        for key, node in group.items():
            if isinstance(node, h5py.Dataset) and node.shape:
                found[key] = tuple(node.shape[1:])
                if node.dtype == np.uint8 and len(node.shape) > 2:
                    self._pictures.add(key)
        return found

    def _choose(self, guess: bool) -> tuple[str, ...]:
        usual = [key for key in self._shapes if key not in self._pictures]
        names = self.options.observations
        if names is None:
            names = tuple(usual) if guess or len(usual) == 1 else ()
        if not names:
            raise ConfigError(
                f"{self.path}: say with observations which of "
                f"{listed([*map(self._text, usual)])} are put behind each other."
            )
        for name in names:
            if name not in self._shapes:
                raise ConfigError(
                    f"{self.path}: has no observation '{name}' (it has "
                    f"{listed([*map(self._text, self._shapes)])}).{nearest(name, self._shapes)}"
                )
            if name in self._pictures or list(names).count(name) > 1:
                what = "is of pictures" if name in self._pictures else "is named twice"
                raise ConfigError(f"{self.path}: observation '{name}' {what}: leave it out.")
        return tuple(names)

    def _check(self, data: h5py.Group, name: str) -> int:
        """Compare the headers of a demonstration's arrays; return its rows."""
        where = f"data/{name}"
        actions = self._array(data, f"{name}/actions")
        rows = actions.shape[0]
        stated = data[name].attrs.get("num_samples")
        if stated is not None and int(stated) != rows:
            raise self._wrong(
                where, f"says {int(stated):,} as 'num_samples' and has {rows:,} actions"
            )
        if rows < 1 or math.prod(actions.shape[1:]) != self._action_dim:
            raise self._wrong(f"{where}/actions", f"has shape {actions.shape}")
        groups = ("obs", "next_obs") if "next_obs" in self._has else ("obs",)
        wanted = {f"{group}/{key}": self._shapes[key] for group in groups for key in self.keys}
        wanted |= {f"infos/{key}": self._shape_of(data, key) for key in self.infos}
        wanted |= {key: () for key in ("rewards", "dones") if key in self._has}
        for key, shape in wanted.items():
            array = self._array(data, f"{name}/{key}")
            if array.shape[0] != rows or math.prod(array.shape[1:]) != math.prod(shape):
                raise self._wrong(
                    f"{where}/{key}", f"has shape {array.shape}, where {(rows, *shape)} is needed"
                )
        return int(rows)

    def _shape_of(self, data: h5py.Group, key: str) -> tuple[int, ...]:
        return tuple(self._array(data, f"{self._demos[0]}/infos/{key}").shape[1:])

    def _array(self, data: h5py.Group, key: str) -> h5py.Dataset:
        node = data.get(key)
        if not isinstance(node, h5py.Dataset) or not node.shape:
            raise self._wrong(f"data/{key}", "is not there, or is no array")
        if node.dtype.kind not in NUMERIC:
            raise self._wrong(f"data/{key}", f"has dtype {node.dtype}, not numbers")
        if (said := hdf5_limits.say_missing(node, f"data/{key}", str(self.path))) is not None:
            raise DatasetError(said)
        return node

    def _json(self, data: h5py.Group, key: str) -> dict[str, Any]:
        text = data.attrs.get(key)
        if text is None:
            return {}
        try:
            found = json.loads(text)
        except (TypeError, ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self._wrong(
                "data", f"has an attribute '{key}' that is no JSON of names and values"
            )
        return found

    def _text(self, key: str) -> str:
        shape = " × ".join(map(str, self._shapes[key])) or "1"
        return f"{key} ({shape}{', picture' * (key in self._pictures)})"

    def _notices(self) -> Iterator[str]:
        if others := self.left_out():
            yield f"not among the observations: {listed(others)}"
        if self._masks and self.options.mask is None and self.options.validation_mask is None:
            yield (
                f"has filter keys {listed([*self._masks])}, and all demonstrations are taken: set "
                "mask and validation_mask"
            )

    # ---- reading -------------------------------------------------------------------------------

    def _columns(self, folder: Path | None) -> tuple[dict[str, np.ndarray], list[str]]:
        last = np.zeros(self._rows, dtype=np.bool_)
        last[np.cumsum(self._lengths) - 1] = True
        said: list[str] = []
        with open_hdf5(self.path) as file:

            def column(name: str, *keys: str) -> np.ndarray:
                made = self._stored(file, keys, folder)
                if name:
                    said.extend(remarks({name: made if name != "rewards" else made[:, 0]}))
                if made.dtype == np.float32:
                    return made
                pieces = (made[i : i + (1 << 16)] for i in range(0, self._rows, 1 << 16))
                return scratch(pieces, made.shape, np.dtype(np.float32), folder)

            columns = {"observations": column("observations", *(f"obs/{k}" for k in self.keys))}
            columns["actions"] = column("actions", "actions")
            if "rewards" in self._has:
                columns["rewards"] = column("rewards", "rewards").reshape(-1)
            done = np.zeros(self._rows, dtype=np.bool_)
            if "dones" in self._has and self.options.dones == "terminals":
                flags = column("", "dones").reshape(-1)
                odd = np.flatnonzero((flags != 0) & (flags != 1))
                if len(odd):
                    raise self._at(int(odd[0]), "dones", f"has {flags[odd[0]]:g}, no 0 or 1,")
                done = flags.astype(np.bool_)
            columns["terminals"], columns["timeouts"] = done, last & ~done
            if "next_obs" in self._has:
                following = column("", *(f"next_obs/{key}" for key in self.keys))
                columns |= next_states(columns["observations"], following, last)
        if self.options.validation_mask is not None:
            chosen = [name in self._validates for name in self._demos]
            columns["validation"] = np.repeat(chosen, self._lengths)
        return columns, said

    def stored(self, *keys: str) -> np.ndarray:
        """Return arrays of all demonstrations (N, d) behind each other, in the type stored.

        Args:
            keys: Their places in a demonstration, such as ``obs/object``.
        """
        with open_hdf5(self.path) as file:
            return self._stored(file, keys, None)

    def _stored(self, file: h5py.File, keys: Sequence[str], folder: Path | None) -> np.ndarray:
        kind = np.result_type(*(self._kind(file, key) for key in keys))
        size = sum(math.prod(self._shape(file, key)) for key in keys)
        return scratch(self._blocks(file, keys), (self._rows, size), kind, folder)

    def _blocks(self, file: h5py.File, keys: Sequence[str]) -> Iterator[np.ndarray]:
        row = 0
        for name, length in zip(self._demos, self._lengths.tolist(), strict=True):
            parts = []
            for key in keys:
                try:
                    values = file[f"data/{name}/{key}"][()]
                except (OSError, RuntimeError, ValueError, TypeError) as error:
                    what = f"cannot be read ({reason(error, 80)})"
                    raise self._wrong(f"data/{name}/{key}", what) from None
                values = values.reshape(length, -1)
                bad = ~np.isfinite(values).all(axis=1)
                if bad.any():
                    what = "NaN" if np.isnan(values[bad]).any() else "an infinite value"
                    raise self._at(row + int(np.argmax(bad)), key, f"has {what}")
                parts.append(values)
            yield np.concatenate(parts, axis=1)
            row += length

    def _kind(self, file: h5py.File, key: str) -> np.dtype:
        kinds = {file[f"data/{name}/{key}"].dtype for name in self._demos}
        return np.result_type(*kinds)

    def _shape(self, file: h5py.File, key: str) -> tuple[int, ...]:
        return tuple(file[f"data/{self._demos[0]}/{key}"].shape[1:])

    def _at(self, row: int, key: str, what: str) -> DatasetError:
        ends = np.cumsum(self._lengths)
        number = int(np.searchsorted(ends, row, side="right"))
        row -= int(ends[number] - self._lengths[number])
        return self._wrong(f"data/{self._demos[number]}/{key}", f"{what} in row {row:,}")

    def _wrong(self, key: str, what: str) -> DatasetError:
        return DatasetError(f"{self.path}: '{key}' {what}: {_AGAIN}.")


def next_states(
    observations: np.ndarray, following: np.ndarray, last: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the columns of next states; none where the rows alone tell all that is known of them.

    Args:
        observations: States (N, o).
        following: Stored next states (N, o); a last row's that repeats its state is unknown.
        last: Last rows (N,) of demonstrations.
    """
    unknown, implied = np.zeros(len(last), dtype=np.bool_), True
    for start in range(0, len(last), 1 << 16):
        part = slice(start, start + (1 << 16))
        unknown[part] = last[part] & (observations[part] == following[part]).all(axis=1)
        inner = np.flatnonzero(~last[part]) + start
        implied &= bool((observations[inner + 1] == following[inner]).all())
    if implied and bool((unknown == last).all()):
        return {}
    columns = {"next_observations": following}
    return columns | ({"next_unknown": unknown} if unknown.any() else {})
