"""AntMaze: D4RL's ant in a maze of 4 m cells, rewarded once within 0.5 m of the goal.

    line 1   R . # # . .       x = 4 m · (column − 1), y = 4 m · (line − 1): the start R is (0, 0)
    line 2   . . # . . .       the goal is drawn at each reset, up and right of the centre of
    ...         ...    G       the cell G: by U(0, 1) + U(0, 0.5) m in x and in y, as in D4RL's -v2

Fu et al., D4RL (2020), section 5; layouts, start and goal as in its ``locomotion/maze_env.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.envs.ant_model import maze_xml
from lit_offrl.envs.drawing import Canvas
from lit_offrl.envs.extras import require
from lit_offrl.envs.mazes import MAZE2D

CELL = 4.0  # metres
GOAL_RADIUS = 0.5
_WALL_HEIGHT = 2.0
_FRAME_SKIP = 5  # of 0.02 s
_START_NOISE = 0.1

GOALS: Mapping[str, tuple[int, int]] = {"umaze": (3, 1), "medium": (6, 6), "large": (7, 9)}
"""Line and column of the goal's cell in the maze of that name; the walls are maze2d's."""
TASKS: Mapping[str, int] = {  # task → step limit; play and diverse differ in their data only
    "umaze": 700,
    "umaze-diverse": 700,
    "medium-play": 1000,
    "medium-diverse": 1000,
    "large-play": 1000,
    "large-diverse": 1000,
}


class AntMazeEnv(gymnasium.Env):
    """The ant in one of the mazes of ``GOALS``.

    Observations (29,): qpos (15: x, y, z, quaternion, joints) and qvel (14). Actions (8,) in ±1 are
    torques of ±30 N·m, held for 0.1 s. ``info`` has ``goal`` (2,) and ``success``.

    ``reset(options={"position": (x, y), "goal": (x, y)})`` starts elsewhere, or fixes the goal.

    Args:
        maze: Name of the maze, a key of ``GOALS``.
        goal: (x, y) of all episodes instead of a draw for each.
        ends_at_goal: Terminate at the goal, as D4RL's evaluation does; False to collect data.
        render_mode: ``"rgb_array"`` for pictures from above, made without GL.

    Raises:
        ConfigError: no such maze or render mode, or a goal that is no point of the plane.
        EvaluationError: mujoco is not installed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  gymnasium's name

    def __init__(
        self,
        maze: str = "umaze",
        *,
        goal: tuple[float, float] | None = None,
        ends_at_goal: bool = True,
        render_mode: str | None = None,
    ) -> None:
        if maze not in GOALS:
            raise ConfigError(f"AntMaze has no maze '{maze}'.{nearest(maze, GOALS)}")
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(f"AntMaze has no render mode '{render_mode}': use rgb_array.")
        self._mujoco: Any = require("mujoco", "AntMaze")
        self.maze = MAZE2D[maze]
        self._walls = centres(np.argwhere(~self.maze.free))
        self._goal_cell = centres(np.array(GOALS[maze]))
        self.fixed_goal = None if goal is None else _point(goal, "goal")
        self.ends_at_goal = ends_at_goal
        self.render_mode = render_mode
        self.width, self.height = 480, 480
        xml = maze_xml(self._walls, CELL, _WALL_HEIGHT)
        self.model = self._mujoco.MjModel.from_xml_string(xml)
        self.data = self._mujoco.MjData(self.model)
        self._torque = self.model.actuator_ctrlrange[:, 1]
        self.goal = np.zeros(2)
        size = self.model.nq + self.model.nv
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self.model.nu,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Put the ant at the start, every coordinate disturbed a little, and draw a goal."""
        super().reset(seed=seed)
        options = dict(options or {})
        position = options.pop("position", (0.0, 0.0))
        goal = options.pop("goal", self.fixed_goal)
        if options:
            raise ConfigError(f"AntMaze: reset has no option {sorted(options)}: position, goal.")
        noise = self.np_random.uniform(-_START_NOISE, _START_NOISE, self.model.nq)
        velocity = self.np_random.normal(0, _START_NOISE, self.model.nv)
        drawn = draw_goal(self._goal_cell, self.np_random)
        self.goal = drawn if goal is None else _point(goal, "goal")
        qpos = self.model.qpos0 + noise
        qpos[:2] += _point(position, "position")
        self.set_state(qpos, velocity)
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold the torques for 0.1 s; reward 1 where that ends within 0.5 m of the goal."""
        self.advance(self.data, action)
        info = self._info()
        reached = info["success"]
        return self._observation(), float(reached), reached and self.ends_at_goal, False, info

    def new_data(self) -> Any:
        """Return the simulator's memory for one more ant in this maze."""
        return self._mujoco.MjData(self.model)

    def advance(self, data: Any, action: np.ndarray) -> None:
        """Hold the torques for 0.1 s in ``data``; different ones can be advanced in threads."""
        data.ctrl[:] = np.clip(action, -1.0, 1.0) * self._torque
        self._mujoco.mj_step(self.model, data, nstep=_FRAME_SKIP)

    def forward(self, data: Any) -> None:
        """Compute what follows from the positions and velocities in ``data``."""
        self._mujoco.mj_forward(self.model, data)

    def set_state(self, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Continue from the positions (15,) and velocities (14,)."""
        self._mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        self.forward(self.data)

    def render(self) -> np.ndarray:
        """Return a picture (height, width, 3), uint8, from above."""
        lines, columns = self.maze.free.shape
        extent = (CELL * columns, CELL * lines)
        canvas = Canvas((self.width, self.height), (-1.5 * CELL, -1.5 * CELL), extent)
        for wall in self._walls:
            canvas.rectangle(wall - CELL / 2, wall + CELL / 2, (96, 108, 122))
        canvas.disc(self.goal, GOAL_RADIUS, (58, 166, 85))
        names = {self.model.geom(index).name for index in range(self.model.ngeom)}
        for name in sorted(names - {"", "floor", "torso"}):
            geom = self.data.geom(name)
            radius, half = self.model.geom(name).size[:2]
            along = geom.xmat.reshape(3, 3)[:2, 2] * half
            canvas.line(geom.xpos[:2] - along, geom.xpos[:2] + along, radius, (200, 113, 55))
        canvas.disc(self.data.qpos[:2], 0.25, (230, 159, 0))
        return canvas.pixels

    def _observation(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.data.qvel])

    def _info(self) -> dict[str, Any]:
        gap = float(np.linalg.norm(self.data.qpos[:2] - self.goal))
        return {"goal": self.goal.copy(), "success": gap <= GOAL_RADIUS}


def centres(cells: np.ndarray) -> np.ndarray:
    """Return the centres (..., 2), (x, y) in metres, of cells (..., 2), (line, column)."""
    return CELL * (cells[..., ::-1] - 1.0)


def draw_goal(centre: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw a goal (2,), (x, y) in metres, near the centre (2,) of its cell."""
    return centre + random.uniform(0, [[1.0], [0.5]], (2, 2)).sum(0)


def _point(value: Any, what: str) -> np.ndarray:
    point = np.asarray(value, float)
    if point.shape != (2,) or not np.isfinite(point).all():
        raise ConfigError(f"AntMaze: {what} is {value}: give x and y in metres.")
    return point
