"""Minari's datasets, through the ``minari`` package.

They are other tasks than D4RL's of the same names (origin-centred mazes, a goal threshold of 0.45,
an AntMaze that does not end at the goal), so they go by ``minari:ID`` and are scored, if at all, by
their own references. A step of theirs is a row here; the observation after an episode's last step
is the last row's ``next_observations``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from lit_offrl.common.errors import DatasetError, reason
from lit_offrl.datasets import hdf5_limits, minari_spaces
from lit_offrl.datasets.cache import ColumnCache, folder_sha256
from lit_offrl.datasets.columns import KINDS
from lit_offrl.datasets.minari_opening import (
    AGAIN,
    PREFIX,
    environment,
    minari_folder,
    open_minari,
    parquet_rows,
)
from lit_offrl.datasets.minari_spaces import Part
from lit_offrl.datasets.noted import noted
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset
from lit_offrl.datasets.values import remarks

_GOAL = "desired_goal"
NOTE = "lit_offrl"
"""Key in the metadata of what this library's converter noted, which Minari has no place for."""


class MinariSource:
    """A Minari dataset on disk.

    Args:
        dataset_id: Id such as ``D4RL/pointmaze/umaze-v2``, or the path of a dataset's folder.
        observations: Of a nested observation, the parts that are put behind each other, see
            ``minari_spaces``; None where observations are plain vectors. A ``desired_goal`` that is
            not among them becomes the column ``goals``.
        guess: Take ``usual_choice`` of the parts if ``observations`` is None.
        cache: Folder in which columns are kept between starts. With None, files are read at each
            start.

    Attributes:
        name: the name it goes by in tables: never that of D4RL.
        path: the folder with the data.

    Raises:
        ConfigError: ``minari`` is not installed, or ``observations`` does not fit the dataset.
        DatasetError: there is no such dataset on disk, it is broken, or its spaces do not fit.
    """

    entry = None  # the catalogue has none of Minari's

    def __init__(
        self,
        dataset_id: str,
        observations: Sequence[str] | None = None,
        guess: bool = False,
        cache: ColumnCache | None = None,
    ) -> None:
        folder = minari_folder(dataset_id)
        self._dataset = open_minari(dataset_id, folder)
        storage, space = self._dataset.storage, self._dataset.observation_space
        if folder is not None:  # a moved folder goes by the id that it was given
            dataset_id = str(storage.metadata.get("dataset_id") or folder.name)
        self.dataset_id, self.cache = dataset_id, cache
        self.name, self.path = PREFIX + dataset_id, Path(storage.data_path)
        self._where = f"{self.name} ({self.path})"
        if guess and observations is None:
            observations = minari_spaces.usual_choice(space)
        self.observations = None if observations is None else tuple(observations)
        self._parts = minari_spaces.choose(space, self.observations, self._where)
        self._goals = minari_spaces.goal_parts(space, _GOAL, self._parts)
        note = storage.metadata.get(NOTE)
        self.note: dict[str, Any] = note if isinstance(note, dict) else {}
        self._noted = [name for name in self._noted_list("columns") if name in KINDS]

    def facts(self) -> dict[str, str]:
        """Return what the metadata say beside the spec, for people: parts, episodes, format."""
        space, storage = self._dataset.observation_space, self._dataset.storage
        facts = {"rows (metadata)": f"{int(storage.total_steps):,}"}
        facts["episodes (metadata)"] = f"{int(storage.total_episodes):,}"
        facts["format"] = str(storage.metadata.get("data_format", storage.FORMAT))
        if minari_spaces.is_nested(space):
            facts["parts"] = ", ".join(part.text for part in minari_spaces.parts_of(space))
        return facts

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
        env_id, limit, why_no_env = environment(metadata)
        scores = metadata.get("ref_min_score"), metadata.get("ref_max_score")
        scored = None not in scores
        low, high = (tuple(map(float, bound)) for bound in (actions.low, actions.high))
        bounded = bool(np.isfinite((low, high)).any())  # what is infinite is settled later
        columns = ["observations", "actions", "rewards", "terminals", "timeouts"]
        columns += ["next_observations"] + ["goals"] * bool(self._goals)
        columns += [name for name in self._noted if name not in columns]
        columns += ["next_unknown"] if self._noted_list("next_unknown") else []
        columns = [name for name in columns if name not in self._noted_list("absent")]
        spec = DatasetSpec(
            name=self.name,
            observation_dim=sum(part.size or 0 for part in self._parts),
            action_dim=actions.shape[0],
            action_low=low if bounded else None,
            action_high=high if bounded else None,
            env_id=env_id,
            max_episode_steps=limit,
            ref_min_score=float(scores[0]) if scored else None,
            ref_max_score=float(scores[1]) if scored else None,
            ref_source=f"Minari's metadata of {self.dataset_id}" if scored else None,
            origin=where,
            columns=tuple(columns),
            why_no_env=why_no_env,
        )
        if self.note:
            sizes = {"observations": spec.observation_dim, "actions": spec.action_dim}
            facts = noted(self.note, None, sizes, where)
            known = {k: v for k, v in facts.items() if v is not None}
            spec = DatasetSpec.from_dict({**spec.to_dict(), **known})
            spec = replace(spec, why_no_env=None if "env_id" in known else spec.why_no_env)
        if self.observations is None:
            return spec
        handling = [f"observations: {_joined(self._parts)}"]
        if len(self._goals) > 1:
            handling.append(f"goals: {_joined(self._goals)}")
        return replace(
            spec,
            env_id=None,
            why_no_env="its environment gives dictionaries, of which"
            f" {' + '.join(self.observations)} were put behind each other",
            handling=tuple(handling),
        )

    def read(self, *, require: Sequence[str] = ()) -> OfflineDataset:
        """Read all episodes.

        Raises:
            DatasetError: An episode or a column is missing or wrong; the message names it, and the
                row.
        """
        spec = self.header()
        spec.require(require)
        digest = self._sha256()

        def make() -> OfflineDataset:
            self._require_readable(spec)
            columns = self.columns()
            whole = replace(spec, sha256=digest, notices=remarks(columns))
            return OfflineDataset(columns, whole, {"source": "minari", "id": self.dataset_id})

        if self.cache is None:
            return make()
        options = {"minari": self.dataset_id, "observations": self.observations}
        rows = self.cache.fetch(digest, options, make)
        return rows.with_spec(replace(spec, sha256=digest, notices=rows.spec.notices))

    def columns(self, *infos: str) -> dict[str, np.ndarray]:
        """Return the columns of all episodes in the types stored, and ``infos/NAME`` of some names.

        Raises:
            DatasetError: As ``read``.
        """
        episodes = list(self._episodes(infos))
        columns = {name: np.concatenate([e[name] for e in episodes]) for name in episodes[0]}
        if numbers := self._noted_list("next_unknown"):
            stops = np.cumsum([len(episode["actions"]) for episode in episodes])
            chosen = [n for n in numbers if type(n) is int and 0 <= n < len(stops)]
            columns["next_unknown"] = np.isin(np.arange(stops[-1]), stops[chosen] - 1)
        return {k: v for k, v in columns.items() if k not in self._noted_list("absent")}

    def _noted_list(self, key: str) -> list[Any]:
        found = self.note.get(key)
        return found if isinstance(found, list) else []

    def _require_readable(self, spec: DatasetSpec) -> None:
        """Refuse links, and what memory cannot hold, by the metadata's and the files' headers."""
        found = {
            file: hdf5_limits.refuse_ways_out(file, f"{self._where}: {file.name}")
            for file in self.path.rglob("*.hdf5")
        }
        goals = sum(part.size or 0 for part in self._goals)
        row = 4 * (2 * spec.observation_dim + spec.action_dim + goals + 2)
        rows = int(self._dataset.storage.total_steps)
        rows = max(rows, sum(parquet_rows(file) for file in self.path.rglob("*.parquet")))
        hdf5_limits.require_memory({f"{rows:,} rows": row * rows}, self._where)
        for file, size in found.items():
            hdf5_limits.load_plugin()  # minari does not ask for it
            hdf5_limits.require_memory({file.name: size}, self._where)
            hdf5_limits.refuse_unwritten({file.name: size}, file.stat().st_size, self._where)

    def _episodes(self, infos: Sequence[str] = ()) -> Iterator[dict[str, np.ndarray]]:
        total = int(self._dataset.storage.total_episodes)
        if total < 1:
            raise DatasetError(f"{self._where}: has no episodes: collect or download it again.")
        stored = iter(self._dataset.storage.get_episodes(range(total)))
        for number in range(total):
            try:
                episode = next(stored)
            except Exception as error:  # minari lets through whatever its storage raises
                for file in self.path.glob("*.hdf5"):
                    with contextlib.suppress(OSError, RuntimeError, KeyError):
                        hdf5_limits.refuse_missing_filters(file, self._where)
                raise DatasetError(
                    f"{self._where}: 'episode_{number}' of {total:,} is missing or cannot be read "
                    f"({reason(error, 120, named=True)}): it is not what its metadata say; {AGAIN}."
                ) from None
            yield self._columns(episode, infos, f"{self._where}: 'episode_{number}'")

    def _columns(
        self, episode: dict[str, Any], infos: Sequence[str], where: str
    ) -> dict[str, np.ndarray]:
        """Return one episode's rows, its lengths checked; values are checked when all are there."""
        stored = episode["observations"]
        states = minari_spaces.vector(self._parts, stored, where)
        try:
            rewards = np.asarray(episode["rewards"])
            steps = len(rewards)
            columns = {
                "observations": states[:-1],
                "next_observations": states[1:],
                "actions": np.asarray(episode["actions"]),
                "rewards": rewards,
                "terminals": np.asarray(episode["terminations"], dtype=np.bool_),
                "timeouts": np.asarray(episode["truncations"], dtype=np.bool_).copy(),
            }
        except (KeyError, TypeError, ValueError, IndexError) as error:
            said = reason(error, 120)
            raise DatasetError(f"{where} cannot be used ({said}): {AGAIN}.") from None
        if self._goals:
            columns["goals"] = minari_spaces.vector(self._goals, stored, where)[:-1]
        beside = {name: name for name in self._noted} | {f"infos/{name}": name for name in infos}
        for column, name in beside.items():
            found = episode.get("infos")
            if not isinstance(found, dict) or name not in found:
                raise DatasetError(f"{where} has no infos '{name}', which its note names: {AGAIN}.")
            columns[column] = np.asarray(found[name])[:steps]
        for name, values in columns.items():
            if values.ndim == 0 or len(values) != steps or steps == 0:
                rows = len(values) if values.ndim else 0
                raise DatasetError(
                    f"{where} has {rows:,} rows of '{name}' for {steps:,} rewards, where each step "
                    f"has one and observations one more: {AGAIN}."
                )
        columns["timeouts"][-1] |= not columns["terminals"][-1]  # its group ends here
        return columns

    def _sha256(self) -> str:
        """Return one hash of all files."""
        files = sorted(path for path in self.path.rglob("*") if path.is_file())
        return folder_sha256(self.path, files, self.cache)


def _joined(parts: Sequence[Part]) -> str:
    return " + ".join(part.text if "one-hot" in part.text else part.name for part in parts)
