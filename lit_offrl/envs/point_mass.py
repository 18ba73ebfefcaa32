"""The simulation under maze2d: a point mass on two slide joints among walls of unit cells."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lit_offrl.envs.extras import require
from lit_offrl.envs.mazes import Maze

if TYPE_CHECKING:
    import mujoco

MAX_VELOCITY = 5.0
TIME_STEP = 0.01
RADIUS = 0.1
# D4RL puts cell (i, j) at (i + 1, j + 1) of its world, and the point's origin at (1.2, 1.2): in the
# point's coordinates, which are those of all data, the cell's middle is (i − 0.2, j − 0.2).
CELL_OFFSET = -0.2

# No warm start of the solver: the next state is a function of only this state and the action, so
# that any recorded row replays to the last bit.
_XML = """
<mujoco model="maze2d-{name}">
  <option timestep="{time_step}" gravity="0 0 0" iterations="20" integrator="Euler">
    <flag warmstart="disable"/>
  </option>
  <default>
    <geom density="1000" margin="0.002" condim="1" contype="0" conaffinity="0"/>
    <joint type="slide" damping="1" limited="false"/>
    <motor gear="100" ctrllimited="true" ctrlrange="-1 1"/>
  </default>
  <worldbody>
    {walls}
    <body name="point">
      <joint name="x" axis="1 0 0"/>
      <joint name="y" axis="0 1 0"/>
      <geom type="sphere" size="{radius}" contype="1"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x"/>
    <motor joint="y"/>
  </actuator>
</mujoco>
"""
_WALL = '<geom type="box" size="0.5 0.5 0.2" pos="{:.1f} {:.1f} 0" conaffinity="1"/>'


@lru_cache(maxsize=16)
def _model(maze: Maze) -> mujoco.MjModel:
    """Compile a maze, once a process: a model is never changed, and evaluation makes many."""
    middles = np.argwhere(~maze.free) + CELL_OFFSET
    xml = _XML.format(
        name=maze.name,
        time_step=TIME_STEP,
        radius=RADIUS,
        walls="\n    ".join(_WALL.format(x, y) for x, y in middles.tolist()),
    )
    return require("mujoco", "maze2d").MjModel.from_xml_string(xml)


class PointMass:
    """One point in one maze.

    Attributes:
        qpos: Position (2,), float64, a view of the simulator's memory.
        qvel: Velocity (2,), float64, in metres per second, a view of the simulator's memory.

    Raises:
        EvaluationError: MuJoCo is not installed.
    """

    def __init__(self, maze: Maze) -> None:
        mujoco = require("mujoco", "maze2d")
        self._model = _model(maze)
        self._data = mujoco.MjData(self._model)
        self._step = mujoco.mj_step
        self.qpos: np.ndarray = self._data.qpos
        self.qvel: np.ndarray = self._data.qvel
        self._ctrl: np.ndarray = self._data.ctrl

    def state(self) -> tuple[float, float, float, float]:
        """Return (x, y, vx, vy)."""
        x, y = self.qpos.tolist()
        vx, vy = self.qvel.tolist()
        return x, y, vx, vy

    def step(self, action: np.ndarray) -> None:
        """Take one time step with the action (2,), of which only [−1, 1] counts.

        Velocities are clipped before the step, not after it, so they end up to 0.23 beyond 5.
        """
        for axis, speed in enumerate(self.qvel.tolist()):
            if not -MAX_VELOCITY <= speed <= MAX_VELOCITY:
                self.qvel[axis] = MAX_VELOCITY if speed > 0 else -MAX_VELOCITY
        self._ctrl[:] = action
        self._step(self._model, self._data)


def cell_of(position: np.ndarray) -> tuple[int, int]:
    """Return the cell that a position (2,) of the point lies in."""
    x, y = (np.asarray(position) - CELL_OFFSET + 0.5).tolist()
    return int(x // 1), int(y // 1)
