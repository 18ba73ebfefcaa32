"""Whether ρ distinguishes policies, and how far ahead it looks (Mazoure et al., 4.2, Figs. 3, 4).

All comparisons are of states s_Δt with the first states s_0 of the data's episodes. Δt follows
Geometric(1 − γ) conditional on Δt ≤ D, where D is the number of steps of the episode after s_0 in
the data (time limits cut episodes off, and nothing is known past them). The model predicts from the
same s_0, with Δt drawn anew from the same distribution.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.common.ranges import require_in
from lit_offrl.common.seeds import mix
from lit_offrl.datasets.views import FutureStates
from lit_offrl.envs.mazes import MAZE2D, Maze
from lit_offrl.envs.point_mass import CELL_OFFSET
from lit_offrl.evaluation.envs import find_spec
from lit_offrl.modules.dvf import DVFModule
from lit_offrl.modules.dvf_value import CHAINS
from lit_offrl.studies.inputs import (
    CheckpointStudy,
    Study,
    load_data,
    load_dvf,
    policies_of,
    protocol_of,
)
from lit_offrl.studies.measures import energy_distance, policy_accuracy

_SHOWN = 1500  # points of a panel that the figure keeps


class Futures(NamedTuple):
    """States (N, o) some steps (N,) after the first states (N, o) of episodes (N,)."""

    states: np.ndarray
    offsets: np.ndarray
    episodes: np.ndarray
    first: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Maze2dStudy(CheckpointStudy):
    """Options of both figures.

    Args:
        ckpt_path: A checkpoint with scalar φ.
        samples: Number of states compared for each policy, at least 20.
    """

    samples: Annotated[int, "[20, inf)"] = 1500


class Comparison:
    """A model and the data of several policies in one maze, both sampled in the same way.

    Args:
        options: Checkpoint, data, number of samples, seed and device.

    Raises:
        LitOffRLError: The checkpoint or the data do not fit the study.
    """

    def __init__(self, options: Maze2dStudy) -> None:
        self.module: DVFModule = load_dvf(options.ckpt_path, options.device, values=False)
        self.data = load_data(options.data, options.ckpt_path, ("policy",))
        env_id = self.data.spec.env_id
        maze = maze_named(env_id)
        if maze is None:
            raise ConfigError(
                f"{self.data.spec.origin}: is of '{env_id}'; this figure is of maze2d: collect "
                "data of lit_offrl/maze2d-umaze-v1 with --planner waypoint --goals."
            )
        self.maze = maze
        if self.data.spec.observation_dim != self.module.occupancy.state_dim - 1:
            raise ConfigError(
                f"{options.ckpt_path}: was trained on states of "
                f"{self.module.occupancy.state_dim - 1} numbers: give one trained on maze2d."
            )
        learned = None if self.module.spec is None else self.module.spec.env_id
        if maze_named(learned) not in (None, self.maze):
            raise ConfigError(
                f"{options.ckpt_path}: was trained on '{learned}', and {self.data.spec.origin} is "
                f"of '{env_id}': give data of the same maze."
            )
        self.of_episode = policies_of(self.data)
        self.policies = np.unique(self.of_episode)
        self.samples, self.seed = options.samples, options.seed

    def of_data(self, policy: float, gamma: float, stream: int, part: int | None = None) -> Futures:
        """Draw from the data, from all of a policy's episodes or from every second one.

        Args:
            policy: Index φ of the policy.
            gamma: Discount of the offsets.
            stream: Number of the stream of random numbers.
            part: Half of the episodes, 0 or 1; all of them if None.
        """
        view = FutureStates(gamma, terminals="truncate").bind(self.data)
        episodes = np.flatnonzero(self.of_episode == policy)
        episodes = episodes if part is None else episodes[part::2]
        if len(episodes) == 0:
            raise DatasetError(
                f"{self.data.spec.origin}: policy {policy:g} has one episode only: collect more."
            )
        keys = (self.seed, stream, int(np.searchsorted(self.policies, policy)))
        noise = ShardedGenerator(*keys)
        # each episode in turn, so that all count alike
        chosen = episodes[np.arange(self.samples) % len(episodes)]
        index = torch.from_numpy(self.data.episodes[chosen, 0])
        batch = view.batch(index, noise.uniform((len(index), 1), torch.float64))
        states, first = batch.future_observations.numpy(), batch.observations.numpy()
        return Futures(states, batch.offsets.numpy(), chosen, first)

    def of_model(
        self, policy: float, gamma: float, stream: int, part: int | None = None
    ) -> Futures:
        """Draw from the model at the same first states, with offsets of the same distribution."""
        futures = self.of_data(policy, gamma, stream, part)
        drawn = []
        parts = np.array_split(np.arange(self.samples), -(-self.samples // CHAINS))
        for number, rows in enumerate(parts):
            states, _ = self.module.sample_future(
                torch.from_numpy(futures.first[rows]).to(self.module.device),
                torch.from_numpy(futures.offsets[rows, None]).to(self.module.device),
                policy=torch.full((len(rows),), float(policy), device=self.module.device),
                seed=mix(self.seed, stream, number),
            )
            drawn.append(states[:, 0].cpu().numpy())
        return futures._replace(states=np.concatenate(drawn))


def maze_named(env_id: str | None) -> Maze | None:
    """Return the maze of an environment of maze2d, and None for any other."""
    if env_id is None or not env_id.startswith("lit_offrl/maze2d-"):
        return None
    return MAZE2D[str(find_spec(env_id).kwargs["maze"])]


def cells_of(maze: Maze) -> dict[str, Any]:
    """Return which cells of a maze are free, and the outer corner of the first."""
    return {"free": maze.free.astype(int), "corner": CELL_OFFSET - 0.5}


def drawn_maze(comparison: Comparison) -> dict[str, Any]:
    """Return what the figures need to draw the maze: its cells, the start, the goals."""
    numbers: dict[str, Any] = {
        "maze": comparison.maze.name,
        **cells_of(comparison.maze),
        "policies": comparison.policies,
    }
    first = comparison.data.columns["observations"][comparison.data.episodes[:, 0], :2]
    numbers["start"] = first.mean(axis=0)
    goals = comparison.data.columns.get("goals")
    if goals is not None and goals.shape[1] == 2:
        ends = comparison.data.episodes[:, 1] - 1
        mine = [goals[ends[comparison.of_episode == one]].mean(0) for one in comparison.policies]
        numbers["goals"] = np.stack(mine)
    return numbers


def free_cells(maze: Maze, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the row in ``maze.cells`` of the free cell nearest to positions (N, 2), and whether
    they lie in it (N,), bool.
    """
    gaps = np.abs(positions[:, None] - CELL_OFFSET - maze.cells).max(axis=2)
    nearest = gaps.argmin(axis=1)
    return nearest, gaps[np.arange(len(nearest)), nearest] <= 0.5


def way_from(maze: Maze, start: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return how far it is from ``start`` (2,) to positions (N, 2) along the maze's ways, in cells.

    From the start to the last cell but one through the cells' middles, from there on straight.
    """
    (home,), _ = free_cells(maze, start[None])
    cell, _ = free_cells(maze, positions)
    before = maze.next_cells[cell, home]
    middle = maze.cells[before] + CELL_OFFSET
    rest = np.linalg.norm(positions - middle, axis=1)
    straight = np.linalg.norm(positions - start, axis=1)
    return np.where(maze.distances[cell, home] <= 1, straight, maze.distances[before, home] + rest)


def shown(futures: Futures) -> dict[str, Any]:
    """Return the points of a panel, rounded to what a picture shows."""
    some = slice(_SHOWN)
    return {
        "x": np.round(futures.states[some, 0].astype(np.float64), 3),
        "y": np.round(futures.states[some, 1].astype(np.float64), 3),
        "offset": futures.offsets[some],
    }


def separation(comparison: Comparison, gamma: float) -> dict[str, Any]:
    """Compare the model with held-out data, policy by policy (Fig. 3).

    Episodes are split in halves: the classifier learns from one, distances and accuracies are of
    the other, the model's first states too.

    Returns:
        ``accuracy`` by source: of ``held_out`` data (the ceiling: paths share a beginning) and of
        ``samples``; ``chance``. For each policy the energy distance of positions, in cells, of
        samples to held-out data (``distance``), of the two halves (``floor``) and of the held-out
        data to the nearest other policy's (``ceiling``). ``in_walls``: the share of samples there.
    """
    policies = comparison.policies
    learned = [comparison.of_data(one, gamma, 1, part=0) for one in policies]
    held_out = [comparison.of_data(one, gamma, 2, part=1) for one in policies]
    samples = [comparison.of_model(one, gamma, 3, part=1) for one in policies]
    sources = {"held_out": held_out, "samples": samples}

    def joined(parts: list[Futures]) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(len(parts)), [len(part.states) for part in parts])
        return np.concatenate([part.states for part in parts]), labels

    tested = {name: joined(parts) for name, parts in sources.items()}
    accuracy = policy_accuracy(*joined(learned), tested)
    by_policy = []
    for number, mine in enumerate(held_out):
        here = mine.states[:, :2]
        others = [part.states[:, :2] for part in held_out[:number] + held_out[number + 1 :]]
        _, inside = free_cells(comparison.maze, samples[number].states[:, :2])
        by_policy.append(
            {
                "number": number,
                "policy": policies[number],
                "episodes": int((comparison.of_episode == policies[number]).sum()),
                "distance": energy_distance(samples[number].states[:, :2], here),
                "floor": energy_distance(learned[number].states[:, :2], here),
                "ceiling": min(energy_distance(other, here) for other in others),
                "in_walls": float(1 - inside.mean()),
            }
        )
    panels = {name: [shown(part) for part in parts] for name, parts in sources.items()}
    return {
        "accuracy": accuracy | {"chance": 1 / len(policies)},
        "by_policy": by_policy,
        "panels": panels,
    }


def reach(comparison: Comparison, gammas: list[float]) -> list[dict[str, Any]]:
    """Measure how far samples and data are from the start as γ grows (Fig. 4).

    Returns:
        For each γ its mean offset, and by source the mean way from the start in cells, of all
        policies and of each, with the points of a panel.
    """
    rows = []
    for number, gamma in enumerate(gammas):
        row: dict[str, Any] = {"gamma": gamma}
        asks = {"data": comparison.of_data, "samples": comparison.of_model}
        for source, ask in asks.items():
            stream = 10 + 2 * number + (source == "samples")
            parts = [ask(one, gamma, stream) for one in comparison.policies]
            starts = comparison.data.episodes[:, 0]
            first = comparison.data.columns["observations"][starts, :2].mean(axis=0)
            ways = [way_from(comparison.maze, first, part.states[:, :2]) for part in parts]
            row[source] = {
                "way": float(np.mean([way.mean() for way in ways])),
                "way_by_policy": [float(way.mean()) for way in ways],
                "mean_offset": float(np.mean([part.offsets.mean() for part in parts])),
                "panels": [shown(part) for part in parts],
            }
        rows.append(row)
    return rows


def _facts(comparison: Comparison, options: Maze2dStudy, **more: Any) -> dict[str, Any]:
    """Say how the numbers of both figures came to be."""
    return protocol_of(
        options.ckpt_path,
        comparison.data,
        samples_a_policy=options.samples,
        episodes=len(comparison.data.episodes),
        offsets="Geometric(1 - gamma), at most the steps that the first state's episode goes on",
        seed=options.seed,
        **more,
    )


@dataclass(frozen=True, kw_only=True)
class Maze2dPolicies(Maze2dStudy):
    """Where each policy goes, in held-out data and in samples (Fig. 3).

    Args:
        gamma: Discount in [0, 1) that the offsets follow; without it, the checkpoint's.
    """

    gamma: Annotated[float | None, "[0, 1)"] = None

    def run(self) -> Study:
        """Measure; see :func:`separation`."""
        comparison = Comparison(self)
        gamma = comparison.module.gamma if self.gamma is None else self.gamma
        found = separation(comparison, gamma)
        metrics = {f"accuracy_{name}": value for name, value in found["accuracy"].items()}
        for name in ("distance", "floor", "ceiling", "in_walls"):
            each = [row[name] for row in found["by_policy"]]
            metrics[name] = sum(each) / len(each)
        numbers = drawn_maze(comparison) | {"gamma": gamma} | found
        return Study(numbers, metrics, _facts(comparison, self, gamma=gamma), self.ckpt_path)


@dataclass(frozen=True, kw_only=True)
class Maze2dGamma(Maze2dStudy):
    """Distances of samples and data from the start, by discount (Fig. 4).

    Args:
        gammas: Discounts in [0, 1) that the offsets follow, one after another.
    """

    gammas: list[float] = field(default_factory=lambda: [0.9, 0.95, 0.97, 0.99, 0.995])

    def run(self) -> Study:
        """Measure; see :func:`reach`."""
        for gamma in self.gammas:
            require_in("[0, 1)", gammas=gamma)
        comparison, gammas = Comparison(self), sorted(self.gammas)
        by_gamma = reach(comparison, gammas)
        metrics = {
            f"way_{source}_{row['gamma']:g}": row[source]["way"]
            for row in by_gamma
            for source in ("data", "samples")
        }
        numbers = drawn_maze(comparison) | {"by_gamma": by_gamma}
        return Study(numbers, metrics, _facts(comparison, self, gammas=gammas), self.ckpt_path)
