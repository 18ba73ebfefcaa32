"""Collecting AntMaze with a policy that walks in a given direction: D4RL's recipe for its data.

    run 0   start ──▶ goal A ................ |  1,001 rows each; ``|`` is a timeout. Runs go on at
    run 1   start ──▶ goal B ................ |  the goal, and rewarded rows are terminals, which
    run 2   start ──▶ goal C ................ |  readers turn into episodes (see ``datasets.d4rl``)

    umaze      from the evaluation's start to its goal
    play       from any free cell to one of the goal cells marked in D4RL's maze for collecting
    diverse    from any free cell to any other or the same

At every step the next cell on a shortest way, its centre shifted by U(0, 1) m drawn anew, is the
waypoint, and in the goal's cell the goal itself. The policy sees the ant without x and y (27) and
the direction to the waypoint, rescaled to norm 10 (2).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lit_offrl.collecting.base import Collection, progress_bar
from lit_offrl.collecting.goal_policies import load_goal_policy
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import file_sha256
from lit_offrl.common.policy import Policy
from lit_offrl.common.seeds import mix
from lit_offrl.envs.antmaze import CELL, GOAL_RADIUS, GOALS, AntMazeEnv, centres, draw_goal
from lit_offrl.envs.mazes import Maze
from lit_offrl.evaluation.envs import box, make_env
from lit_offrl.evaluation.loop import Episode, run_episodes, step_in_turn

RUN_ROWS = 1001  # D4RL counts steps from 0 and stops after number 1,000
LANES = 32  # runs at once
JITTER = 1.0  # metres
NORM = 10.0  # of the direction
PLAY_GOALS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "medium": ((2, 6), (5, 1), (6, 5)),
    "large": ((1, 6), (3, 5), (3, 10), (5, 2), (7, 4), (7, 6), (7, 9)),
}
"""Cells marked as goals in the mazes that D4RL collected in; lines and columns."""


@dataclass
class _Walker:
    """A goal-reaching policy that is shown the next waypoint, with normal noise on its actions."""

    policy: Policy  # from rows (E, 29), the ant and the direction to the waypoint, to torques
    maze: Maze
    random: np.random.Generator  # of the waypoints' shifts
    noise: np.random.Generator
    sigma: float  # of the noise, in half-ranges of the action

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Begin a round of runs, all of them together."""
        self.policy.reset()
        self._at: np.ndarray | None = None  # the free cell that each ant was in last (E, 2)

    def aim(self, goals: np.ndarray | None) -> None:
        """Take the goals (E, 2) of the runs."""
        assert goals is not None
        self._goals = goals

    def act(self, states: np.ndarray) -> np.ndarray:
        """Map states (E, 29) to torques (E, 8), float32, as they are stored and replayed."""
        cells = self._cells(states)
        if self._at is None:
            self._at = cells
        # an ant that is on a wall keeps the cell it came from
        self._at = np.where(self.maze.free[tuple(cells.T)][:, None], cells, self._at)
        directions = self._directions(states, self._at, self._cells(self._goals))
        inputs = np.concatenate([states[:, 2:], directions], axis=1).astype(np.float32)
        actions = np.asarray(self.policy.act(inputs), np.float64)
        actions = actions + self.sigma * self.noise.standard_normal(actions.shape)
        return np.clip(actions, -1, 1).astype(np.float32)

    def _cells(self, positions: np.ndarray) -> np.ndarray:
        """Return the cells (E, 2), line and column, of positions (E, 2 or more)."""
        cells = np.rint(positions[:, 1::-1] / CELL + 1).astype(np.int64)
        return np.clip(cells, 0, np.array(self.maze.free.shape) - 1)

    def _directions(self, states: np.ndarray, cells: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return the way to the next waypoint (E, 2), of norm 10; 0 exactly at a waypoint."""
        here, there = (self.maze.numbers[tuple(of.T)] for of in (cells, targets))
        next_cells = self.maze.cells[self.maze.next_cells[here, there]]
        shifted = centres(next_cells) + self.random.uniform(0, JITTER, (len(states), 2))
        ways = np.where((here == there)[:, None], self._goals, shifted) - states[:, :2]
        lengths = np.linalg.norm(ways, axis=1, keepdims=True)
        return NORM * ways / np.maximum(lengths, 1e-12)


class _Run(Episode):
    """A run of an ant from its start; all runs share one model, each has data of its own."""

    def __init__(self, number: int, collection: AntMazeCollection) -> None:
        self.number, self._collection = number, collection
        self.env: AntMazeEnv = collection.maze_env
        self.goal, self.observation = collection.draw(number)
        self._data = self.env.new_data()
        self._data.qpos[:], self._data.qvel[:] = np.split(self.observation, [self.env.model.nq])
        self.env.forward(self._data)
        self.length, self.done = 0, False

    def step(self, action: np.ndarray) -> None:
        """Hold the torques (8,) for 0.1 s and keep the row."""
        self.env.advance(self._data, action)
        after = np.concatenate([self._data.qpos, self._data.qvel])
        self._collection.keep(self, action, after)
        self.observation = after

    def close(self) -> None:
        """The environment is shared, and stays open."""


@dataclass(kw_only=True)
class AntMazeCollection(Collection):
    """Rows of a goal-reaching policy with normal noise on its actions, many ants in step.

    ``rewards[t]`` and ``terminals[t]`` are 1 where ``next_observations[t]`` is within 0.5 m of the
    evaluation's goal: the environment's own if it has a fixed one, else the middle of those that it
    draws. ``infos/goal`` (x, y) is where the run was heading.

    Args:
        policy: File of the policy that walks the ant, a checkpoint or an .npz.
        max_episode_steps: Rows of a run instead of 1,001.

    Raises:
        ConfigError: the environment is no AntMaze, or the policy does not fit.
        EvaluationError: there is no such environment, or MuJoCo is not installed.
    """

    policy: Path

    def __post_init__(self) -> None:
        super().__post_init__()
        env = make_env(self.env).unwrapped
        if not isinstance(env, AntMazeEnv):
            raise ConfigError(
                f"--policy: '{self.env}' is no AntMaze: choose one, such as"
                " lit_offrl/antmaze-medium-diverse-v2, or leave the policy out."
            )
        self.maze_env, self._maze = env, env.maze
        self.action_space = box(env.action_space)
        self._starts = next(
            (kind for kind in ("play", "diverse") if f"-{kind}-" in self.env), "fixed"
        )
        middle = centres(np.array(GOALS[self._maze.name])) + 0.75  # of U(0, 1) + U(0, 0.5)
        self.evaluation_goal = middle if env.fixed_goal is None else env.fixed_goal
        self._policy = load_goal_policy(self.policy, mix(self.seed, 6))
        # Now, since the file may be another one, or gone, when the rows are written.
        self._policy_sha256 = file_sha256(self.policy)
        self.run_rows = self.max_episode_steps or RUN_ROWS
        rows, runs = self.steps, -(-self.steps // self.run_rows)
        self._planned = np.full(runs, self.run_rows)  # rows of each run
        self._planned[-1] = rows - (runs - 1) * self.run_rows
        self._kept = np.zeros(runs, np.int64)  # whole rows of each run so far
        self._goals = np.zeros((runs, 2))
        width = env.model.nq + env.model.nv
        widths = {"observations": width, "actions": env.model.nu, "next_observations": width}
        self._columns = {name: np.empty((rows, d), np.float32) for name, d in widths.items()}

    @property
    def count(self) -> int:
        """Number of environment steps so far."""
        return int(self._kept.sum())

    def run(self) -> None:
        """Collect until there is enough, in rounds of runs; ants are simulated in threads."""
        self._random = np.random.default_rng(mix(self.seed, 3))
        noise = np.random.default_rng(mix(self.seed, 4))
        self.maze_env.reset(seed=mix(self.seed, 5) % 2**31)
        walker = _Walker(self._policy, self._maze, self._random, noise, self.noise)
        threads = min(LANES, os.cpu_count() or 1)
        with (
            progress_bar(self.steps, "collecting") as bar,
            ThreadPoolExecutor(threads) as pool,
        ):

            def step(runs: Sequence[_Run], actions: Sequence[np.ndarray]) -> None:
                shares = [slice(first, None, threads) for first in range(threads)]
                each = [(runs[share], actions[share]) for share in shares]
                list(pool.map(lambda share: step_in_turn(*share), each))
                bar.update(len(runs))

            for first in range(0, len(self._planned), LANES):
                numbers = range(first, min(first + LANES, len(self._planned)))
                runs = iter([_Run(number, self) for number in numbers])
                run_episodes(walker, partial(_next, runs), len(numbers), step=step)

    def keep(self, run: _Run, action: np.ndarray, after: np.ndarray) -> None:
        """Write a row of a run; its count goes up last, so interruptions leave whole rows."""
        row = run.number * self.run_rows + run.length
        self._columns["observations"][row] = run.observation
        self._columns["actions"][row] = action
        self._columns["next_observations"][row] = after
        run.length += 1
        self._kept[run.number] = run.length
        run.done = run.length == self._planned[run.number]

    def draw(self, run: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw a run's goal (2,) and first state (29,), float64 that float32 holds whole."""
        free, goal = self._maze.cells, np.array(GOALS[self._maze.name])
        start = np.zeros(2)
        if self._starts != "fixed":
            start = centres(free[self._random.integers(len(free))])
            aims = free
            if self._starts == "play":
                aims = np.array(PLAY_GOALS.get(self._maze.name, [goal]))
            goal = aims[self._random.integers(len(aims))]
        # float32 too, so that the file tells where the run was heading
        self._goals[run] = draw_goal(centres(goal), self._random).astype(np.float32)
        state, _ = self.maze_env.reset(options={"position": start, "goal": self._goals[run]})
        return self._goals[run], state.astype(np.float32).astype(np.float64)

    def recorded(self) -> tuple[dict[str, np.ndarray], bool]:
        """Return the rows so far, run after run, each of which ends with a timeout.

        The last ones are cut where the collection was interrupted.
        """
        run, step = np.divmod(np.arange(self.steps), self.run_rows)
        keep = step < self._kept[run]
        columns = {name: column[keep] for name, column in self._columns.items()}
        columns["timeouts"] = (step + 1 == self._kept[run])[keep]
        near = _within(columns["next_observations"], self.evaluation_goal)
        columns["rewards"], columns["terminals"] = near.astype(np.float32), near
        columns["infos/goal"] = self._goals[run[keep]].astype(np.float32)
        joints = self.maze_env.model.nq
        columns["infos/qpos"] = columns["observations"][:, :joints]
        columns["infos/qvel"] = columns["observations"][:, joints:]
        whole, begun = (self._kept == self.run_rows).sum(), (self._kept > 0).sum()
        return columns, bool(whole < begun)

    def summary(self, columns: dict[str, np.ndarray], cut: bool) -> dict[str, Any]:
        """Say how many whole runs there are, and what they reached."""
        near = _within(columns["next_observations"], columns["infos/goal"])
        ends = np.flatnonzero(columns["timeouts"])
        reached = np.add.reduceat(near, np.concatenate([[0], ends[:-1] + 1])) > 0
        return {
            "episodes": int((self._kept == self.run_rows).sum()),
            "goals_reached": int(reached.sum()),
            "reward_mean": columns["rewards"].mean(),
        }

    def facts(self, columns: dict[str, np.ndarray], cut: bool) -> dict[str, Any]:
        """Say who walked, and where to; None is left out of the file."""
        starts = self._starts
        return {
            "kind": "waypoint",
            "algorithm": f"waypoints for a goal-reaching policy, starts and goals: {starts}",
            "policy_file": self.policy.name,
            "policy_sha256": self._policy_sha256,
            "evaluation_goal": self.evaluation_goal,
            "run_rows": self.run_rows,
            "noise": self.noise,
        }


def _next(runs: Iterator[_Run], under_way: int) -> _Run | None:
    return next(runs, None)


def _within(states: np.ndarray, goals: np.ndarray) -> np.ndarray:
    return np.linalg.norm(states[:, :2] - goals, axis=1) <= GOAL_RADIUS
