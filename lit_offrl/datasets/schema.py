"""``OfflineDataset``: frozen columns, episode bounds and what is known about where they come from.

row          0   1   2   3   4   5   6   7
terminals    .   .   T   .   .   .   .   .
timeouts     .   .   .   .   .   T   .   x      x: set here, the file ends within an episode
episodes     [0       3) [3       6) [6   8)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, get_type_hints

import numpy as np

from lit_offrl.common.errors import DatasetError, nearest
from lit_offrl.common.plain import is_of
from lit_offrl.datasets import ends
from lit_offrl.datasets.columns import clean_column, clean_columns, need_ends

_REWARDS = "rewards: "  # begins what is said of their handling
_MOST = 2**31  # of dimensions, or of an episode's steps


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of a dataset without its rows; plain types only.

    Attributes:
        name: Name of the dataset in tables.
        observation_dim: Size of an observation, o.
        action_dim: Size of an action, a, or 0 if the data have no actions.
        action_low: Lower bound of each action dimension (a,), if known.
        action_high: Upper bound of each action dimension (a,), if known.
        env_id: Id of the environment in gymnasium, if known.
        max_episode_steps: Step limit of the environment, if known.
        ref_min_score: Episode return (see ``score_of``) that scores 0, if known.
        ref_max_score: Episode return that scores 100, if known.
        ref_source: Source of both references.
        score_of: Quantity of the references: an episode's ``return``, or its ``success``, 0 or 1.
        sha256: Hash of the file, once it has been read completely.
        origin: The file or other source of the rows; messages begin with it.
        columns: Names of the columns.
        why_no_env: Why its policies cannot be evaluated, if no environment is available.
        handling: What was done to the file's rows on reading, one sentence each; evaluation records
            contain it.
        notices: What users should know of the values, one line each; ``fit`` and ``check`` print
            it.
    """

    name: str
    observation_dim: int
    action_dim: int = 0
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None
    env_id: str | None = None
    max_episode_steps: int | None = None
    ref_min_score: float | None = None
    ref_max_score: float | None = None
    ref_source: str | None = None
    score_of: str = "return"
    sha256: str | None = None
    origin: str = "memory"
    columns: tuple[str, ...] = ()
    why_no_env: str | None = None
    handling: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def rows_handling(self) -> tuple[str, ...]:
        """What of ``handling`` concerns more than the rewards."""
        return tuple(each for each in self.handling if not each.startswith(_REWARDS))

    def require(self, names: Iterable[str], advice: Mapping[str, str] | None = None) -> None:
        """Refuse data without one of these columns.

        Args:
            names: Names of columns.
            advice: What to do where one of these is missing, by its name.

        Raises:
            DatasetError: One is missing.
        """
        for name in names:
            if name not in self.columns:
                raise DatasetError(
                    f"{self.origin}: has no column '{name}' (it has {', '.join(self.columns)}): "
                    f"{(advice or {}).get(name, 'choose a dataset that has it.')}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return plain types that JSON and ``torch.load(weights_only=True)`` take."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetSpec:
        """Undo ``to_dict``, also after a trip through JSON, which makes tuples lists.

        Raises:
            DatasetError: if a field is unknown, one without a default is missing, or one is of
                another type than it must be.
        """
        hints = get_type_hints(cls)
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        for key, value in plain.items():
            if key not in hints:
                raise DatasetError(f"dataset spec: unknown field '{key}'.{nearest(key, hints)}")
            # a space may leave actions unbounded, which is looked at where bounds are used
            if not is_of(value, hints[key], most=_MOST, unbounded=True):
                raise DatasetError(f"dataset spec: {key} is {value!r:.60}: it cannot be.")
        try:
            return cls(**plain)
        except TypeError as error:
            raise DatasetError(f"dataset spec: {error}") from None


@dataclass(frozen=True, eq=False)
class OfflineDataset:
    """Columns of equal length, split into episodes; checked once, here, and read-only ever after.

    An episode ends at a row where ``terminals`` (the task ended: no reward ever follows) or
    ``timeouts`` (only the recording ended) is True; where both are, it is terminal. Rows after the
    last end are an episode that was cut off: its last row becomes a timeout. Of the two columns one
    may be absent, and is then False everywhere.

    Attributes:
        columns: ``observations`` (N, o) and, where the data have them, ``actions`` (N, a),
            ``rewards`` (N,), ``next_observations`` (N, o), ``goals`` (N, g), ``policy`` (N,), all
            float32; ``reward_mask``, ``validation`` (True in episodes that validate, where the
            data come with a split of their own), ``interventions`` (True where a human's action
            corrected the policy) and ``next_unknown`` (True on an episode's last row whose next
            observation is not the next state) (N,) bool; always ``terminals`` and ``timeouts``
            (N,) bool.
        spec: Dimensions, environment and references. The dimensions must be those of the columns.
        provenance: How the data were made, as text.
        episodes: Rows [start, stop) of each episode, int64 (E, 2).
        cut_off: Whether the rows end within an episode.

    Raises:
        DatasetError: naming file, column and row of the first thing wrong.
    """

    columns: Mapping[str, np.ndarray]
    spec: DatasetSpec
    provenance: Mapping[str, str] = field(default_factory=dict)
    episodes: np.ndarray = field(init=False)
    cut_off: bool = field(init=False)

    def __post_init__(self) -> None:
        where = self.spec.origin
        columns = clean_columns(self.columns, where)
        columns, cut_off = _with_ends(columns, where)
        for name, expected in (
            ("observations", self.spec.observation_dim),
            ("actions", self.spec.action_dim),
        ):
            found = columns[name].shape[1] if name in columns else 0
            if found != expected:
                raise DatasetError(
                    f"{where}: column '{name}' has {found} dimensions where {expected} are "
                    "expected: choose the data of the right environment."
                )
        stops = np.flatnonzero(columns["terminals"] | columns["timeouts"]) + 1
        episodes = np.stack([np.concatenate([[0], stops[:-1]]), stops], axis=1).astype(np.int64)
        self._fill(columns, self.spec, self.provenance, episodes, cut_off)

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, np.ndarray],
        *,
        name: str = "memory",
        origin: str = "memory",
        provenance: Mapping[str, str] | None = None,
        **facts: Any,
    ) -> OfflineDataset:
        """Build a dataset whose spec takes its dimensions from the columns.

        Args:
            columns: Columns as in the class. Other columns that say where episodes end, such as
                ``truncations`` or ``dones``, are read as in files, see ``ends``.
            name: Name of the dataset.
            origin: Beginning of messages.
            provenance: How the data were made.
            **facts: Other fields of ``DatasetSpec``, such as ``env_id``.
        """
        columns, said = _with_read_ends(columns, origin)
        cleaned = clean_columns(columns, origin)
        facts["handling"] = (*facts.get("handling", ()), *said)
        names = tuple(dict.fromkeys([*cleaned, "terminals", "timeouts"]))
        spec = DatasetSpec(
            name=name,
            origin=origin,
            observation_dim=cleaned["observations"].shape[1],
            action_dim=cleaned["actions"].shape[1] if "actions" in cleaned else 0,
            columns=names,
            **facts,
        )
        return cls(cleaned, spec, provenance or {})

    @classmethod
    def from_checked(
        cls,
        columns: Mapping[str, np.ndarray],
        spec: DatasetSpec,
        provenance: Mapping[str, str],
        episodes: np.ndarray,
        cut_off: bool,
    ) -> OfflineDataset:
        """Put together again what has been a dataset before, without looking at its values."""
        dataset = object.__new__(cls)
        dataset._fill(columns, spec, provenance, episodes, cut_off)
        return dataset

    def _fill(self, columns: Any, spec: Any, provenance: Any, episodes: Any, cut_off: bool) -> None:
        for values in (*columns.values(), episodes):
            values.flags.writeable = False
        put = vars(self).update  # frozen for all others
        put(columns=MappingProxyType(dict(columns)), provenance=MappingProxyType(dict(provenance)))
        put(spec=spec, episodes=episodes, cut_off=cut_off)

    def with_spec(self, spec: DatasetSpec) -> OfflineDataset:
        """Return the same rows under another spec, of the same dimensions."""
        return self.from_checked(self.columns, spec, self.provenance, self.episodes, self.cut_off)

    def with_rewards(self, rewards: np.ndarray, what: str) -> OfflineDataset:
        """Return the same rows with other rewards (N,), and ``what`` they are in the spec.

        Raises:
            DatasetError: if a reward is not finite.
        """
        columns = dict(self.columns)
        columns["rewards"] = clean_column("rewards", rewards, len(self), self.spec.origin).view()
        spec = replace(self.spec, handling=(*self.spec.handling, _REWARDS + what))
        return self.from_checked(columns, spec, self.provenance, self.episodes, self.cut_off)

    def __reduce__(self) -> tuple[Any, ...]:
        # Read-only mappings cannot be pickled, and processes are sent their dataset by pickle.
        return OfflineDataset, (dict(self.columns), self.spec, dict(self.provenance))

    def __len__(self) -> int:
        return len(self.columns["observations"])

    def column(self, name: str) -> np.ndarray:
        """Return a column, or raise DatasetError with the nearest name."""
        if name not in self.columns:
            raise DatasetError(
                f"{self.spec.origin}: has no column '{name}' "
                f"(it has {', '.join(self.columns)}).{nearest(name, self.columns)}"
            )
        return self.columns[name]

    @property
    def episode_lengths(self) -> np.ndarray:
        """Rows of each episode (E,), int64."""
        return self.episodes[:, 1] - self.episodes[:, 0]

    @property
    def episode_terminated(self) -> np.ndarray:
        """Whether each episode (E,) ended in a true terminal state."""
        return self.columns["terminals"][self.episodes[:, 1] - 1]

    def episode_returns(self) -> np.ndarray:
        """Undiscounted return of each episode (E,), float64; unlabelled rewards count as 0.

        Raises:
            DatasetError: if the data have no rewards.
        """
        rewards = self.column("rewards").astype(np.float64)
        if "reward_mask" in self.columns:
            rewards *= self.columns["reward_mask"]
        return np.add.reduceat(rewards, self.episodes[:, 0])

    def complete_returns(self) -> np.ndarray:
        """Return of each episode that the rows' end does not cut off, as ``episode_returns``."""
        return self.episode_returns()[: len(self.episodes) - self.cut_off]

    def take_episodes(self, index: Sequence[int] | np.ndarray) -> OfflineDataset:
        """Return a dataset of the episodes of these numbers (K,), K ≥ 1, in this order.

        Raises:
            DatasetError: if an episode does not exist or none is requested.
        """
        chosen = np.asarray(index, dtype=np.int64).reshape(-1)
        count = len(self.episodes)
        if len(chosen) == 0 or chosen.min() < 0 or chosen.max() >= count:
            raise DatasetError(
                f"{self.spec.origin}: cannot take these episodes: "
                f"give at least one number from 0 to {count - 1}."
            )
        starts, lengths = self.episodes[chosen, 0], self.episode_lengths[chosen]
        shifts = starts - (np.cumsum(lengths) - lengths)
        rows = np.arange(lengths.sum()) + np.repeat(shifts, lengths)
        return OfflineDataset(
            {name: values[rows] for name, values in self.columns.items()},
            self.spec,
            self.provenance,
        )


def _with_read_ends(
    columns: Mapping[str, np.ndarray], where: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return columns whose ends have our names, and how they were read."""
    rows = len(columns.get("observations", ()))
    arrays = {key: np.asarray(values) for key, values in columns.items()}
    found = {
        key: values
        for key, values in arrays.items()
        if ends.kind_of(key) and ends.may_claim(key, values.shape, values.dtype, rows)
    }
    if not found.keys() - {"terminals", "timeouts"}:
        return dict(columns), ()
    if not ends.decisive(found):
        ends.refuse_undecided(found, where)
    read, said = ends.read_ends(found, rows, where)
    kept = {k: v for k, v in arrays.items() if k not in found or k in ("terminals", "timeouts")}
    return kept | read, said


def _with_ends(columns: dict[str, np.ndarray], where: str) -> tuple[dict[str, np.ndarray], bool]:
    """Put both end columns in, neither overlapping, the last row an end; say if it was none."""
    need_ends(columns, where)
    never = np.zeros(len(columns["observations"]), dtype=np.bool_)
    terminals = columns.get("terminals", never)
    timeouts = columns.get("timeouts", never) & ~terminals
    cut_off = not (terminals[-1] or timeouts[-1])
    timeouts[-1] |= cut_off
    return {name: values.view() for name, values in columns.items()} | {
        "terminals": terminals.view(),
        "timeouts": timeouts,
    }, cut_off
