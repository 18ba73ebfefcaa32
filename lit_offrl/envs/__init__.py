"""Gymnasium environments that users cannot get elsewhere; importing this registers their ids.

No simulator is imported before an environment is made.
"""

from typing import Any

import gymnasium

from lit_offrl.datasets.ogbench_tasks import ENV_TASKS
from lit_offrl.envs import adroit, antmaze, kitchen, locomotion, mountain_car, random_walk
from lit_offrl.envs.mazes import MAZE2D


def _register(name: str, entry_point: str, limit: int, **options: Any) -> None:
    gymnasium.register(
        f"lit_offrl/{name}", f"lit_offrl.envs.{entry_point}", max_episode_steps=limit, **options
    )


def _register_all() -> None:
    for task, (_, _, limit, _) in adroit.TASKS.items():
        _register(f"{task}-v0", "adroit:make", limit, kwargs={"task": task})
    for task, limit in antmaze.TASKS.items():
        maze = task.partition("-")[0]
        _register(f"antmaze-{task}-v2", "antmaze:AntMazeEnv", limit, kwargs={"maze": maze})
    for task in kitchen.TASKS:
        _register(f"kitchen-{task}-v0", "kitchen:make", kitchen.STEP_LIMIT, kwargs={"task": task})
    for task in locomotion.TASKS:
        _register(f"{task}-v2", "locomotion:make", locomotion.STEP_LIMIT, kwargs={"task": task})
    for name, layout in MAZE2D.items():
        for ending, dense in (("", False), ("-dense", True)):
            env, limit = f"maze2d-{name}{ending}-v1", layout.max_episode_steps
            _register(env, "maze2d:Maze2dEnv", limit, kwargs={"maze": name, "dense": dense})
    for name, (family, _) in ENV_TASKS.items():
        _register(name, "ogbench:make", family.max_episode_steps, kwargs={"name": name})
    car = ("mountain_car:MountainCarEnv", mountain_car.STEP_LIMIT)
    _register("mountain-car-v0", *car, reward_threshold=90.0)  # as gymnasium's
    _register("random-walk-v0", "random_walk:RandomWalkEnv", random_walk.STEP_LIMIT)


_register_all()
