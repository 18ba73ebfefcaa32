"""OGBench's play, noisy, navigate and stitch data, one episode at a time (Park et al., 2025).

    play, noisy   an oracle moves one object after another to random targets    cube, scene, puzzle
    navigate      from cell to cell to one random goal after another            pointmaze
    stitch        from cell to cell to a goal four cells away, and stays there  pointmaze

Environments and oracles are those of the package ``ogbench``; the recipes are those of its
generation scripts (github.com/seohongpark/ogbench, data_gen_scripts), which leave their seed
unused. Here an episode depends on (seed, its number) alone. Actions are rounded to float32, as they
are stored, before they are taken. antmaze, humanoidmaze and antsoccer need the authors' walkers and
are not made here.

Only light modules are imported: each worker process begins with this one.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import multiprocessing
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np

from lit_offrl.common.errors import LitOffRLError, reason
from lit_offrl.common.files import whole_file
from lit_offrl.common.seeds import mix
from lit_offrl.datasets.ogbench_tasks import FAMILIES, VERSION, Family
from lit_offrl.envs.extras import require

COLUMNS: dict[str, type[np.generic]] = {
    "observations": np.float32,
    "actions": np.float32,
    "terminals": np.bool_,
    "qpos": np.float32,
    "qvel": np.float32,
    "button_states": np.int64,
}
"""The files' columns, in order, and their types; only scene and puzzle have ``button_states``."""

SMOOTHING = 0.5  # play: of the noise along a plan, in steps
MIN_NORM = 0.4  # noisy: of the way to go, in metres, so that oracles do not creep
NOISE = np.array([1, 1, 1, 3, 10])  # noisy: an episode's level times this is of an action's numbers
STITCHED = 4  # cells from a stitch episode's start to its goal

_EPISODE, _ORACLE, _ENV = 11, 12, 13  # streams of an episode


@dataclass(frozen=True)
class Official:
    """Options of the generation scripts for one dataset.

    Args:
        episodes: Training episodes; for validation there is a tenth of that more.
        rows: Rows of an episode, the last of which has no successor.
        noise: Standard deviation of the noise: play, on the waypoints of a plan in largest actions;
            noisy, on actions, an episode's level at most; pointmaze, on actions.
        random: Share of uniform actions.
        stack: Between which numbers an episode's probability lies that a cube goes onto another.
    """

    episodes: int
    rows: int
    noise: float
    random: float = 0.0
    stack: tuple[float, float] = (0.5, 0.5)


_STACK = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
}


def _official(family: Family) -> dict[str, Official]:
    if family.name.startswith("pointmaze"):
        return {kind: Official(*size, noise=0.5) for kind, size in family.data.items()}
    random = {"play": 0.0, "noisy": 0.2 if family.name.startswith("puzzle") else 0.1}
    stack = _STACK.get(family.name, (0.5, 0.5))
    return {
        kind: Official(*size, noise=0.1, random=random[kind], stack=stack)
        for kind, size in family.data.items()
    }


OFFICIAL: dict[str, dict[str, Official]] = {
    f"{family.name}{VERSION}": _official(family)
    for family in sorted(FAMILIES.values(), key=lambda each: each.name.startswith("pointmaze"))
    if not family.walks
}
"""The datasets that can be made, by environment and kind."""

KINDS = tuple(dict.fromkeys(kind for kinds in OFFICIAL.values() for kind in kinds))
"""The kinds of data that some environment has."""

Columns = dict[str, np.ndarray]
Cell = tuple[int, int]


class Maker(Protocol):
    """What makes the episodes of one dataset."""

    def episode(self, seed: int, number: int) -> tuple[Columns, np.ndarray]:
        """Return an episode's columns (rows, …), and its tasks: how many were ended and solved."""


def maker(env_id: str, kind: str, rows: int, noise: float) -> Maker:
    """Return what makes the episodes of a dataset that ``OFFICIAL`` has.

    Raises:
        EvaluationError: the package ogbench, or one that it needs, is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a missing screen, and of bounds in float64
        for package in ("locomaze", "manipspace"):  # both register environments
            require(f"ogbench.{package}", env_id)
        family = PointMaze if env_id.startswith("pointmaze") else Manipulation
        return family(env_id, kind, rows, noise)


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which oracles and mazes draw from, within the block."""
    before = np.random.get_state()  # noqa: NPY002
    state: Any = np.random.MT19937(seed).state
    np.random.set_state(state)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


class Manipulation:
    """Episodes of cube, scene and puzzle: an oracle has one object after another moved.

    play: plans laid once a task, with smooth noise on their waypoints. noisy: policies of the
    state, whose actions get normal noise of an episode's own level, and are uniform at times.

    Args:
        env_id: Environment, a key of ``OFFICIAL``.
        kind: ``play`` or ``noisy``.
        rows: Rows of an episode.
        noise: Level of the noise, see ``Official``.
    """

    def __init__(self, env_id: str, kind: str, rows: int, noise: float) -> None:
        options: dict[str, Any] = {"terminate_at_goal": False, "mode": "data_collection"}
        made: Any = gymnasium.make(env_id, disable_env_checker=True, **options)
        self._env = made.unwrapped
        self._env.reset(seed=0)  # compiles the model, which leaves the solver another first guess
        self._official, self._rows, self._noise = OFFICIAL[env_id][kind], rows, noise
        self._noisy, self._scene = kind == "noisy", env_id == "scene-v0"
        self._oracles = _oracles(self._env, env_id.partition("-")[0], kind, noise)

    def episode(self, seed: int, number: int) -> tuple[Columns, np.ndarray]:
        """Return an episode; of scene, the first in which the block stays where it can be seen."""
        for attempt in itertools.count():
            with _global_seed(mix(seed, number, attempt, _ORACLE)):
                rows, tasks = self._attempt((seed, number, attempt))
            if not self._scene or _visible(np.array([row["qpos"][14:17] for row in rows])):
                break
        return _columns(rows), tasks

    def _attempt(self, keys: tuple[int, int, int]) -> tuple[list[dict[str, Any]], np.ndarray]:
        random = np.random.default_rng(mix(*keys, _EPISODE))
        env, official = self._env, self._official
        stack = random.uniform(*official.stack)
        deviation = random.uniform(0, self._noise) * NOISE
        observation, info = env.reset(seed=mix(*keys, _ENV))
        oracle = self._begin(observation, info)
        rows: list[dict[str, Any]] = []
        tasks = np.zeros(2, np.int64)
        for _ in range(self._rows):
            if random.random() < official.random:
                action = random.uniform(-1, 1, 5)
            else:
                action = oracle.select_action(observation, info)
                if self._noisy:
                    action = action + random.normal(0, deviation)
            action = np.clip(action, -1, 1).astype(np.float32)
            following, _, _, _, info = env.step(action)
            if oracle.done:
                tasks += 1, info["success"]
                oracle = self._begin(*env.set_new_target(p_stack=stack))
            rows.append(_row(observation, action, info))
            observation = following
        return rows, tasks

    def _begin(self, observation: np.ndarray, info: dict[str, Any]) -> Any:
        oracle = self._oracles[info["privileged/target_task"]]
        oracle.reset(observation, info)
        return oracle


def _oracles(env: Any, family: str, kind: str, noise: float) -> dict[str, Any]:
    """Return ogbench's oracles for the tasks of a family of environments."""
    plan = {"noise": noise, "noise_smoothing": SMOOTHING}
    name, options = ("Plan", plan) if kind == "play" else ("Markov", {"min_norm": MIN_NORM})
    tasks = {"cube": ["cube"], "scene": ["cube", "button", "drawer", "window"]}
    found = {}
    for task in tasks.get(family, ["button"]):
        path = f"ogbench.manipspace.oracles.{name.lower()}.{task}_{name.lower()}"
        own: dict[str, Any] = dict(options)
        if family == "puzzle":
            own["gripper_always_closed"] = True
        if family == "scene" and kind == "noisy" and task == "cube":
            own["max_step"] = 100
        oracle = getattr(importlib.import_module(path), f"{task.title()}{name}Oracle")
        found[task] = oracle(env=env, **own)
    return found


def _visible(block: np.ndarray) -> bool:
    """Whether a block (rows, 3) is in the camera's picture all the time, or in the drawer."""
    y, z = block[:, 1], block[:, 2]
    hidden = (y >= 0.29) | ((y <= -0.3) & ((z < 0.06) | (z > 0.08)))
    return not hidden.any()


class PointMaze:
    """Episodes of pointmaze: a point goes to the next cell on the shortest way to its goal.

    Args:
        env_id: Environment, a key of ``OFFICIAL``.
        kind: ``navigate`` or ``stitch``.
        rows: Rows of an episode.
        noise: Level of the noise, see ``Official``.
    """

    def __init__(self, env_id: str, kind: str, rows: int, noise: float) -> None:
        options: dict[str, Any] = {"terminate_at_goal": False}
        made: Any = gymnasium.make(env_id, disable_env_checker=True, **options)
        self._env = made.unwrapped
        self._navigates, self._rows, self._noise = kind == "navigate", rows, noise
        free: np.ndarray = self._env.maze_map == 0
        self._cells: list[Cell] = [(i, j) for i, j in np.argwhere(free).tolist()]
        self._goals = [cell for cell in self._cells if not _hallway(free, cell)]
        self._next = functools.cache(self._next_cell)  # a cell and a goal's cell: few pairs

    def _next_cell(self, cell: Cell, goal: Cell) -> np.ndarray:
        places = self._env.ij_to_xy(cell), self._env.ij_to_xy(goal)
        return self._env.get_oracle_subgoal(*places)[0]

    def episode(self, seed: int, number: int) -> tuple[Columns, np.ndarray]:
        """Return an episode; the tasks that it ended and solved are the goals that it reached."""
        random = np.random.default_rng(mix(seed, number, _EPISODE))
        env, reached = self._env, 0
        rows: list[dict[str, Any]] = []
        start = self._draw(random, self._cells)
        goal = self._draw(random, self._goals if self._navigates else self._near(start))
        with _global_seed(mix(seed, number, _ORACLE)):
            env.action_space.seed(mix(seed, number, _ENV))
            task = {"task_info": {"init_ij": start, "goal_ij": goal}}
            observation, _ = env.reset(seed=mix(seed, number, _ENV), options=task)
            for _ in range(self._rows):
                place = env.get_xy()
                way = self._next(env.xy_to_ij(place), env.xy_to_ij(env.cur_goal_xy)) - place
                action = way / (np.linalg.norm(way) + 1e-6) + random.normal(0, self._noise, 2)
                action = np.clip(action, -1, 1).astype(np.float32)
                following, _, _, _, info = env.step(action)
                if info["success"] and self._navigates:
                    env.set_goal(self._draw(random, self._goals))
                    reached += 1
                rows.append(_row(observation, action, info))
                observation = following
        return _columns(rows), np.full(2, reached, np.int64)

    @staticmethod
    def _draw(random: np.random.Generator, cells: Sequence[Cell]) -> Cell:
        return cells[int(random.integers(len(cells)))]

    def _near(self, cell: Cell) -> list[Cell]:
        """Return the cells ``STITCHED`` steps from a cell, or where there are none, itself."""
        place = self._env.ij_to_xy(cell)
        distances = self._env.get_oracle_subgoal(place, place)[1]
        return [each for each in self._cells if distances[each] == STITCHED] or [cell]


def _hallway(free: np.ndarray, cell: Cell) -> bool:
    """Whether a cell's free neighbours are two on opposite sides: there is only one way through."""
    i, j = cell
    upright, across = free[[i - 1, i + 1], j], free[i, [j - 1, j + 1]]
    return bool((upright.all() and not across.any()) or (across.all() and not upright.any()))


def _row(observation: np.ndarray, action: np.ndarray, info: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a step: the state that the action met."""
    found = {"observations": observation, "actions": action}
    before = {name: info.get(f"prev_{name}") for name in ("qpos", "qvel", "button_states")}
    return found | {name: values for name, values in before.items() if values is not None}


def _columns(rows: list[dict[str, Any]]) -> Columns:
    ends = np.arange(len(rows)) == len(rows) - 1
    return {
        name: ends if name == "terminals" else np.array([row[name] for row in rows], kind)
        for name, kind in COLUMNS.items()
        if name == "terminals" or name in rows[0]
    }


def part(folder: Path, number: int) -> Path:
    """Return the file of an episode that is made."""
    return folder / f"{number:06d}.npz"


def make_parts(
    folder: Path,
    env_id: str,
    kind: str,
    rows: int,
    noise: float,
    seed: int,
    numbers: Sequence[int],
) -> Iterator[int]:
    """Make episodes, each into a file of its own in ``folder``; yield the number of each.

    Raises:
        EvaluationError: the package ogbench is not installed.
        FileError: an episode cannot be written.
    """
    made = maker(env_id, kind, rows, noise)
    for number in numbers:
        columns, tasks = made.episode(seed, number)
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            return  # it was killed, and the folder may be another's by now
        arrays: dict[str, Any] = {"tasks": tasks, **columns}
        with whole_file(part(folder, number)) as place, place.open("wb") as stream:
            np.savez(stream, **arrays)
        yield number


def work(report: Connection, *recipe: Any) -> None:
    """Make episodes in a process of its own, and report the number of each, or what failed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's; the parent ends its workers
    try:
        for number in make_parts(*recipe):
            report.send(number)
    except BrokenPipeError:  # nobody waits any more
        sys.exit(1)
    except Exception as error:
        report.send(error if isinstance(error, LitOffRLError) else reason(error, named=True))
