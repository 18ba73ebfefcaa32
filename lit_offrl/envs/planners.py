"""Waypoint planners for mazes: a shortest way over cells, followed by a PD controller.

The recipe of D4RL's maze2d data (Fu et al., 2020). Its planner finds the way by Q-iteration and
asks that the point moved less than 0.1 in the last step before it takes the next waypoint; breadth-
first search finds a way as short, and at 5 units/s no step is that long, so both are left out.
"""

from __future__ import annotations

import numpy as np

from lit_offrl.envs.mazes import Maze
from lit_offrl.envs.point_mass import cell_of

GAIN = 10.0  # on the position error; the velocity's is −1
THRESHOLD = 0.1  # from a waypoint, at which the next one is taken
JITTER = 0.2  # waypoints are shifted by −U(0, 0.2) on each axis; the goal is not
_NEAR = THRESHOLD * THRESHOLD


def plan(
    maze: Maze, position: np.ndarray, goal: tuple[int, int], random: np.random.Generator
) -> np.ndarray:
    """Return waypoints from a position (2,) to a goal cell, the goal last: (L, 2), float64.

    Raises:
        ConfigError: the goal is no free cell, or the position is in a wall.
    """
    way = maze.path(cell_of(position), goal).astype(np.float64)
    way[:-1] -= JITTER * random.random((len(way) - 1, 2))
    return way


class Waypoints:
    """One point on a way (L, 2), in floats: twenty times as fast as arrays of one row."""

    def __init__(self, way: np.ndarray) -> None:
        self._way: list[list[float]] = way.tolist()
        self._at = 0
        self._last = len(self._way) - 1

    def act(self, x: float, y: float, vx: float, vy: float) -> tuple[float, float, bool]:
        """Return the action, in [−1, 1]², and whether the goal is within 0.1 now."""
        goal_x, goal_y = self._way[self._last]
        arrived = (goal_x - x) ** 2 + (goal_y - y) ** 2 < _NEAR
        to_x, to_y = self._way[self._last if arrived else self._at]
        to_x, to_y = to_x - x, to_y - y
        if not arrived and self._at < self._last and to_x**2 + to_y**2 < _NEAR:
            self._at += 1
        ax, ay = GAIN * to_x - vx, GAIN * to_y - vy
        return min(max(ax, -1.0), 1.0), min(max(ay, -1.0), 1.0), arrived


class WaypointPlanner:
    """The planner as a policy for E environments at once.

    A row that begins in no free cell has no way, and drives straight at the goal: roll-outs fill
    the rows of idle environments with zeros.

    Args:
        maze: The maze.
        goal: Goal cell; the maze's own if None.
        seed: Seed of the waypoints' jitter.
        replan: False plans for each of the E rows once, and drives from every later start straight
            at the goal, walls or not: what the script behind D4RL's reference scores did.
    """

    def __init__(
        self, maze: Maze, goal: tuple[int, int] | None = None, *, seed: int = 0, replan: bool = True
    ) -> None:
        self.maze = maze
        self.goal = maze.goal if goal is None else goal
        self.replan = replan
        self._random = np.random.default_rng(seed)
        self._goal = np.array(self.goal, np.float64)
        longest = int(maze.distances[:, maze.index(self.goal)].max())
        self._way = np.zeros((0, max(longest, 1), 2))  # (E, L, 2), padded with the goal
        self._at = np.zeros(0, np.int64)  # (E,)
        self._begun = np.zeros(0, bool)  # (E,): the way still fits

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Begin new episodes where ``mask`` (E,) is True, everywhere when it is None."""
        if self.replan and len(self._begun):  # before the first action there is nothing to forget
            self._begun[slice(None) if mask is None else mask] = False

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Map (x, y, vx, vy) (E, 4) to actions (E, 2), float32, in [−1, 1]."""
        positions = np.asarray(observations[:, :2], np.float64)
        self._plan(positions)
        rows = np.arange(len(positions))
        arrived = _squares(self._goal - positions) < _NEAR
        target = np.where(arrived[:, None], self._goal, self._way[rows, self._at])
        error = target - positions
        self._at += ~arrived & (_squares(error) < _NEAR)
        np.minimum(self._at, self._way.shape[1] - 1, out=self._at)
        return np.clip(GAIN * error - observations[:, 2:], -1, 1).astype(np.float32)

    def _plan(self, positions: np.ndarray) -> None:
        if len(self._begun) != len(positions):
            self._begun = np.zeros(len(positions), bool)
            self._at = np.zeros(len(positions), np.int64)
            self._way = np.tile(self._goal, (len(positions), self._way.shape[1], 1))
        for row in np.flatnonzero(~self._begun).tolist():
            self._way[row] = self._goal
            if self.maze.has(cell_of(positions[row])):
                way = plan(self.maze, positions[row], self.goal, self._random)
                self._way[row, : len(way)] = way
            self._at[row] = 0
            self._begun[row] = True


def _squares(vectors: np.ndarray) -> np.ndarray:
    return vectors[:, 0] ** 2 + vectors[:, 1] ** 2
