"""Environments that cannot be had elsewhere: D4RL's mazes on current MuJoCo, and planners.

Importing this registers their ids with gymnasium, and imports no simulator.
"""

from lit_offrl.envs.maze2d import register_maze2d

register_maze2d()
