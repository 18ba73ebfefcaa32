"""Mazes of unit cells: what is wall, what is free, and the shortest ways between free cells.

A drawing has one text line a value of x and one character a value of y, ``#`` for wall::

    x=0  #####
    x=1  #...#        cell (1, 1) is the corner above on the left,
    x=2  ###.#        cell (3, 1) the end of the other arm of the U
    x=3  #...#
    x=4  #####
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lit_offrl.common.errors import ConfigError

# Down, up, right, left in a drawing; of equally short ways the one that comes first here is taken.
_MOVES = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])


@dataclass(frozen=True)
class Maze:
    """A maze with the goal cell of its score and its step limit.

    Attributes:
        name: Name in error messages.
        drawing: Lines of the drawing, all of one length, with walls all around.
        goal: Cell (i, j) of the goal that scores are measured at.
        max_episode_steps: Step limit.
    """

    name: str
    drawing: tuple[str, ...]
    goal: tuple[int, int]
    max_episode_steps: int

    def __post_init__(self) -> None:
        if len({len(line) for line in self.drawing}) != 1 or set("".join(self.drawing)) - set("#."):
            raise ConfigError(
                f"maze '{self.name}': draw it in lines of one length, of '#' and '.' only."
            )
        free = self.free
        if free[[0, -1]].any() or free[:, [0, -1]].any():
            raise ConfigError(f"maze '{self.name}': has a hole in its outer wall: draw '#' there.")
        self.index(self.goal)

    @cached_property
    def free(self) -> np.ndarray:
        """Whether a cell is free (X, Y), bool."""
        return np.array([[tile == "." for tile in line] for line in self.drawing])

    @cached_property
    def cells(self) -> np.ndarray:
        """The K free cells (K, 2), int64, by x and then by y."""
        return np.argwhere(self.free)

    @cached_property
    def numbers(self) -> np.ndarray:
        """The row of each cell in ``cells`` (X, Y), int64; −1 in walls."""
        numbers = np.full(self.free.shape, -1)
        numbers[self.free] = np.arange(len(self.cells))
        return numbers

    def has(self, cell: tuple[int, int]) -> bool:
        """Whether a cell is inside and free."""
        i, j = cell
        inside = 0 <= i < self.free.shape[0] and 0 <= j < self.free.shape[1]
        return inside and bool(self.free[i, j])

    def index(self, cell: tuple[int, int] | np.ndarray) -> int:
        """Return the row of a free cell in ``cells``.

        Raises:
            ConfigError: the cell is wall, or outside.
        """
        i, j = (int(number) for number in cell)
        if not self.has((i, j)):
            some = ", ".join(f"({a},{b})" for a, b in self.cells[:3].tolist())
            raise ConfigError(
                f"maze '{self.name}': cell ({i},{j}) is a wall or outside: choose a free one, such"
                f" as {some}."
            )
        return int(self.numbers[i, j])

    @cached_property
    def _neighbours(self) -> np.ndarray:
        """Row of the cell after each move (K, 4), int64; −1 where there is a wall."""
        x, y = (self.cells[:, None] + _MOVES).transpose(2, 0, 1)
        return self.numbers[x, y]

    @cached_property
    def distances(self) -> np.ndarray:
        """Moves from free cell to free cell (K, K), int64; −1 where there is no way."""
        from scipy.sparse.csgraph import shortest_path  # late: few environments are mazes

        joined = np.zeros((len(self.cells), len(self.cells)))
        cell, move = np.nonzero(self._neighbours >= 0)
        joined[cell, self._neighbours[cell, move]] = 1
        moves = shortest_path(joined, unweighted=True)
        return np.where(np.isinf(moves), -1, moves).astype(np.int64)

    @cached_property
    def next_cells(self) -> np.ndarray:
        """Row of the cell that comes next on a shortest way from cell to goal (K, K), int64.

        ``next_cells[cell, goal]`` is the cell itself at the goal, −1 where there is no way.
        """
        size = len(self.cells)
        table = np.where(np.eye(size, dtype=bool), np.arange(size)[:, None], -1)
        for move in reversed(range(len(_MOVES))):  # the first move is written last, and stays
            neighbour = self._neighbours[:, move]
            beside = self.distances[neighbour]
            nearer = (neighbour >= 0)[:, None] & (beside >= 0) & (beside == self.distances - 1)
            table = np.where(nearer, neighbour[:, None], table)
        return table

    def path(self, start: tuple[int, int] | np.ndarray, goal: tuple[int, int]) -> np.ndarray:
        """Return the cells after ``start`` on a shortest way to ``goal`` (L, 2), int64.

        At the goal already, that is only the goal.

        Raises:
            ConfigError: either is no free cell, or there is no way between them.
        """
        here, there = self.index(start), self.index(goal)
        if self.distances[here, there] < 0:
            raise ConfigError(f"maze '{self.name}': there is no way from {start} to {goal}.")
        rows = [int(self.next_cells[here, there])]
        while rows[-1] != there:
            rows.append(int(self.next_cells[rows[-1], there]))
        return self.cells[rows]


# The layouts, goal cells and step limits of D4RL's maze2d (Fu et al., 2020).
_DRAWINGS = {
    "open": "####### #.....# #.....# #.....# #######",
    "umaze": "##### #...# ###.# #...# #####",
    "medium": """
        ########
        #..##..#
        #..#...#
        ##...###
        #..#...#
        #.#..#.#
        #...#..#
        ########
    """,
    "large": """
        ############
        #....#.....#
        #.##.#.#.#.#
        #......#...#
        #.####.###.#
        #..#.#.....#
        ##.#.#.#.###
        #..#...#...#
        ############
    """,
    "eval-umaze": "##### #...# #.### #...# #####",
    "eval-medium": """
        ########
        #......#
        #.#.##.#
        #....#.#
        ###..###
        #......#
        #..##..#
        ########
    """,
    "eval-large": """
        ############
        #..#...#...#
        ##.###.#.#.#
        #..#.#.....#
        #.##.#..##.#
        #......#...#
        #.##.#.#.###
        #....#.....#
        ############
    """,
}
_FACTS = {
    "open": ((2, 3), 150),
    "umaze": ((1, 1), 300),
    "medium": ((6, 6), 600),
    "large": ((7, 9), 800),
    "eval-umaze": ((1, 3), 300),
    "eval-medium": ((1, 6), 600),
    "eval-large": ((1, 9), 800),
}
MAZE2D = {
    name: Maze(name, tuple(_DRAWINGS[name].split()), *facts) for name, facts in _FACTS.items()
}
