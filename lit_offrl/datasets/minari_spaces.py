"""The parts of a Minari observation: which there are, and how their values become columns.

An observation may be a dictionary or a tuple of further ones, to any depth. A part goes by the path
to it, as ``desired_goal.microwave`` (a tuple's members by their places: ``pair.0``); the name of a
dictionary stands for all parts in it, in the order of the space:

    observation                      Box (9,)      9 numbers
    desired_goal.kettle              Box (7,)      7 numbers  ┐ desired_goal: 8 numbers
    desired_goal.microwave           Box (1,)      1 number   ┘
    direction                        Discrete(4)   4 numbers, one-hot, as gymnasium flattens it
    mission, picture                 Text, Box of bytes in two or more dimensions: not read
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from lit_offrl.common.errors import ConfigError, DatasetError, nearest
from lit_offrl.datasets.columns import NUMERIC, listed
from lit_offrl.datasets.minari_opening import AGAIN

_NUMBERS = (spaces.Box, spaces.MultiBinary, spaces.Discrete, spaces.MultiDiscrete)


@dataclass(frozen=True)
class Part:
    """A part of an observation that is no dictionary or tuple itself.

    Attributes:
        keys: Path to the part; empty if the observation is one vector.
        space: Space of the part.
    """

    keys: tuple[str | int, ...]
    space: spaces.Space

    @property
    def name(self) -> str:
        """The path, with points between its keys."""
        return ".".join(map(str, self.keys))

    @property
    def size(self) -> int | None:
        """How many numbers it becomes; None where it cannot be read."""
        space = self.space
        picture = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) > 1
        return spaces.flatdim(space) if isinstance(space, _NUMBERS) and not picture else None

    @property
    def text(self) -> str:
        """Its name and what becomes of it, for people."""
        if self.size is None:
            picture = isinstance(self.space, spaces.Box)
            shape = self.space.shape or ()
            what = " × ".join(map(str, shape)) if picture else type(self.space).__name__
            return f"{self.name} ({'picture, ' * picture}{what}: not read)"
        return f"{self.name} ({self.size}{', one-hot' * (_counts(self.space) is not None)})"

    def values(self, stored: Any, where: str) -> np.ndarray:
        """Return its numbers (T, size) of one episode's observations, as Minari gives them.

        Raises:
            DatasetError: the episode lacks it, or holds something else than its space says.
        """
        node = stored
        for key in self.keys:
            try:
                node = node[key]
            except (KeyError, IndexError, TypeError):
                raise DatasetError(
                    f"{where} has no '{self.name}', which the dataset's space promises: {AGAIN}, "
                    "or leave the part out of minari_observations."
                ) from None
        values = np.asarray(node)
        shape = self.space.shape or ()
        fits = values.ndim > 0 and values.dtype.kind in NUMERIC
        if not fits or math.prod(values.shape[1:]) != math.prod(shape):
            raise DatasetError(
                f"{where} holds '{self.name or 'observations'}' as {values.dtype} of shape "
                f"{values.shape}, which is not what its space {self.space} says: {AGAIN}."
            )
        flat = values.reshape(len(values), -1)
        counts = _counts(self.space)
        return flat if counts is None else self._indicators(flat, counts, where)

    def _indicators(self, values: np.ndarray, counts: Sequence[int], where: str) -> np.ndarray:
        """Return whole numbers (T, k) as one-hot vectors, one behind the other."""
        offsets = values - np.reshape(getattr(self.space, "start", 0), -1)
        bad = (offsets < 0) | (offsets >= counts) | (offsets != np.floor(offsets))
        if bad.any():
            row = int(np.argmax(bad.any(axis=1)))
            raise DatasetError(
                f"{where} has {values[row].tolist()} as '{self.name or 'observations'}' in row "
                f"{row:,}, which is not in its space {self.space}: {AGAIN}."
            )
        columns = offsets.astype(np.int64) + np.cumsum([0, *counts[:-1]])
        made = np.zeros((len(values), sum(counts)), np.float32)
        np.put_along_axis(made, columns, 1.0, axis=1)
        return made


def _counts(space: spaces.Space) -> list[int] | None:
    """Return of each whole number in a space how many values it may have; None for other spaces."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    return space.nvec.reshape(-1).tolist() if isinstance(space, spaces.MultiDiscrete) else None


def parts_of(space: spaces.Space, keys: tuple[str | int, ...] = ()) -> list[Part]:
    """Return all parts of a space, in its order."""
    if isinstance(space, spaces.Dict):
        members: Sequence[tuple[str | int, spaces.Space]] = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        members = list(enumerate(space.spaces))
    else:
        return [Part(keys, space)]
    return [part for key, inner in members for part in parts_of(inner, (*keys, key))]


def is_nested(space: spaces.Space) -> bool:
    """Say whether an observation of this space has parts to choose from."""
    return isinstance(space, spaces.Dict | spaces.Tuple)


def choose(space: spaces.Space, names: Sequence[str] | None, where: str) -> list[Part]:
    """Return the parts that make an observation, in the order of their names.

    Args:
        space: Space of the observations.
        names: Names of parts, or of dictionaries for all parts in them; None if the observation is
            one vector.
        where: The dataset, for messages.

    Raises:
        ConfigError: there is something to choose and ``names`` does not, or there is not and it
            does; a name is unknown, or names a part for the second time.
        DatasetError: what is chosen cannot be read as numbers.
    """
    parts = parts_of(space)
    if not is_nested(space):
        if names is not None:
            raise ConfigError(
                f"{where}: its observations are no dictionary: leave minari_observations out."
            )
        _require_numbers(parts, parts, where)
        return parts
    if not names:
        kind = "tuples" if isinstance(space, spaces.Tuple) else "dictionaries"
        raise ConfigError(
            f"{where}: its observations are {kind} of {_listed(parts)}: say with "
            "minari_observations which of them to put behind each other."
        )
    chosen: list[Part] = []
    for name in names:
        found = _below(parts, str(name))
        if not found:
            keys = [part.keys[:depth] for part in parts for depth in range(1, len(part.keys) + 1)]
            known = {".".join(map(str, each)) for each in keys}
            raise ConfigError(
                f"{where}: has no observation '{name}' (it has {_listed(parts)})."
                f"{nearest(str(name), known)}"
            )
        for part in found:
            if part in chosen:
                raise ConfigError(
                    f"{where}: minari_observations names '{part.name}' twice: name it once."
                )
        chosen += found
    _require_numbers(chosen, parts, where)
    return chosen


def usual_choice(space: spaces.Space) -> tuple[str, ...] | None:
    """Return what to look at where nobody has chosen: ``observation``, else all that can be read.

    None where the observation is one vector.
    """
    if not is_nested(space):
        return None
    parts = parts_of(space)
    usual = _below(parts, "observation")
    if usual and all(part.size for part in usual):
        return ("observation",)
    return tuple(part.name for part in parts if part.size)


def goal_parts(space: spaces.Space, key: str, chosen: Sequence[Part]) -> list[Part]:
    """Return the parts of the goal under a key; empty where there is none to be read.

    Of a goal that is among the observations, whole or in part, there is none.
    """
    parts = _below(parts_of(space), key) if isinstance(space, spaces.Dict) else []
    if any(part in chosen or not part.size for part in parts):
        return []
    return parts


def vector(parts: Sequence[Part], stored: Any, where: str) -> np.ndarray:
    """Return parts of one episode's observations (T, sum of sizes), one behind the other.

    Raises:
        DatasetError: as ``Part.values``, or the parts have different numbers of rows.
    """
    values = [part.values(stored, where) for part in parts]
    for part, found in zip(parts, values, strict=True):
        if len(found) != len(values[0]):
            raise DatasetError(
                f"{where} has {len(found):,} rows of '{part.name}' and {len(values[0]):,} of "
                f"'{parts[0].name}': {AGAIN}."
            )
    return np.concatenate(values, axis=1)


def _below(parts: Sequence[Part], name: str) -> list[Part]:
    """Return the part of a name, or those within the dictionary or tuple of that name."""
    exact = [part for part in parts if part.name == name]
    return exact or [part for part in parts if part.name.startswith(name + ".")]


def _listed(parts: Sequence[Part]) -> str:
    return listed([part.text for part in parts])


def _require_numbers(chosen: Sequence[Part], parts: Sequence[Part], where: str) -> None:
    for part in chosen:
        if not part.size:
            readable = [other for other in parts if other.size]
            name, todo = part.name or "observations", "choose another dataset."
            if readable:
                todo = f"of its parts {_listed(readable)} can be read."
            raise DatasetError(f"{where}: its '{name}' is {part.space}, which is no vector: {todo}")
