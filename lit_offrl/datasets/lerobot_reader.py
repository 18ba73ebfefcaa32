"""Reading the columns of a LeRobot dataset once, each value looked at on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lit_offrl.common.errors import DatasetError
from lit_offrl.datasets.lerobot_columns import Columns
from lit_offrl.datasets.lerobot_folder import ACTION, AGAIN, DONE, EXTRA, Episodes, Feature
from lit_offrl.datasets.scratch import scratch
from lit_offrl.datasets.values import remarks

if TYPE_CHECKING:  # which imports this module
    from lit_offrl.datasets.lerobot import LeRobotSource


class LeRobotReader:
    """Reads the columns of a source.

    Args:
        source: Which features become which columns.
        episodes: The episodes, and the files that hold their rows.
        folder: On whose disk the nameless files of columns are; None for that of temporary files.
    """

    def __init__(self, source: LeRobotSource, episodes: Episodes, folder: Path | None) -> None:
        self._source, self._episodes, self._place = source, episodes, folder
        self._data = Columns(episodes, source.where)
        self._rows = self._data.rows
        self._last = np.zeros(self._rows, dtype=np.bool_)
        self._last[np.cumsum(episodes.lengths) - 1] = True
        self._said: list[str] = []

    def columns(self) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """Return the columns, and what is odd about their values."""
        source, features = self._source, self._source.folder.features
        extra = {name: column for name, column in EXTRA.items() if name in features}
        single = [source.reward, source.terminal, source.success, source.next_state]
        single += [features.get(name) for name in ("timestamp", "task_index", ACTION, DONE)]
        needed = [features["episode_index"], features["frame_index"], *source.parts]
        needed += [each for each in single if each is not None]
        needed += [source.folder.need(name) for name in extra]
        self._data.check(list(dict.fromkeys(needed)))
        self._check_index()
        columns = {"observations": self._vectors(source.parts, "observations")}
        if ACTION in features:
            columns["actions"] = self._vectors([source.folder.need(ACTION)], "actions")
        if source.next_state is not None:
            columns["next_observations"] = self._vectors([source.next_state], "")
        for name, column in extra.items():
            columns[column] = self._vectors([source.folder.need(name)], column)
            if column != "goals":
                columns[column] = columns[column].reshape(-1)
        if source.options.tasks == "goals":
            columns["goals"] = self._vectors([], "goals", tasks=True)
        succeeded = self._successes()
        if source.labels_are_rewards:
            columns["rewards"] = succeeded.astype(np.float32)
        elif source.reward is not None:
            columns["rewards"] = self._vectors([source.reward], "rewards").reshape(-1)
        if (done := features.get(DONE)) is not None and done.size == 1:
            self._flags(done)
        terminals = succeeded if source.terminal is None else self._flags(source.terminal)
        columns["terminals"], columns["timeouts"] = terminals, self._last & ~terminals
        if source.validates is not None:
            low, high = source.validates
            chosen = np.zeros(len(self._episodes.lengths), dtype=np.bool_)
            chosen[low:high] = True
            columns["validation"] = np.repeat(chosen, self._episodes.lengths)
        return columns, tuple(self._said)

    def _check_index(self) -> None:
        """Compare the rows' own numbers with what the metadata say of episodes."""
        features, episodes = self._source.folder.features, self._episodes
        names = [n for n in ("episode_index", "frame_index", "timestamp") if n in features]
        row, before = 0, None
        numbers = np.arange(len(episodes.lengths))
        for blocks in self._data.blocks([features[name] for name in names]):
            values = [block[:, 0] for block in blocks]
            rows = np.arange(row, row + len(values[0]))
            of = np.searchsorted(episodes.starts, rows, side="right") - 1
            for name, found, wanted in (
                ("episode_index", values[0], numbers[of]),
                ("frame_index", values[1], rows - episodes.starts[of]),
            ):
                odd = np.flatnonzero(found != wanted)
                if len(odd):
                    at = int(odd[0])
                    length = int(episodes.lengths[of[at]])
                    raise self._wrong(
                        row + at,
                        f"column '{name}' has {found[at]}, where by 'length' of meta/episodes row "
                        f"{rows[at] - episodes.starts[of[at]]} of {length} of episode {of[at]} is",
                    )
            if "timestamp" in names:
                times = values[2] if before is None else np.append(before, values[2])
                firsts = np.append(rows[:0] if before is None else rows[:1] - 1, rows)
                falls = np.flatnonzero((np.diff(times) < 0) & ~self._last[firsts[:-1]])
                if len(falls):
                    at = int(falls[0])
                    raise self._wrong(
                        int(firsts[at]) + 1,
                        f"column 'timestamp' falls from {times[at]:g} to {times[at + 1]:g} within "
                        "an episode",
                    )
                before = values[2][-1:]
            row += len(rows)

    def _wrong(self, row: int, what: str) -> DatasetError:
        ends = np.cumsum([rows for _, rows in self._episodes.files])
        number = int(np.searchsorted(ends, row, side="right"))
        path, rows = self._episodes.files[number]
        row -= int(ends[number]) - rows
        return DatasetError(f"{path}: {what} (row {row:,} of the file): {AGAIN}.")

    def _vectors(
        self, parts: Sequence[Feature], column: str, tasks: bool | None = None
    ) -> np.ndarray:
        """Return features behind each other (N, d), float32, mapped from a nameless file."""
        source = self._source
        whole = column == "observations"
        tasked = (source.tasked and whole) if tasks is None else tasks
        frames = [each.fetch(self._rows, source.cache) for each in source.frames] if whole else []
        number = [source.folder.features["task_index"]] if tasked else []
        kinds = [np.dtype(part.dtype) for part in parts]
        kind = np.dtype(np.float32) if not parts or frames or tasked else np.result_type(*kinds)
        size = sum(part.size or 0 for part in parts) + sum(each.shape[1] for each in frames)
        size += len(source.tasks) * tasked

        def joined() -> Iterator[np.ndarray]:
            row = 0
            for block in self._data.blocks([*parts, *number]):
                rows = len(block[0])
                values = block[: len(parts)]
                values += [each[row : row + rows] for each in frames]
                if tasked:
                    values.append(self._one_hot(block[-1][:, 0], row))
                yield np.concatenate(values, axis=1)
                row += rows

        made = scratch(joined(), (self._rows, size), kind, self._place)
        if column:  # of the next states the remarks would be those of the states
            self._said += remarks({column: made if column != "rewards" else made[:, 0]})
        if kind == np.float32:
            return made
        blocks = (made[i : i + (1 << 16)] for i in range(0, self._rows, 1 << 16))
        return scratch(blocks, made.shape, np.dtype(np.float32), self._place)

    def _one_hot(self, numbers: np.ndarray, row: int) -> np.ndarray:
        count = len(self._source.tasks)
        odd = np.flatnonzero((numbers < 0) | (numbers >= count))
        if len(odd):
            raise self._wrong(
                row + int(odd[0]),
                f"column 'task_index' has {numbers[odd[0]]}, where meta/tasks.parquet has {count} "
                "tasks",
            )
        return np.eye(count, dtype=np.float32)[numbers.astype(np.int64)]

    def _flags(self, feature: Feature, anywhere: bool = False) -> np.ndarray:
        """Return a feature (N,) of 0 and 1, which is 1 only on last rows unless ``anywhere``."""
        found, row = np.zeros(self._rows, dtype=np.bool_), 0
        for (block,) in self._data.blocks([feature]):
            values = block[:, 0]
            odd = np.flatnonzero((values != 0) & (values != 1))
            if len(odd):
                raise self._wrong(
                    row + int(odd[0]),
                    f"column '{feature.name}' has {values[odd[0]]}, where only 0 and 1 may stand",
                )
            found[row : row + len(values)] = values
            row += len(values)
        early = np.flatnonzero(found & ~self._last)
        if len(early) and not anywhere:
            raise self._wrong(
                int(early[0]), f"column '{feature.name}' ends an episode that goes on"
            )
        return found

    def _successes(self) -> np.ndarray:
        """Return on which rows (N,) an episode ends that succeeded."""
        source, lengths = self._source, self._episodes.lengths
        chosen = np.zeros(len(lengths), dtype=np.bool_)
        if source.succeeded is not None:
            chosen[source.succeeded] = True
        elif source.success is not None:
            flags = self._flags(source.success, anywhere=True)
            chosen = np.logical_or.reduceat(flags, self._episodes.starts)
        found = np.zeros(self._rows, dtype=np.bool_)
        found[np.cumsum(lengths)[chosen] - 1] = True
        return found
