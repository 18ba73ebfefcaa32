"""Minari's datasets, through the ``minari`` package.

They are other tasks than D4RL's of the same names (origin-centred mazes, a goal threshold of 0.45,
an AntMaze that does not end at the goal), so they go by ``minari:ID`` and are scored, if at all, by
their own references. A step of theirs is a row here; the observation after an episode's last step
is the last row's ``next_observations``.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from lit_offrl.datasets.cache import ColumnCache
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset
from lit_offrl.errors import ConfigError, DatasetError, nearest, reason
from lit_offrl.files import file_sha256

PREFIX = "minari:"
_GOAL = "desired_goal"


@dataclass(frozen=True)
class MinariSource:
    """A Minari dataset on disk.

    Args:
        dataset_id: such as ``D4RL/pointmaze/umaze-v2``.
        observations: of a dictionary observation, the parts that are put behind each other; None
            where observations are plain vectors. A ``desired_goal`` that is not among them becomes
            the column ``goals``.

    Raises:
        ConfigError: ``minari`` is not installed.
        DatasetError: there is no such dataset on disk, it is broken, or its spaces do not fit.
    """

    dataset_id: str
    observations: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "_minari", _load(self.dataset_id))
        self._parts()

    @property
    def path(self) -> Path:
        """The folder with the data."""
        return Path(self._dataset.storage.data_path)

    @property
    def _dataset(self) -> Any:
        return self.__dict__["_minari"]

    def header(self) -> DatasetSpec:
        """Return what the metadata say."""
        found, where = self._dataset, self._where
        actions = found.action_space
        if not isinstance(actions, spaces.Box) or len(actions.shape) != 1:
            raise DatasetError(
                f"{where}: its actions are {actions}, where vectors are needed: "
                "choose a dataset with continuous actions."
            )
        metadata = found.storage.metadata
        env_id, limit, why_no_env = _environment(metadata)
        scores = metadata.get("ref_min_score"), metadata.get("ref_max_score")
        scored = None not in scores
        bounded = bool(np.isfinite(actions.low).all() and np.isfinite(actions.high).all())
        columns = ["observations", "actions", "rewards", "terminals", "timeouts"]
        columns += ["next_observations"] + ["goals"] * self._has_goals
        spec = DatasetSpec(
            name=PREFIX + self.dataset_id,
            observation_dim=sum(size for _, size in self._parts()),
            action_dim=actions.shape[0],
            action_low=tuple(map(float, actions.low)) if bounded else None,
            action_high=tuple(map(float, actions.high)) if bounded else None,
            env_id=env_id,
            max_episode_steps=limit,
            ref_min_score=float(scores[0]) if scored else None,
            ref_max_score=float(scores[1]) if scored else None,
            ref_source=f"Minari's metadata of {self.dataset_id}" if scored else None,
            origin=where,
            columns=tuple(columns),
            why_no_env=why_no_env,
        )
        if self.observations is None:
            return spec
        parts = " + ".join(self.observations)
        return replace(
            spec,
            env_id=None,
            why_no_env="its environment gives dictionaries, of which"
            f" {parts} were put behind each other",
            handling=(f"observations: {parts}",),
        )

    def read(self, cache: ColumnCache | None = None) -> OfflineDataset:
        """Read all episodes.

        Args:
            cache: where columns are kept.

        Raises:
            DatasetError: naming the episode that is missing or wrong, or the column and row.
        """
        spec = self.header()
        digest = self._sha256(cache)

        def make() -> OfflineDataset:
            episodes = list(self._episodes())
            columns = {name: np.concatenate([e[name] for e in episodes]) for name in episodes[0]}
            whole = replace(spec, sha256=digest)
            return OfflineDataset(columns, whole, {"source": "minari", "id": self.dataset_id})

        if cache is None:
            return make()
        options = {"minari": self.dataset_id, "observations": self.observations}
        return cache.fetch(digest, options, make).with_spec(replace(spec, sha256=digest))

    @property
    def _where(self) -> str:
        return f"{PREFIX}{self.dataset_id} ({self.path})"

    @property
    def _has_goals(self) -> bool:
        space = self._dataset.observation_space
        return (
            isinstance(space, spaces.Dict)
            and _GOAL in space.spaces
            and _GOAL not in (self.observations or ())
        )

    def _parts(self) -> list[tuple[str | None, int]]:
        """Return the keys and sizes of what makes an observation; one key None for a vector."""
        space, where = self._dataset.observation_space, self._where
        if not isinstance(space, spaces.Dict):
            if self.observations is not None:
                raise ConfigError(
                    f"{where}: its observations are no dictionary: leave minari_observations out."
                )
            return [(None, _size(space, "observations", where))]
        keys = list(space.spaces)
        if not self.observations:
            raise ConfigError(
                f"{where}: its observations are dictionaries of {', '.join(keys)}: say with "
                "minari_observations which of them to put behind each other."
            )
        for key in self.observations:
            if key not in keys:
                raise ConfigError(
                    f"{where}: has no observation '{key}' (it has {', '.join(keys)})."
                    f"{nearest(key, keys)}"
                )
        return [(key, _size(space.spaces[key], key, where)) for key in self.observations]

    def _episodes(self) -> Iterator[dict[str, np.ndarray]]:
        total = int(self._dataset.storage.total_episodes)
        if total < 1:
            raise DatasetError(f"{self._where}: has no episodes: collect or download it again.")
        stored = iter(self._dataset.storage.get_episodes(range(total)))
        for number in range(total):
            try:
                episode = next(stored)
            except Exception as error:  # minari lets through whatever its storage raises
                raise DatasetError(
                    f"{self._where}: 'episode_{number}' of {total:,} is missing or cannot be read "
                    f"({reason(error, 120, named=True)}): download the dataset again."
                ) from None
            yield self._columns(episode, f"{self._where}: 'episode_{number}'")

    def _columns(self, episode: dict[str, Any], where: str) -> dict[str, np.ndarray]:
        """Return one episode's rows, its lengths checked; values are checked when all are there."""
        try:
            rewards = np.asarray(episode["rewards"])
            steps = len(rewards)
            stored = episode["observations"]
            pieces = [
                np.asarray(stored if key is None else stored[key]).reshape(-1, size)
                for key, size in self._parts()
            ]
            states = np.concatenate(pieces, axis=1)
            columns = {
                "observations": states[:-1],
                "next_observations": states[1:],
                "actions": np.asarray(episode["actions"]),
                "rewards": rewards,
                "terminals": np.asarray(episode["terminations"], dtype=np.bool_),
                "timeouts": np.asarray(episode["truncations"], dtype=np.bool_).copy(),
            }
            if self._has_goals:
                columns["goals"] = np.asarray(stored[_GOAL])[:-1]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DatasetError(
                f"{where} cannot be used ({reason(error, 120)}): download the dataset again."
            ) from None
        for name, values in columns.items():
            if len(values) != steps or steps == 0:
                raise DatasetError(
                    f"{where} has {len(values):,} rows of '{name}' for {steps:,} rewards, where "
                    "each step has one and observations one more: download the dataset again."
                )
        columns["timeouts"][-1] |= not columns["terminals"][-1]  # its group ends here
        return columns

    def _sha256(self, cache: ColumnCache | None) -> str:
        """Return one hash of all files."""
        digest = hashlib.sha256()
        for file in sorted(path for path in self.path.rglob("*") if path.is_file()):
            found = file_sha256(file) if cache is None else cache.sha256(file)
            digest.update(f"{file.relative_to(self.path)}\0{found}\n".encode())
        return digest.hexdigest()


def minari_source(dataset_id: str, observations: Sequence[str] | None = None) -> MinariSource:
    """Find a Minari dataset on disk; see ``MinariSource``."""
    return MinariSource(dataset_id, None if observations is None else tuple(observations))


def _load(dataset_id: str) -> Any:
    try:
        minari = importlib.import_module("minari")
    except ImportError:
        raise ConfigError(
            f"{PREFIX}{dataset_id}: needs the package minari: pip install 'lit-offrl[minari]'."
        ) from None
    try:
        return minari.load_dataset(dataset_id)
    except FileNotFoundError:
        raise DatasetError(
            f"{PREFIX}{dataset_id}: is not on disk: run `minari download {dataset_id}`."
        ) from None
    except Exception as error:  # a broken folder raises whatever minari trips over
        said = reason(error, named=True)
        raise DatasetError(
            f"{PREFIX}{dataset_id}: cannot be opened ({said}): download the dataset again."
        ) from None


def _environment(metadata: Mapping[str, Any]) -> tuple[str | None, int | None, str | None]:
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


def _size(space: spaces.Space, key: str, where: str) -> int:
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise DatasetError(
            f"{where}: its '{key}' is {space}, where a vector is needed: choose another dataset."
        )
    return space.shape[0]
