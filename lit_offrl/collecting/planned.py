"""Collecting mazes with waypoint planners: D4RL's maze2d data again, and several planners' data.

    one run        start ──▶ goal A | ──▶ goal B | ──▶ goal C | ...      ``|`` is a timeout
    fixed goals    start ─▶ goal 0 ... | start ─▶ goal 1 ... | start ─▶ goal 0 ... |

The one run never resets: reaching a goal, or running out of time on the way to it, only brings the
next goal, a random free cell (the one that it is in, too). With fixed goals every episode starts
anywhere, or in one given cell, and lasts for the whole step limit, at the goal too; planners take
turns, so an interrupted collection is balanced.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np

from lit_offrl.collecting.base import Collection, progress_bar
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.seeds import mix
from lit_offrl.envs.maze2d import Maze2dEnv, random_start, reached
from lit_offrl.envs.planners import Waypoints, plan
from lit_offrl.envs.point_mass import PointMass
from lit_offrl.evaluation.envs import box, make_env, require_step_limit, step_limit


def read_cells(text: str) -> list[tuple[int, int]]:
    """Read cells from ``(1,1),(7,9)``."""
    text = "".join(text.split())
    if not re.fullmatch(r"\(\d+,\d+\)(,\(\d+,\d+\))*", text):
        raise ValueError
    return [(int(i), int(j)) for i, j in re.findall(r"(\d+),(\d+)", text)]


def read_cell(text: str) -> tuple[int, int]:
    """Read a cell from ``(3,1)``."""
    (cell,) = read_cells(text)
    return cell


read_cells.__name__ = "list of cells, as '(1,1),(7,9)',"  # argparse names the type in its message
read_cell.__name__ = "cell, as '(3,1)',"

_BLOCK = 1024  # steps between two updates of the bar


@dataclass(kw_only=True)
class PlannedCollection(Collection):
    """Rows of waypoint planners with normal noise on their actions, in one maze.

    Its rewards are D4RL's: ``rewards[t]`` is 1 where ``observations[t]``, the state before the
    action, is within 0.5 of the goal that the maze is scored at. The environment gives it a step
    later. ``infos/goal`` is where the planner of the row was going. Each observation is the
    state that the action met; D4RL's has the row after each timeout repeat the row's own.

    Args:
        max_episode_steps: Step limit of an episode, or of the way to one goal.
        goals: Cells that episodes head for in turn, such as '(1,1),(7,9)'; without them there is
            one run to one random cell after another.
        start: Cell that episodes with goals start in, such as '(3,1)'; without it, each starts in a
            random one.

    Raises:
        ConfigError: the environment is no maze2d, its cells are not all connected, or a goal or the
            start is no free cell.
        EvaluationError: there is no such environment, or MuJoCo is not installed.
    """

    goals: Annotated[list[tuple[int, int]] | None, read_cells] = None
    start: Annotated[tuple[int, int] | None, read_cell] = None
    count: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start is not None and self.goals is None:
            raise ConfigError("--start is for episodes with fixed goals: give --goals too.")
        env = make_env(self.env, max_episode_steps=self.max_episode_steps)
        if not isinstance(env.unwrapped, Maze2dEnv):
            raise ConfigError(
                f"--planner waypoint: '{self.env}' is no maze2d environment: choose one, such as"
                " lit_offrl/maze2d-umaze-v1, or give --kind, or for AntMaze --policy."
            )
        self._env, self._maze = env.unwrapped, env.unwrapped.maze
        if (self._maze.distances < 0).any():  # found now, not after an hour of rows
            raise ConfigError(
                f"maze '{self._maze.name}': has cells without a way between them: join them."
            )
        self._limit, self.action_space = step_limit(env), box(env.action_space)
        for cell in (*(self.goals or ()), *([self.start] if self.start else ())):
            self._maze.index(cell)
        if self.goals is not None:
            require_step_limit(env, self.env)
        rows = self.steps
        self._columns = {
            "observations": np.empty((rows, 4), np.float32),
            "actions": np.empty((rows, 2), np.float32),
            "timeouts": np.zeros(rows, bool),
            "next_observations": np.empty((rows, 4), np.float32),
        }
        self._point = PointMass(self._maze)
        self._random = np.random.default_rng(mix(self.seed, 3))
        self._segments: list[tuple[int, float, float, int]] = []  # first row, goal x, y, planner
        self.goals_reached = 0

    def run(self) -> None:
        """Collect until there is enough: one thread, and no environment around the simulation."""
        noise = np.random.default_rng(mix(self.seed, 4))
        with progress_bar(self.steps, "collecting") as bar:
            self._start()
            way, steps = self._next_way(), 0
            while self.count < self.steps:
                block = min(_BLOCK, self.steps - self.count)
                shifts = self.noise * noise.standard_normal((_BLOCK, 2))[:block]
                way, steps = self._steps(shifts.tolist(), way, steps)
                bar.set_postfix_str(f"goals reached {self.goals_reached:,}", refresh=False)
                bar.update(block)

    def _steps(
        self, shifts: list[list[float]], way: Waypoints, steps: int
    ) -> tuple[Waypoints, int]:
        """Take a step for each shift of the action; return the way under way and its steps.

        The count goes up last, so an interruption at any moment leaves whole rows only.
        """
        observations, actions = self._columns["observations"], self._columns["actions"]
        following, timeouts = self._columns["next_observations"], self._columns["timeouts"]
        point, limit, fixed = self._point, self._limit, self.goals is not None
        x, y, vx, vy = point.state()
        for row, (shift_x, shift_y) in enumerate(shifts, self.count):
            ax, ay, arrived = way.act(x, y, vx, vy)
            ax, ay = ax + shift_x, ay + shift_y
            observations[row] = x, y, vx, vy
            actions[row] = min(max(ax, -1.0), 1.0), min(max(ay, -1.0), 1.0)
            point.step(actions[row])  # float32 as it is stored, so that rows replay exactly
            x, y, vx, vy = point.state()
            following[row] = x, y, vx, vy
            steps += 1
            over = steps == limit or (arrived and not fixed)
            timeouts[row] = over
            self.count = row + 1
            if over:
                self.goals_reached += arrived
                if fixed:
                    self._start()
                    x, y, vx, vy = point.state()
                way, steps = self._next_way(), 0
        return way, steps

    def _start(self) -> None:
        position, velocity = random_start(self._maze, self._random, self.start)
        # as float32 it is stored whole, and all that follows can be replayed from the file
        self._point.qpos[:] = position.astype(np.float32)
        self._point.qvel[:] = velocity.astype(np.float32)

    def _next_way(self) -> Waypoints:
        fixed, planner = self.goals, 0
        if fixed is None:
            cell = self._maze.cells[self._random.integers(len(self._maze.cells))]
            goal = cell + self._random.uniform(-0.1, 0.1, 2)
        else:
            planner = len(self._segments) % len(fixed)
            cell = goal = np.array(fixed[planner])
        self._segments.append((self.count, *goal.tolist(), planner))
        return Waypoints(plan(self._maze, self._point.qpos, tuple(cell.tolist()), self._random))

    def recorded(self) -> tuple[dict[str, np.ndarray], bool]:
        """Return the rows so far, the last of which ends an episode, and whether it was cut."""
        columns = {name: column[: self.count].copy() for name, column in self._columns.items()}
        cut = not columns["timeouts"][-1]
        columns["timeouts"][-1] = True
        observations = columns["observations"]
        if self._env.dense:
            away = np.linalg.norm(observations[:, :2] - self._env.goal, axis=1)
            columns["rewards"] = np.exp(-away).astype(np.float32)
        else:
            columns["rewards"] = reached(observations[:, :2], self._env.goal).astype(np.float32)
        columns["terminals"] = np.zeros(self.count, bool)
        segments = np.array(self._segments)
        own = segments[np.searchsorted(segments[:, 0], np.arange(self.count), side="right") - 1]
        columns["infos/goal"] = own[:, 1:3].astype(np.float32)
        columns["infos/qpos"], columns["infos/qvel"] = observations[:, :2], observations[:, 2:]
        if self.goals is not None:
            columns["policy"] = own[:, 3].astype(np.float32)
        return columns, bool(cut)

    def summary(self, columns: dict[str, np.ndarray], cut: bool) -> dict[str, Any]:
        """Say how many whole episodes there are, and what they reached."""
        return {
            "episodes": int(columns["timeouts"].sum()) - cut,
            "goals_reached": self.goals_reached,
            "reward_mean": columns["rewards"].mean(),
        }

    def facts(self, columns: dict[str, np.ndarray], cut: bool) -> dict[str, Any]:
        """Say who acted, and where to; None is left out of the file."""
        fixed = None if self.goals is None else ",".join(f"({i},{j})" for i, j in self.goals)
        return {
            "kind": "waypoint",
            "algorithm": f"waypoint planner to {'random' if fixed is None else 'fixed'} cells",
            "goals": fixed,
            "start": None if self.start is None else "({},{})".format(*self.start),
            "noise": self.noise,
        }
