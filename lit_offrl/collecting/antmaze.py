"""Collecting AntMaze with a policy that walks where it is told: D4RL's recipe for its data.

    run 0   start ──▶ goal A ................ |  1,001 rows each; ``|`` is a timeout. Runs go on at
    run 1   start ──▶ goal B ................ |  the goal, and rows paid there are terminals, which
    run 2   start ──▶ goal C ................ |  readers turn into episodes (see ``datasets.d4rl``)

    umaze      from the evaluation's start to its goal
    play       from any free cell to one of the goal cells marked in D4RL's maze for collecting
    diverse    from any free cell to any other or the same

At every step the next cell on a shortest way, its centre shifted by U(0, 1) m drawn anew, is the
waypoint, and in the goal's cell the goal itself. The policy sees the ant without x and y (27) and
the direction to the waypoint, rescaled to norm 10 (2).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lit_offrl.collecting.base import origin, progress_bar
from lit_offrl.collecting.goal_policies import load_goal_policy
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import file_sha256
from lit_offrl.common.randomness import mix
from lit_offrl.datasets.hdf5 import write_hdf5
from lit_offrl.envs.antmaze import CELL, GOAL_RADIUS, GOALS, AntMazeEnv, centres, draw_goal
from lit_offrl.evaluation.envs import box, make_env

RUN_ROWS = 1001  # D4RL counts steps from 0 and stops after number 1,000
LANES = 32  # runs at once
JITTER = 1.0  # metres
NORM = 10.0  # of the direction
PLAY_GOALS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "medium": ((2, 6), (5, 1), (6, 5)),
    "large": ((1, 6), (3, 5), (3, 10), (5, 2), (7, 4), (7, 6), (7, 9)),
}
"""Cells marked as goals in the mazes that D4RL collected in; lines and columns."""


class AntMazeCollection:
    """Rows of a goal-reaching policy with normal noise on its actions, many ants in step.

    ``rewards[t]`` and ``terminals[t]`` are 1 where ``next_observations[t]`` is within 0.5 m of the
    evaluation's goal: the environment's own if it has a fixed one, else the middle of those that it
    draws. ``infos/goal`` (x, y) is where the run was heading.

    Args:
        options: ``env``, ``policy`` (its file), ``steps``, ``noise``, ``goals`` (None), ``seed``,
            ``max_episode_steps`` (rows of a run instead of 1,001), ``output`` and
            ``next_observations``.

    Raises:
        ConfigError: the environment is no AntMaze, ``goals`` are given, or the policy does not fit.
        EvaluationError: there is no such environment, or MuJoCo is not installed.
    """

    target_reached: bool | None = None

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        env = make_env(options.env).unwrapped
        if not isinstance(env, AntMazeEnv):
            raise ConfigError(
                f"--policy: '{options.env}' is no AntMaze: choose one, such as"
                " lit_offrl/antmaze-medium-diverse-v2, or leave the policy out."
            )
        if options.goals is not None:
            raise ConfigError("--goals are of maze2d; AntMaze's follow from --env: leave them out.")
        self._env, self._maze = env, env.maze
        self.kind = next(
            (kind for kind in ("play", "diverse") if f"-{kind}-" in options.env), "fixed"
        )
        middle = centres(np.array(GOALS[self._maze.name])) + 0.75  # of U(0, 1) + U(0, 0.5)
        self.evaluation_goal = middle if env.fixed_goal is None else env.fixed_goal
        self._policy = load_goal_policy(options.policy, mix(options.seed, 6))
        # Now, since the file may be another one, or gone, when the rows are written.
        self._policy_sha256 = file_sha256(options.policy)
        self.run_rows = options.max_episode_steps or RUN_ROWS
        rows, runs = options.steps, -(-options.steps // self.run_rows)
        self._planned = np.full(runs, self.run_rows)  # rows of each run
        self._planned[-1] = rows - (runs - 1) * self.run_rows
        self._kept = np.zeros(runs, np.int64)  # whole rows of each run so far
        self._goals = np.zeros((runs, 2))
        width = env.model.nq + env.model.nv
        widths = {"observations": width, "actions": env.model.nu, "next_observations": width}
        self._columns = {name: np.empty((rows, d), np.float32) for name, d in widths.items()}

    @property
    def count(self) -> int:
        """Rows so far."""
        return int(self._kept.sum())

    def run(self) -> None:
        """Collect until there is enough; the ants of a round are simulated in threads."""
        seed = self.options.seed
        self._random = np.random.default_rng(mix(seed, 3))
        noise = np.random.default_rng(mix(seed, 4))
        self._env.reset(seed=mix(seed, 5) % 2**31)
        threads = min(LANES, os.cpu_count() or 1)
        with (
            progress_bar(self.options.steps, "collecting") as bar,
            ThreadPoolExecutor(threads) as pool,
        ):
            for first in range(0, len(self._planned), LANES):
                runs = np.arange(first, min(first + LANES, len(self._planned)))
                states = np.array([self._start(run) for run in runs.tolist()])
                ants = [[_Ant(self._env, one) for one in some] for some in _shares(states, threads)]
                self._policy.reset()
                cells, targets = self._cells(states), self._cells(self._goals[runs])
                for step in range(self._planned[runs].max()):
                    cells = np.where(self._free(states)[:, None], self._cells(states), cells)
                    directions = self._directions(states, cells, targets, self._goals[runs])
                    seen = np.concatenate([states[:, 2:], directions], axis=1).astype(np.float32)
                    actions = np.asarray(self._policy.act(seen), np.float64)
                    if not np.isfinite(actions).all():
                        # no LitOffRLError, which means that nothing ran: the rows are kept
                        raise FloatingPointError("the policy gave an action that is not finite")
                    actions += self.options.noise * noise.standard_normal(actions.shape)
                    actions = np.clip(actions, -1, 1).astype(np.float32)  # replayed as stored
                    parts = pool.map(_steps, ants, _shares(actions, threads))
                    following = np.concatenate(list(parts))
                    going = step < self._planned[runs]
                    rows = (runs * self.run_rows + step)[going]
                    self._columns["observations"][rows] = states[going]
                    self._columns["actions"][rows] = actions[going]
                    self._columns["next_observations"][rows] = following[going]
                    self._kept[runs[going]] = step + 1  # last: an interruption leaves whole rows
                    states = following
                    bar.update(len(rows))

    def _start(self, run: int) -> np.ndarray:
        """Draw a run's start and goal; return the state (29,), which float32 holds whole."""
        free, goal = self._maze.cells, np.array(GOALS[self._maze.name])
        start = np.zeros(2)
        if self.kind != "fixed":
            start = centres(free[self._random.integers(len(free))])
            aims = free
            if self.kind == "play":
                aims = np.array(PLAY_GOALS.get(self._maze.name, [goal]))
            goal = aims[self._random.integers(len(aims))]
        # float32 too, so that the file tells where the run was heading
        self._goals[run] = draw_goal(centres(goal), self._random).astype(np.float32)
        state, _ = self._env.reset(options={"position": start, "goal": self._goals[run]})
        return state.astype(np.float32).astype(np.float64)

    def _cells(self, positions: np.ndarray) -> np.ndarray:
        """Return the cells (E, 2), line and column, of positions (E, 2 or more)."""
        cells = np.rint(positions[:, 1::-1] / CELL + 1).astype(np.int64)
        return np.clip(cells, 0, np.array(self._maze.free.shape) - 1)

    def _free(self, positions: np.ndarray) -> np.ndarray:
        """Say who is in a free cell (E,): one that is on a wall keeps the cell it came from."""
        return self._maze.free[tuple(self._cells(positions).T)]

    def _directions(
        self, states: np.ndarray, cells: np.ndarray, targets: np.ndarray, goals: np.ndarray
    ) -> np.ndarray:
        """Return the way to the next waypoint (E, 2), of norm 10; 0 exactly at a waypoint."""
        here, there = (self._maze.numbers[tuple(of.T)] for of in (cells, targets))
        next_cells = self._maze.cells[self._maze.next_cells[here, there]]
        shifted = centres(next_cells) + self._random.uniform(0, JITTER, (len(states), 2))
        ways = np.where((here == there)[:, None], goals, shifted) - states[:, :2]
        lengths = np.linalg.norm(ways, axis=1, keepdims=True)
        return NORM * ways / np.maximum(lengths, 1e-12)

    def save(self, command: str, *, complete: bool) -> int:
        """Write what there is, if anything, and return the number of rows."""
        if self.count == 0:
            return 0
        columns = self.recorded()
        near = _within(columns["next_observations"], columns["infos/goal"])
        ends = np.flatnonzero(columns["timeouts"])
        reached = np.add.reduceat(near, np.concatenate([[0], ends[:-1] + 1])) > 0
        if not self.options.next_observations:
            del columns["next_observations"]
        whole = int((self._kept == self.run_rows).sum())
        ending = {
            "complete": complete,
            "last_episode_cut": whole < len(ends),  # the last ones, where lanes were interrupted
            "environment_steps": self.count,
            "rows": self.count,
            "episodes": whole,
            "goals_reached": int(reached.sum()),
            "reward_mean": columns["rewards"].mean(),
        }
        write_hdf5(self.options.output, columns, {**ending, **self._origin(command)})
        return self.count

    def recorded(self) -> dict[str, np.ndarray]:
        """Return the rows so far, run after run, each of which ends with a timeout."""
        run, step = np.divmod(np.arange(self.options.steps), self.run_rows)
        keep = step < self._kept[run]
        columns = {name: column[keep] for name, column in self._columns.items()}
        columns["timeouts"] = (step + 1 == self._kept[run])[keep]
        near = _within(columns["next_observations"], self.evaluation_goal)
        columns["rewards"], columns["terminals"] = near.astype(np.float32), near
        columns["infos/goal"] = self._goals[run[keep]].astype(np.float32)
        joints = self._env.model.nq
        columns["infos/qpos"] = columns["observations"][:, :joints]
        columns["infos/qvel"] = columns["observations"][:, joints:]
        return columns

    def _origin(self, command: str) -> dict[str, Any]:
        """Say how the rows came to be; None is left out of the file."""
        return {
            **origin(self.options, box(self._env.action_space), command),
            "kind": "waypoint",
            "algorithm": f"waypoints for a goal-reaching policy, starts and goals: {self.kind}",
            "policy_file": self.options.policy.name,
            "policy_sha256": self._policy_sha256,
            "evaluation_goal": self.evaluation_goal,
            "run_rows": self.run_rows,
            "noise": self.options.noise,
        }


class _Ant:
    """One of many ants on one model."""

    def __init__(self, env: AntMazeEnv, state: np.ndarray) -> None:
        self._env, self._data = env, env.new_data()
        self._data.qpos[:], self._data.qvel[:] = np.split(state, [env.model.nq])
        env.forward(self._data)

    def step(self, action: np.ndarray) -> np.ndarray:
        """Hold the torques (8,) for 0.1 s; return the state (29,)."""
        self._env.advance(self._data, action)
        return np.concatenate([self._data.qpos, self._data.qvel])


def _shares(rows: np.ndarray, threads: int) -> list[np.ndarray]:
    """Split rows (E, ...) in order into one part a thread, of which none is empty."""
    return np.array_split(rows, min(threads, len(rows)))


def _steps(ants: list[_Ant], actions: np.ndarray) -> list[np.ndarray]:
    return [ant.step(action) for ant, action in zip(ants, actions, strict=True)]


def _within(states: np.ndarray, goals: np.ndarray) -> np.ndarray:
    return np.linalg.norm(states[:, :2] - goals, axis=1) <= GOAL_RADIUS
