"""Mazes from above, drawn with numpy: works without a window, a graphics card or OpenGL."""

from __future__ import annotations

import numpy as np

from lit_offrl.envs.mazes import Maze

_WALL, _FLOOR, _OUTSIDE = (92, 76, 64), (238, 236, 230), (255, 255, 255)
_RING, _GOAL, _POINT = (214, 228, 208), (196, 72, 66), (44, 92, 178)


class MazePicture:
    """Draws a maze as its drawing is: x from the top to the bottom, y from the left to the right.

    Args:
        maze: the maze.
        size: (width, height) in pixels; the maze is centred in it.
        offset: what the coordinates of the middle of cell (0, 0) are, on both axes.
    """

    def __init__(self, maze: Maze, size: tuple[int, int], offset: float) -> None:
        width, height = size
        lines, columns = maze.free.shape
        scale = min(width / columns, height / lines)  # pixels a cell
        rows, across = np.arange(height) + 0.5, np.arange(width) + 0.5
        # of each row and column of pixels, in cells from the outer edge of the maze
        x = (rows - (height - scale * lines) / 2) / scale
        y = (across - (width - scale * columns) / 2) / scale
        inside = ((x >= 0) & (x < lines))[:, None] & ((y >= 0) & (y < columns))
        i = np.clip(x.astype(int), 0, lines - 1)
        j = np.clip(y.astype(int), 0, columns - 1)
        free = maze.free[np.ix_(i, j)]
        self._picture = np.where(free[..., None], _FLOOR, _WALL).astype(np.uint8)
        self._picture[~inside] = _OUTSIDE
        self._floor = free & inside
        self._x, self._y = x - 0.5 + offset, y - 0.5 + offset

    def draw(
        self, position: np.ndarray, goal: np.ndarray, *, goal_radius: float, radius: float
    ) -> np.ndarray:
        """Return a picture (height, width, 3), uint8, of the point and of what counts as the goal.

        Args:
            position: of the point (2,).
            goal: (2,).
            goal_radius: within it the goal is reached.
            radius: of the point.
        """
        picture = self._picture.copy()
        picture[self._disc(goal, goal_radius) & self._floor] = _RING
        picture[self._disc(goal, 1.5 * radius)] = _GOAL
        picture[self._disc(position, 1.5 * radius)] = _POINT  # its own size is a pixel or two
        return picture

    def _disc(self, middle: np.ndarray, radius: float) -> np.ndarray:
        return (self._x[:, None] - middle[0]) ** 2 + (self._y - middle[1]) ** 2 <= radius**2
