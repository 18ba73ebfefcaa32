"""Published datasets: D4RL's 173 and d4rl-pybullet's 12, their facts read from ``catalog.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lit_offrl.common.errors import DatasetError
from lit_offrl.datasets.hdf5 import Format
from lit_offrl.datasets.schema import DatasetSpec

_FACTS = Path(__file__).with_name("catalog.json")
_UNBOUNDED = ("carla", "flow")  # or not known to be bounded
_LARGEST = 16 * 10**9  # bytes of a file; CARLA's are the largest, with some 3 GB
_COLUMNS = ("observations", "actions", "rewards", "terminals")


@dataclass(frozen=True)
class CatalogEntry:
    """A published dataset: where it is, what it holds, what is known of its returns.

    Attributes:
        name: Name of the dataset, here and where it was published.
        url: Address of the HDF5 file.
        family: Family of data with the same shape and conventions, e.g. ``maze2d``.
        env_id: Id of its environment in gymnasium, a key of ``ENVIRONMENTS``. If it is None,
            ``why_no_env`` gives the reason.
        why_no_env: Why its policies cannot be evaluated here.
        observation_dim: Size of an observation, o, if it is known before the file is on disk.
        action_dim: Size of an action, a.
        max_episode_steps: Step limit, if there is one.
        ref_min_score: Episode return that scores 0, if the authors give one.
        ref_max_score: Episode return that scores 100, if the authors give one.
        ref_source: Source of both references.
        rows: Published number of rows, if known, including extra rows at the ends of episodes.
        kind: Kind of d4rl-pybullet's data: ``random``, ``medium`` or ``mixed``.
        mean_return: Mean return as published for d4rl-pybullet's data; so are the next three
            numbers.
        std_return: Standard deviation of returns over episodes.
        min_return: Return of the worst episode.
        max_return: Return of the best episode.
        format: Layout of the file.
        refusal: Why the data are refused unless the user accepts their faults; None if they are
            not.
        warning: Warning to print before the data are used, if there is one.
    """

    name: str
    url: str
    family: str
    env_id: str | None = None
    why_no_env: str | None = None
    observation_dim: int | None = None
    action_dim: int | None = None
    max_episode_steps: int | None = None
    ref_min_score: float | None = None
    ref_max_score: float | None = None
    ref_source: str | None = None
    rows: int | None = None
    kind: str | None = None
    mean_return: float | None = None
    std_return: float | None = None
    min_return: float | None = None
    max_return: float | None = None
    format: Format = "d4rl"
    refusal: str | None = None
    warning: str | None = None

    @property
    def file(self) -> str:
        """The published file's own name."""
        return self.url.rsplit("/", 1)[1].partition("?")[0]

    @property
    def largest_bytes(self) -> int:
        """How many bytes the file has at most, with an allowance for unread columns."""
        if self.rows is None or self.observation_dim is None or self.action_dim is None:
            return _LARGEST
        row = 2 * self.observation_dim + self.action_dim + 8
        return 2 * 8 * row * self.rows + 64 * 2**20

    @property
    def regenerated_name(self) -> str:
        """The name of an equivalent made here: never that of the original."""
        return self.name.rpartition("-v")[0] + "-regenerated"

    @property
    def collect_command(self) -> str | None:
        """The command that makes an equivalent; None where there is none."""
        output = f"--output {self.regenerated_name}.hdf5"
        if self.family == "d4rl-pybullet":
            # `mixed` ends by itself, when training reaches the return at which the original ended.
            steps = "" if self.kind == "mixed" else f" --steps {self.rows}"
            return f"lit-offrl collect --env {self.env_id} --kind {self.kind}{steps} {output}"
        if self.family == "maze2d" and self.env_id is not None:
            recipe = f"--planner waypoint --steps {self.rows or 1_000_000} --noise 0.5"
            return f"lit-offrl collect --env {self.env_id} {recipe} {output}"
        return None

    def spec(self) -> DatasetSpec:
        """Return what is known before the file is on disk.

        Raises:
            DatasetError: if not even the sizes are.
        """
        if self.observation_dim is None or self.action_dim is None:
            raise DatasetError(
                f"{self.name}: its sizes are not known before its file is on disk: "
                f"run `lit-offrl datasets download {self.name}`."
            )
        made = ("next_observations", "timeouts") if self.format == "pybullet" else ("timeouts",)
        return self.complete(
            DatasetSpec(
                name=self.name,
                observation_dim=self.observation_dim,
                action_dim=self.action_dim,
                env_id=self.env_id,
                origin=self.url,
                columns=(*_COLUMNS, *made),
            )
        )

    def complete(self, spec: DatasetSpec) -> DatasetSpec:
        """Return a file's spec with what the catalogue knows: bounds, limit, references."""
        if spec.env_id != self.env_id:
            return spec  # the user named another environment, for which none of this holds
        low, high = spec.action_low, spec.action_high
        if self.action_dim == spec.action_dim and self.family not in _UNBOUNDED:
            low = low or (-1.0,) * spec.action_dim
            high = high or (1.0,) * spec.action_dim
        return replace(
            spec,
            action_low=low,
            action_high=high,
            max_episode_steps=self.max_episode_steps or spec.max_episode_steps,
            ref_min_score=self.ref_min_score,
            ref_max_score=self.ref_max_score,
            ref_source=self.ref_source,
            why_no_env=self.why_no_env,
        )


CATALOG: Mapping[str, CatalogEntry] = {
    name: CatalogEntry(name=name, **facts)
    for name, facts in json.loads(_FACTS.read_text(encoding="utf-8"))["datasets"].items()
}
