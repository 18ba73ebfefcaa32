"""OGBench's published data by name: of each file, the names with and without a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_offrl.datasets.entries import CatalogEntry
from lit_offrl.datasets.environments import ENVIRONMENTS, OWN
from lit_offrl.datasets.ogbench_tasks import ENV_TASKS, FAMILIES, SINGLE, TASKS, VERSION
from lit_offrl.datasets.schema import DatasetSpec

_HOST = "https://rail.eecs.berkeley.edu/datasets/ogbench"
_VALIDATION = 1.1  # files together, as the training file's share: a tenth is for validation
_PRIVILEGED = 3  # times the observations' size: positions, velocities and buttons


def validation_name(file: str) -> str:
    """Return the name, without ``.npz``, of the file that goes with a training file."""
    return f"{file}-val"


@dataclass(frozen=True)
class OGBenchEntry(CatalogEntry):
    """Data of OGBench under a name; several names are of one file.

    Attributes:
        base: Name of the training file, without ``.npz``.
    """

    base: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """The published files: for training and for validation."""
        return f"{self.base}.npz", f"{validation_name(self.base)}.npz"

    @property
    def largest_bytes(self) -> int:
        """How many bytes a file has at most."""
        assert self.rows is not None and self.observation_dim and self.action_dim
        row = 8 * ((1 + _PRIVILEGED) * self.observation_dim + self.action_dim + 32)
        return int(_VALIDATION * row * self.rows) + 64 * 2**20

    @property
    def collect_command(self) -> str | None:
        """The command that makes an equivalent; None where that takes the authors' walkers."""
        name, _, kind = self.base.removesuffix(VERSION).rpartition("-")
        if FAMILIES[name].walks:
            return None
        output = f"--output regenerated/{self.base}.npz"
        return f"lit-offrl collect --env {name}{VERSION} --kind {kind} {output}"

    def spec(self) -> DatasetSpec:
        """Return what is known before the files are on disk."""
        assert self.env_id is not None
        return ogbench_spec(self.name, self.env_id, self.url)


def ogbench_spec(name: str, env_id: str, origin: str) -> DatasetSpec:
    """Return the spec of data of one of OGBench's environments, without the file's hash."""
    facts, task = ENVIRONMENTS[env_id], ENV_TASKS[env_id.removeprefix(OWN)].task
    rewards = ("rewards",) if task is not None else ()
    return DatasetSpec(
        name=name,
        observation_dim=facts.observation_dim,
        action_dim=facts.action_dim,
        action_low=(-1.0,) * facts.action_dim,
        action_high=(1.0,) * facts.action_dim,
        env_id=env_id,
        max_episode_steps=facts.max_episode_steps,
        **facts.references,
        origin=origin,
        columns=("observations", "actions", *rewards, "validation", "terminals", "timeouts"),
    )


def _entries() -> dict[str, OGBenchEntry]:
    found = {}
    for family in FAMILIES.values():
        for kind, size in family.data.items():
            base = f"{family.name}-{kind}{VERSION}"
            for ending in ("", f"-{SINGLE}", *(f"-{SINGLE}-task{task}" for task in TASKS)):
                name = f"{family.name}-{kind}{ending}{VERSION}"
                facts = ENVIRONMENTS[f"{OWN}{family.name}{ending}{VERSION}"]
                known: dict[str, Any] = {
                    key: getattr(facts, key)
                    for key in ("env_id", "observation_dim", "action_dim", "max_episode_steps")
                }
                found[name] = OGBenchEntry(
                    name=name,
                    url=f"{_HOST}/{base}.npz",
                    family="ogbench",
                    rows=size.episodes * size.rows,
                    base=base,
                    ref_min_score=facts.ref_min_score,
                    ref_max_score=facts.ref_max_score,
                    ref_source=facts.ref_source,
                    **known,
                )
    return found


OGBENCH: Mapping[str, OGBenchEntry] = _entries()
