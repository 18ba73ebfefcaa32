import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_offrl.common.errors import ConfigError
from lit_offrl.envs.mazes import MAZE2D, Maze


def maze(*drawing, goal=(1, 1)):
    return Maze("test", drawing, goal, 10)


def test_the_u_is_one_corridor():
    u = MAZE2D["umaze"]
    assert u.cells.tolist() == [[1, 1], [1, 2], [1, 3], [2, 3], [3, 1], [3, 2], [3, 3]]
    way = [[1, 2], [1, 3], [2, 3], [3, 3], [3, 2], [3, 1]]
    assert u.path((1, 1), (3, 1)).tolist() == way
    assert u.path((3, 1), (1, 1)).tolist() == [*way[-2::-1], [1, 1]]
    assert u.path((1, 2), (1, 2)).tolist() == [[1, 2]]
    assert u.distances[u.index((1, 1))].tolist() == [0, 1, 2, 3, 6, 5, 4]


def test_of_equally_short_ways_the_first_move_down_is_taken():
    assert MAZE2D["open"].path((1, 1), (2, 2)).tolist() == [[2, 1], [2, 2]]


@pytest.mark.parametrize("name", MAZE2D)
def test_d4rls_mazes_are_connected_and_have_their_goals(name):
    known = MAZE2D[name]
    assert (known.distances >= 0).all()
    goals = {"open": (2, 3), "umaze": (1, 1), "medium": (6, 6), "large": (7, 9)}
    assert known.goal == goals.get(name, known.goal)
    cells = {"open": 15, "umaze": 7, "medium": 26, "large": 46, "eval-large": 47}
    assert len(known.cells) == cells.get(name, cells.get(name.removeprefix("eval-")))


def slow_distances(free, start):
    """Breadth-first search, cell by cell."""
    distances, waiting = {start: 0}, [start]
    for i, j in waiting:
        for step in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            if free[step] and step not in distances:
                distances[step] = distances[i, j] + 1
                waiting.append(step)
    return distances


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5))
def test_ways_are_shortest_in_any_maze(tiles):
    tiles[0][0] = True
    inner = ["#" + "".join(".#"[not free] for free in line) + "#" for line in tiles]
    any_maze = maze("######", *inner, "######")
    cells = [tuple(cell) for cell in any_maze.cells.tolist()]
    for row, start in enumerate(cells):
        known = slow_distances(any_maze.free, start)
        assert any_maze.distances[row].tolist() == [known.get(cell, -1) for cell in cells]
        for goal in cells:
            if goal not in known:
                with pytest.raises(ConfigError, match="there is no way"):
                    any_maze.path(start, goal)
                continue
            way = np.array([start, *any_maze.path(start, goal).tolist()])
            assert len(way) - 1 == max(known[goal], 1)
            assert (np.abs(np.diff(way, axis=0)).sum(1) == (0 if start == goal else 1)).all()
            assert any_maze.free[tuple(way.T)].all() and tuple(way[-1]) == goal


@pytest.mark.parametrize(
    ("drawing", "said"),
    [
        (("###", "#.#", "##"), "lines of one length"),
        (("###", "#o#", "###"), "'#' and '.' only"),
        (("###", "#..", "###"), "hole in its outer wall"),
        (
            ("####", "##.#", "####"),
            r"cell \(1,1\) is a wall or outside: choose a free one, such as \(1,2\)",
        ),
    ],
)
def test_bad_drawings_are_refused(drawing, said):
    with pytest.raises(ConfigError, match=said):
        maze(*drawing)


def test_cells_outside_are_refused():
    with pytest.raises(ConfigError, match=r"maze 'umaze': cell \(-1,1\) is a wall or outside"):
        MAZE2D["umaze"].index((-1, 1))
