"""Rows of a run's own steps in an environment, and batches that mix them with offline rows.

replay   row 0 | row 1 | … | row n−1      one row a step; view and batches see n rows at most
batch    [ offline rows: ratio · B | own rows: the rest ]
file     what a checkpoint counts, row after row; later rows, of a killed run, are written over
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.common.files import refusals
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.datasets.sampler import Draw, Order, RowOrder
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset
from lit_offrl.datasets.views.base import BoundView, View

ROWS_FILE = "replay.rows"
"""In a run's folder: the own steps so far, of which a checkpoint counts the first ones."""
_OWN = 0x0521  # keeps the streams of one seed apart
_ENDS = ("terminals", "timeouts")
_BESIDE = ": a checkpoint of own steps goes on only beside the file of its rows."


class Replay:
    """All steps that a run takes itself, as the columns of a dataset that grows row by row.

    ``rewards`` are the environment's. To readers of the rows, the running episode is cut off by a
    timeout at the last one, so that its value goes on in the next observation.

    Args:
        capacity: Number of rows that there will be.
        observation_dim: Size o of an observation.
        action_dim: Size a of an action.
    """

    def __init__(self, capacity: int, observation_dim: int, action_dim: int) -> None:
        self.columns = {
            "observations": np.zeros((capacity, observation_dim), np.float32),
            "actions": np.zeros((capacity, action_dim), np.float32),
            "rewards": np.zeros(capacity, np.float32),
            "terminals": np.zeros(capacity, np.bool_),
            "timeouts": np.zeros(capacity, np.bool_),
            "next_observations": np.zeros((capacity, observation_dim), np.float32),
        }
        self._stops = np.zeros(capacity, np.int64)  # of the episodes that have ended
        self.length = 0
        """Number n of rows so far."""
        self.ended = 0
        """Number of episodes that have ended."""
        self._written = 0

    @property
    def begun(self) -> int:
        """First row of the episode under way."""
        return int(self._stops[self.ended - 1]) if self.ended else 0

    def add(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        reward: float,
        terminated: bool,
        truncated: bool,
        following: np.ndarray,
    ) -> None:
        """Add a step, its observations (o,) and action (a,); a truncation is a timeout."""
        timeout = truncated and not terminated
        row: tuple[Any, ...] = (observation, action, reward, terminated, timeout, following)
        for column, value in zip(self.columns.values(), row, strict=True):
            column[self.length] = value
        self.length += 1
        if terminated or timeout:
            self._end()

    def cut(self) -> None:
        """Let the episode under way, which has rows, end in a timeout."""
        self.columns["timeouts"][self.length - 1] = True
        self._written = min(self._written, self.length - 1)
        self._end()

    def _end(self) -> None:
        self._stops[self.ended] = self.length
        self.ended += 1

    def episodes(self) -> np.ndarray:
        """Rows [start, stop) of each episode (E, 2), that under way included."""
        stops = self._stops[: self.ended]
        if self.begun < self.length:
            stops = np.append(stops, self.length)
        return np.stack([np.concatenate([[0], stops[:-1]]), stops], axis=1)

    def returns(self, since: int = 0, until: int | None = None) -> np.ndarray:
        """Undiscounted returns (K,), float64, of episodes that ended with row ``since`` or later.

        With ``until`` only of those that ended before that row.
        """
        if self.ended == 0:
            return np.zeros(0)
        rewards = self.columns["rewards"][: self.begun].astype(np.float64)
        bounds = self.episodes()[: self.ended]
        chosen = (bounds[:, 1] > since) & (
            bounds[:, 1] <= (self.length if until is None else until)
        )
        return np.add.reduceat(rewards, bounds[:, 0])[chosen]

    def rows(self) -> dict[str, np.ndarray]:
        """Columns of the rows so far, of which the last one ends an episode."""
        columns = {name: column[: self.length] for name, column in self.columns.items()}
        if self.begun < self.length:
            columns["timeouts"] = columns["timeouts"].copy()
            columns["timeouts"][-1] = True
        return columns

    # ---- the file ------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Add the rows that the file does not have yet, a line of float32 numbers each.

        Raises:
            FileError: It cannot be written; what a checkpoint counts is there still.
        """
        if self._written == self.length:
            return
        new = slice(self._written, self.length)
        parts = [np.asarray(c[new], np.float32) for c in self.columns.values()]
        lines = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
        with refusals(path), path.open("r+b" if self._written else "wb") as file:
            file.seek(self._written * lines.shape[1] * lines.itemsize)
            file.truncate()
            file.write(lines.tobytes())
            file.flush()
            os.fsync(file.fileno())
        self._written = self.length

    def load(self, path: Path, length: int) -> None:
        """Take the file's first rows.

        Raises:
            DatasetError: It has fewer, or is not there.
        """
        columns = self.columns.values()
        widths = [column.shape[1] if column.ndim == 2 else 1 for column in columns]
        count, most = length * sum(widths), len(self.columns["rewards"])
        try:
            numbers = np.fromfile(path, np.float32, count) if count else np.zeros(0, np.float32)
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error.strerror}){_BESIDE}") from error
        if length > most or len(numbers) < count:
            has = (
                f"has fewer rows than {length:,}" if length <= most else f"has above {most:,} rows"
            )
            raise DatasetError(f"{path}: {has}{_BESIDE}")
        lines = numbers.reshape(length, sum(widths))
        for column, part in zip(columns, np.split(lines, np.cumsum(widths)[:-1], 1), strict=True):
            column[:length] = part.reshape(length, *column.shape[1:])
        stops = np.flatnonzero(np.logical_or(*(self.columns[name][:length] for name in _ENDS))) + 1
        self._stops[: len(stops)] = stops
        self.length = self._written = length
        self.ended = len(stops)


@dataclass(frozen=True)
class Mixture:
    """How batches are made of offline rows and own ones.

    Args:
        replay: Own rows.
        ratio: Share of a batch's rows in [0, 1] that are offline, rounded to whole rows.
        seed: Seed of the choice of own rows.
        rewards: What makes the environment's rewards (n,) those that are trained on.
    """

    replay: Replay
    ratio: float
    seed: int
    rewards: Callable[[np.ndarray], np.ndarray]

    def join(
        self, offline: BoundView, view: View, spec: DatasetSpec, batch_size: int, seed: int
    ) -> tuple[MixedView, MixedOrder]:
        """Return the view and the order of mixed batches.

        Args:
            offline: View of the offline rows.
            view: View of the own rows, before it is bound.
            spec: Spec of the offline rows.
            batch_size: Number B of rows of a batch.
            seed: Seed of the offline rows' order.
        """
        mixed = MixedView(offline, view, spec, self)
        return mixed, MixedOrder(mixed, round(self.ratio * batch_size), batch_size, seed, self.seed)


class MixedView(BoundView):
    """Offline rows by their numbers, and own row i by −1 − i."""

    def __init__(self, offline: BoundView, view: View, spec: DatasetSpec, mixture: Mixture) -> None:
        self.spans, self.device = offline.spans, offline.device
        self.num_uniforms = offline.num_uniforms
        self._offline, self._view = offline, view
        self._mixture = mixture
        self._spec = replace(spec, origin="the replay", handling=(), notices=())
        self._own: tuple[int, BoundView] | None = None

    def own(self) -> BoundView:
        """The view of the own rows so far.

        Raises:
            ConfigError: They are too few for any row of it.
        """
        replay = self._mixture.replay
        if self._own is None or self._own[0] != replay.length:
            columns = replay.rows()
            columns["rewards"] = self._mixture.rewards(columns["rewards"]).astype(np.float32)
            dataset = OfflineDataset.from_checked(
                columns, self._spec, {}, replay.episodes(), replay.begun < replay.length
            )
            try:
                self._own = replay.length, self._view.bind(self._view.prepare(dataset))
            except DatasetError as error:
                raise ConfigError(
                    f"{replay.length:,} own steps are too few for the view, of which none begins a "
                    "row of a batch: raise initial_steps."
                ) from error
        return self._own[1]

    def batch(self, index: Int[Tensor, " B"], uniforms: Tensor) -> Any:
        """Return the batch of rows (B,) on the CPU, in their order, on the offline rows' device."""
        is_own = index < 0
        if not bool(is_own.any()):
            return self._offline.batch(index.to(self.device), uniforms)
        own = self.own()
        drawn = uniforms[is_own.to(uniforms.device)].to(own.device)
        ours = own.batch(-1 - index[is_own], drawn)
        if bool(is_own.all()):
            return _map(lambda part: part.to(self.device), ours)
        is_own = is_own.to(self.device)
        theirs = self._offline.batch(index.to(self.device)[~is_own], uniforms[~is_own])

        def merge(offline: Tensor, added: Tensor) -> Tensor:
            both = offline.new_empty(len(is_own), *offline.shape[1:])
            both[~is_own], both[is_own] = offline, added.to(self.device)
            return both

        return _map(merge, theirs, ours)


def _map(function: Callable[..., Tensor], *batches: Any) -> Any:
    """Apply a function to the tensors of batches, field by field; what is None stays so."""
    fields = zip(*batches, strict=True)
    return type(batches[0])._make(
        None if parts[0] is None else function(*parts) for parts in fields
    )


class MixedOrder(Order):
    """Offline rows in the order of epochs, and own rows at random, with replacement.

    Which own rows a step has depends on (seed, step) and on how many there are.

    Args:
        view: View of both.
        offline: Number of offline rows in a batch, 0 to B.
        batch_size: Number B of all rows in a batch.
        seed: Seed of the offline rows' order and of the view's random numbers.
        own_seed: Seed of the choice of own rows.
    """

    def __init__(
        self, view: MixedView, offline: int, batch_size: int, seed: int, own_seed: int
    ) -> None:
        super().__init__(view.spans, batch_size, seed, device=view.device)
        self._view, self._own_seed = view, own_seed
        self._offline = RowOrder(view.spans, offline, seed) if offline else None
        self._count = batch_size - offline  # of own rows

    def draw(self, step: int, steps: int = 1) -> Draw:
        """Return the rows (steps · B,), int64 on the CPU; all weigh the same."""
        parts = []
        if self._offline is not None:
            parts.append(self._offline.rows(step, steps).view(steps, -1))
        if self._count:
            spans = self._view.own().spans
            numbers = [
                ShardedGenerator(self._own_seed, _OWN, each).uniform((self._count,), torch.float64)
                for each in range(step, step + steps)
            ]
            rows = spans.at((torch.cat(numbers) * len(spans)).long())
            parts.append((-1 - rows).view(steps, -1))
        return Draw(torch.cat(parts, dim=1).flatten(), None)
