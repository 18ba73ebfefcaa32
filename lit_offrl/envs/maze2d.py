"""D4RL's maze2d on current MuJoCo: a point mass that is to reach a goal, and to stay there.

Fu et al., "D4RL: Datasets for Deep Data-Driven Reinforcement Learning" (2020), section 5. The
coordinates, rewards, goals and step limits are D4RL's; gymnasium-robotics' PointMaze has others.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.envs.drawing import Canvas
from lit_offrl.envs.mazes import MAZE2D, Maze
from lit_offrl.envs.point_mass import CELL_OFFSET, RADIUS, TIME_STEP, PointMass, cell_of

GOAL_RADIUS = 0.5
_WALL, _RING, _GOAL, _POINT = (92, 76, 64), (214, 228, 208), (196, 72, 66), (44, 92, 178)


class Maze2dEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Point mass in a maze of unit cells.

    Observation: (x, y, vx, vy), float64; the middle of cell (i, j) is at (i − 0.2, j − 0.2), and
    the goal of cell (i, j), as in D4RL, at (i, j). Action: forces in [−1, 1]², clipped. Reward,
    after the step: 1 within 0.5 of the goal, else 0; or exp(−distance) if ``dense``. An episode
    never terminates; registered ids are truncated at the maze's step limit. It starts in a random
    free cell (i, j), at (i, j) + U(−0.1, 0.1)², with a velocity of 0.1 · N(0, 1).

    ``reset(options=...)`` takes, for the one episode, ``goal`` (x, y) and ``location`` (x, y), from
    where the point starts at rest. ``info`` has ``goal`` (2,) and ``success``: whether the point is
    within 0.5 of it now.

    Args:
        maze: Name of a maze of D4RL, or a maze.
        dense: Give the reward exp(−distance).
        render_mode: None or ``"rgb_array"``, which needs no OpenGL.

    Raises:
        ConfigError: no maze has that name.
        EvaluationError: MuJoCo is not installed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / TIME_STEP)}  # noqa: RUF012

    def __init__(
        self, maze: str | Maze = "umaze", *, dense: bool = False, render_mode: str | None = None
    ) -> None:
        if isinstance(maze, str):
            if maze not in MAZE2D:
                raise ConfigError(
                    f"maze '{maze}': use one of {', '.join(MAZE2D)}.{nearest(maze, MAZE2D)}"
                )
            maze = MAZE2D[maze]
        self.maze = maze
        self.dense = dense
        self.render_mode = render_mode
        self.width, self.height = 320, 240  # of pictures, in pixels
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.goal = np.array(maze.goal, np.float64)
        self._point = PointMass(maze)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode.

        Raises:
            ConfigError: an option that is unknown, or that lies in a wall.
        """
        super().reset(seed=seed)
        options = options or {}
        for name in options.keys() - {"goal", "location"}:
            hint = nearest(name, ("goal", "location"))
            raise ConfigError(f"maze2d has no reset option '{name}': use goal or location.{hint}")
        self.goal = self._place("goal", options.get("goal", self.maze.goal))
        position, velocity = random_start(self.maze, self.np_random)
        if "location" in options:
            position, velocity = self._place("location", options["location"]), np.zeros(2)
        self.set_state(position, velocity)
        return self._observe()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one time step of 0.01 s.

        Raises:
            ConfigError: the action is not finite or not of shape (2,).
        """
        action = np.asarray(action, np.float64)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ConfigError(f"maze2d: the action is {action}: give two finite numbers.")
        self._point.step(action)
        observation, info = self._observe()
        distance = float(np.linalg.norm(observation[:2] - self.goal))
        reward = np.exp(-distance) if self.dense else info["success"]
        return observation, float(reward), False, False, info

    def set_state(self, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Put the point at ``qpos`` (2,) with the velocity ``qvel`` (2,), in the same episode."""
        self._point.qpos[:] = qpos
        self._point.qvel[:] = qvel

    def render(self) -> np.ndarray | None:
        """Return a picture (height, width, 3), uint8, from above, x down and y to the right.

        None without a render mode.
        """
        if self.render_mode is None:
            return None
        lines, columns = self.maze.free.shape
        edge = CELL_OFFSET - 0.5
        # the canvas has its second axis upwards: a place is drawn at (y, −x)
        canvas = Canvas((self.width, self.height), (edge, -edge - lines), (columns, lines))
        for x, y in np.argwhere(~self.maze.free) + edge:
            canvas.rectangle(np.array([y, -x - 1]), np.array([y + 1, -x]), _WALL)
        turned = np.array([[0, 1], [-1, 0]])
        canvas.disc(turned @ self.goal, GOAL_RADIUS, _RING)
        canvas.disc(turned @ self.goal, 1.5 * RADIUS, _GOAL)
        canvas.disc(turned @ self._point.qpos, 1.5 * RADIUS, _POINT)  # its own size is a pixel
        return canvas.pixels

    def _observe(self) -> tuple[np.ndarray, dict[str, Any]]:
        observation = np.concatenate([self._point.qpos, self._point.qvel])
        return observation, {
            "goal": self.goal.copy(),
            "success": bool(reached(observation[:2], self.goal)),
        }

    def _place(self, name: str, value: Any) -> np.ndarray:
        place = np.asarray(value, np.float64)
        if place.shape != (2,) or not np.isfinite(place).all():
            raise ConfigError(f"maze2d: reset option '{name}' is {value}: give (x, y).")
        try:
            self.maze.index(cell_of(place))
        except ConfigError as error:
            raise ConfigError(f"reset option '{name}' {tuple(place.tolist())}: {error}") from None
        return place


def random_start(
    maze: Maze, random: np.random.Generator, cell: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a position (2,) in a cell, or any free one, and a velocity (2,), as D4RL's resets do."""
    if cell is None:
        cell = maze.cells[random.integers(len(maze.cells))]
    return np.array(cell) + random.uniform(-0.1, 0.1, 2), 0.1 * random.standard_normal(2)


def reached(positions: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Whether positions (..., 2) lie within 0.5 of the goal (2,), (...,)."""
    return np.linalg.norm(positions - goal, axis=-1) <= GOAL_RADIUS
