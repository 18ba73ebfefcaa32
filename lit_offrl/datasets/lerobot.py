"""LeRobot's datasets (v3): episodes of a robot's log, streamed from Parquet and cached as columns.

A row is a frame: what was observed, the action that was then taken, and what came of it. Its next
state is the next frame's, so an episode's last row is in no transition unless it is terminal:

    episode_index           0    0    0    0    1    1    1
    frame_index             0    1    2    3    0    1    2
    success: [0]            .    .    .    1    .    .    .     rewards, where no column has them
    terminals               .    .    .    T    .    .    .     the task ended: no bootstrap
    timeouts                .    .    .    .    .    .    T     only the recording ended

``next.done`` is true on the last frame of every episode and says nothing of which of the two it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.common.ranges import require_fields
from lit_offrl.datasets.cache import ColumnCache, folder_sha256
from lit_offrl.datasets.columns import listed
from lit_offrl.datasets.lerobot_folder import (
    ACTION,
    AGAIN,
    EXTRA,
    NEXT_STATE,
    PREFIX,
    REWARDS,
    STATE,
    SUCCESS,
    TERMINAL,
    Episodes,
    Feature,
    LeRobotFolder,
    fetch_folder,
    lerobot_folder,
)
from lit_offrl.datasets.lerobot_frames import FrameFeatures
from lit_offrl.datasets.lerobot_reader import LeRobotReader
from lit_offrl.datasets.noted import noted
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset

_ADVICE = {"rewards": "name with success which episodes succeeded, or with reward a feature."}
_NUMBERED = re.compile(r"[\s,]+")
_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class LeRobotOptions:
    """How the frames of a LeRobot dataset become rows.

    Attributes:
        observations: Features that are put behind each other, in this order; None takes
            ``observation.state``.
        reward: Feature of rewards; None takes ``next.reward``, else ``reward``, else what
            ``success`` says.
        success: What says which episodes succeeded: a feature, which is true in some row of them;
            the numbers of these episodes; or a file with these numbers. None takes
            ``next.success``, where the data have it.
        terminal: Feature that is true on the last row of episodes whose task ended there; None
            takes ``next.terminated``, else the last row of episodes that succeeded.
        tasks: What becomes of the task's number: nothing, or a one-hot vector behind the
            observation or in the column ``goals``.
        frames: By the name of an image's or a video's feature the function of its frames, written
            ``module.function``, whose numbers are put behind the observation.
    """

    observations: tuple[str, ...] | None = None
    reward: str | None = None
    success: str | tuple[int, ...] | None = None
    terminal: str | None = None
    tasks: Literal["ignore", "observations", "goals"] = "ignore"
    frames: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        require_fields(self)


DEFAULT_OPTIONS = LeRobotOptions()


class LeRobotSource:
    """A LeRobot dataset on disk, or of the hub.

    Args:
        dataset: Path of its folder, or its name on the hub, ``ORG/NAME`` or ``ORG/NAME@REVISION``.
        options: How frames become rows.
        guess: Whether all features ``observation…`` are taken where there is no
            ``observation.state`` and none are given.
        cache: Where columns are kept between starts; None reads the files at each start.
        env_id: Id of the environment in gymnasium.

    Attributes:
        name: The name it goes by in tables.
        path: The folder.
        folder: Its metadata.
        where: The dataset, for messages.
        parts: Features that make up an observation.
        reward: Feature of rewards, if any.
        terminal: Feature that ends tasks, if any.
        success: Feature of success, if any.
        succeeded: Numbers of the episodes that succeeded, if they are given.
        tasks: Texts of the tasks by their numbers.

    Raises:
        ConfigError: An option names a feature that is not there, or does not go with the others.
        DatasetError: There is no such dataset, or its metadata cannot be.
    """

    entry = None  # the catalogue has none of LeRobot's

    def __init__(
        self,
        dataset: str,
        options: LeRobotOptions = DEFAULT_OPTIONS,
        guess: bool = False,
        cache: ColumnCache | None = None,
        env_id: str | None = None,
    ) -> None:
        found = lerobot_folder(dataset)
        local = found is not None or Path(dataset).expanduser().exists()
        if not local and _NAME.fullmatch(dataset) and not dataset.startswith("."):
            found = fetch_folder(dataset, videos=bool(options.frames))
        self.path = Path(dataset).expanduser().absolute() if found is None else found.absolute()
        self.name = PREFIX + (self.path.name if local else dataset)
        self.options, self.cache = options, cache
        self.folder = LeRobotFolder(self.path)
        self.where = f"{self.name} ({self.path})"
        self._env_id = env_id
        self.parts = self._choose(guess)
        self.reward = self._feature_of("reward", REWARDS)
        self.terminal = self._feature_of("terminal", (TERMINAL,))
        self.success, self.succeeded = self._labels()
        self.tasks = self.folder.tasks() if "task_index" in self.folder.features else {}
        if options.tasks != "ignore" and not self.tasks:
            raise ConfigError(f"{self.where}: has no tasks: leave the option tasks out.")
        if options.tasks == "goals" and "goal" in self.folder.features:
            raise ConfigError(
                f"{self.where}: has a feature 'goal', which becomes the column goals: set tasks "
                "to ignore or observations."
            )
        for name in options.frames or ():
            feature = self.folder.features.get(name)
            if feature is None or not feature.is_picture:
                pictures = [each.text for each in self.folder.features.values() if each.is_picture]
                raise ConfigError(
                    f"{self.where}: frames names '{name}', which is no image and no video (it has "
                    f"{listed(pictures)})."
                )

    def facts(self) -> dict[str, str]:
        """Return what the metadata say beside the spec, for people."""
        folder = self.folder
        tasks = [f"{number}: {text}" for number, text in self.tasks.items()]
        facts = {"rows (metadata)": f"{folder.frames:,}"}
        facts["episodes (metadata)"] = f"{folder.episodes:,}"
        facts["frames a second"] = f"{folder.fps:g}"
        facts["features"] = ", ".join(each.text for each in folder.features.values())
        return facts | ({"tasks": "; ".join(tasks)} if tasks else {})

    def header(self) -> DatasetSpec:
        """Return what the metadata say."""
        folder, features = self.folder, self.folder.features
        columns = ["observations", *(["actions"] if ACTION in features else [])]
        columns += ["rewards"] if self._has_labels or self.reward else []
        columns += ["next_observations"] if self.next_state else []
        columns += [column for name, column in EXTRA.items() if name in features]
        columns += ["goals"] if self.options.tasks == "goals" else []
        columns += ["validation"] if self.validates is not None else []
        size = sum(part.size or 0 for part in self.parts) + sum(each.size for each in self.frames)
        size += len(self.tasks) if self.options.tasks == "observations" else 0
        action = folder.need(ACTION).size or 0 if ACTION in features else 0
        sizes = {"observations": size, "actions": action}
        facts = noted(folder.extra, self._env_id, sizes, self.where)
        return DatasetSpec.from_dict(
            {
                **facts,
                "name": self.name,
                "observation_dim": size,
                "action_dim": action,
                "origin": self.where,
                "columns": (*columns, "terminals", "timeouts"),
                "handling": tuple(self._handling()),
                "notices": tuple(self._notices()),
            }
        )

    def read(self, *, require: Sequence[str] = ()) -> OfflineDataset:
        """Read all episodes, or what the cache has of them.

        Raises:
            DatasetError: A file or a column is missing or wrong; the line names file, feature and
                row.
        """
        spec = self.header()
        spec.require(require, _ADVICE)
        episodes = self.folder.read_episodes()
        digest = self._sha256(episodes)

        def make() -> OfflineDataset:
            folder = None if self.cache is None else self.cache.folder
            columns, said = LeRobotReader(self, episodes, folder).columns()
            known = replace(spec, sha256=digest, notices=(*spec.notices, *said))
            return OfflineDataset(columns, known, {"source": "lerobot"})

        if self.cache is None:
            return make()
        rows = self.cache.fetch(digest, {"lerobot": self._key()}, make)
        said = tuple(dict.fromkeys((*spec.notices, *rows.spec.notices)))
        return rows.with_spec(replace(spec, sha256=digest, notices=said))

    # ---- what the options come to --------------------------------------------------------------

    @property
    def _has_labels(self) -> bool:
        return self.success is not None or self.succeeded is not None

    @property
    def next_state(self) -> Feature | None:
        """The stored next state, where nothing else than the state is observed."""
        plain = [part.name for part in self.parts] == [STATE] and not self.frames
        plain &= self.options.tasks != "observations"
        return (
            self.folder.need(NEXT_STATE) if plain and NEXT_STATE in self.folder.features else None
        )

    def _choose(self, guess: bool) -> list[Feature]:
        folder, names = self.folder, self.options.observations
        usual = [each.name for each in folder.readable if each.name.startswith("observation")]
        if names is None:
            names = (STATE,) if STATE in folder.features else tuple(usual) if guess else ()
        if not names and not (self.options.frames and self.options.observations is not None):
            raise ConfigError(
                f"{self.where}: has no feature '{STATE}': say with observations which of "
                f"{listed([each.text for each in folder.readable])} are put behind each other."
            )
        if len(set(names)) < len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise ConfigError(f"{self.where}: observations names '{twice}' twice: name it once.")
        return [folder.need(name) for name in names]

    def _feature_of(self, option: str, usual: Sequence[str]) -> Feature | None:
        """Return the feature of one number that an option names, or the first usual one."""
        given = getattr(self.options, option)
        names = [given] if given else [name for name in usual if name in self.folder.features]
        if not names:
            return None
        feature = self.folder.need(names[0])
        if feature.size != 1:
            raise ConfigError(
                f"{self.where}: {option} is '{feature.text}', where one number a frame is needed."
            )
        return feature

    def _labels(self) -> tuple[Feature | None, np.ndarray | None]:
        """Return the feature of success, or the numbers of episodes that succeeded."""
        given = self.options.success
        if given is None:
            return self._feature_of("success", (SUCCESS,)), None
        if isinstance(given, str):
            if given in self.folder.features:
                return self._feature_of("success", ()), None
            path = Path(given).expanduser()
            if not path.is_file():
                names = [each.text for each in self.folder.readable]
                raise ConfigError(
                    f"{self.where}: success is '{given}', which is no feature (it has "
                    f"{listed(names)}) and no file with the numbers of episodes."
                )
            numbers = _read_numbers(path)
        else:
            numbers = list(given)
        for number in numbers:
            if not 0 <= number < self.folder.episodes or numbers.count(number) > 1:
                raise ConfigError(
                    f"{self.where}: success names episode {number}: name those that succeeded, "
                    f"of 0 to {self.folder.episodes - 1}, once each."
                )
        return None, np.array(sorted(numbers), dtype=np.int64)

    @cached_property
    def validates(self) -> tuple[int, int] | None:
        """The episodes of the split ``val`` or ``validation``."""
        for name in ("val", "validation"):
            if (text := self.folder.splits.get(name)) is not None:
                found = re.fullmatch(r"(\d{1,12}):(\d{1,12})", text)
                low, high = (int(each) for each in found.groups()) if found else (0, 0)
                if not low < high <= self.folder.episodes:
                    raise DatasetError(
                        f"{self.folder.where}: 'splits.{name}' is '{text}', which is no range of "
                        f"its {self.folder.episodes:,} episodes: {AGAIN}."
                    )
                return low, high
        return None

    @cached_property
    def frames(self) -> list[FrameFeatures]:
        """What computes the numbers of pictures, a function each."""
        given = (self.options.frames or {}).items()
        return [FrameFeatures(self.folder, name, function) for name, function in given]

    def _key(self) -> dict[str, Any]:
        """Return all that columns depend on beside the files."""
        names = {key: None if (each := getattr(self, key)) is None else each.name
                 for key in ("reward", "terminal", "success")}  # fmt: skip
        return {
            **names,
            "labelled_only": self.labels_are_rewards,
            "observations": [part.name for part in self.parts],
            "succeeded": None if self.succeeded is None else self.succeeded.tolist(),
            "tasks": self.options.tasks,
            "frames": [each.facts() for each in self.frames],
        }

    @property
    def labels_are_rewards(self) -> bool:
        """An option goes before a feature that has rewards without being named."""
        explicit = self.options.success is not None and self.options.reward is None
        return self._has_labels and (explicit or self.reward is None)

    def _handling(self) -> Iterator[str]:
        if [part.name for part in self.parts] != [STATE] or self.frames or self.tasked:
            parts = [part.text for part in self.parts] + [each.text for each in self.frames]
            parts += [f"task (one-hot, {len(self.tasks)})"] * self.tasked
            yield f"observations: {' + '.join(parts)}"
        if self.labels_are_rewards:
            which = "numbered episodes" if self.success is None else f"'{self.success.name}'"
            yield f"rewards: 1 on the last row of episodes that succeeded, by {which}, else 0"
        elif self.reward is not None and self.reward.name != REWARDS[0]:
            yield f"rewards: '{self.reward.name}'"
        if self.terminal is not None:
            yield f"terminals: '{self.terminal.name}'; other episodes' ends are timeouts"
        elif self._has_labels:
            yield "episodes that succeeded end in a terminal, all others in a timeout"
        else:
            yield "nothing says whether the task ended, so all episodes end in a timeout"

    @property
    def tasked(self) -> bool:
        """Whether the task's number is part of the observation."""
        return self.options.tasks == "observations"

    def _notices(self) -> Iterator[str]:
        pictures = [
            each.text for each in self.folder.features.values()
            if each.is_picture and each.name not in (self.options.frames or ())
        ]  # fmt: skip
        if pictures:
            yield f"left out, as frames are no vectors (see the option frames): {listed(pictures)}"
        taken = {part.name for part in self.parts}
        others = [each.text for each in self.folder.readable
                  if each.name.startswith("observation") and each.name not in taken]  # fmt: skip
        if others:
            yield f"not among the observations: {listed(others)}"
        if len(self.tasks) > 1 and self.options.tasks == "ignore":
            yield (
                f"has {len(self.tasks)} tasks, which are not told apart: set tasks to "
                "observations or goals"
            )

    def _sha256(self, episodes: Episodes) -> str:
        files = [*self.folder.metadata_files(), *(path for path, _ in episodes.files)]
        for each in self.frames:
            files += each.files()
        return folder_sha256(self.path, files, self.cache)


def _read_numbers(path: Path) -> list[int]:
    """Return the whole numbers in a file: a list in JSON, or with spaces, commas or lines between.

    Raises:
        ConfigError: It holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
        found = json.loads(text) if text.startswith("[") else _NUMBERED.split(text) if text else []
        return [int(str(number)) for number in found]
    except (OSError, ValueError, RecursionError):
        raise ConfigError(
            f"{path}: holds something else than numbers of episodes: write a list of them, "
            "[0, 2, 5], or one a line."
        ) from None
