"""OGBench's environments and tasks (Park et al. 2025, arXiv:2410.20092; facts of ogbench 1.2.2).

environment   cube-single-v0                        5 tasks, each a start and a goal
single task   cube-single-singletask-task2-v0       one of them, with a reward; without a number the
                                                    default task of the environment
data          cube-single-play-v0                   no rewards
              cube-single-play-singletask-task2-v0  the same file, labelled for the task
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

TASKS = (1, 2, 3, 4, 5)
SINGLE = "singletask"
VERSION = "-v0"

# Environment, sizes of observation and action, step limit, default task; of each of its data the
# kind and the training file's episodes × rows, as in the authors' data_gen_scripts/commands.sh.
_FACTS = """
pointmaze-medium       2  2 1000 1  navigate 1000x1001  stitch 5000x201
pointmaze-large        2  2 1000 1  navigate 1000x1001  stitch 5000x201
pointmaze-giant        2  2 1000 1  navigate 500x2001   stitch 5000x201
pointmaze-teleport     2  2 1000 1  navigate 1000x1001  stitch 5000x201
antmaze-medium        29  8 1000 1  navigate 1000x1001  stitch 5000x201   explore 10000x501
antmaze-large         29  8 1000 1  navigate 1000x1001  stitch 5000x201   explore 10000x501
antmaze-giant         29  8 1000 1  navigate 500x2001   stitch 5000x201
antmaze-teleport      29  8 1000 1  navigate 1000x1001  stitch 5000x201   explore 10000x501
humanoidmaze-medium   69 21 2000 1  navigate 1000x2001  stitch 5000x401
humanoidmaze-large    69 21 2000 1  navigate 1000x2001  stitch 5000x401
humanoidmaze-giant    69 21 4000 1  navigate 1000x4001  stitch 10000x401
antsoccer-arena       42  8 1000 4  navigate 1000x1001  stitch 5000x201
antsoccer-medium      42  8 1000 4  navigate 4000x1001  stitch 8000x501
cube-single           28  5  200 2  play 1000x1001  noisy 1000x1001
cube-double           37  5  500 2  play 1000x1001  noisy 1000x1001
cube-triple           46  5 1000 2  play 3000x1001  noisy 3000x1001
cube-quadruple        55  5 1000 2  play 5000x1001  noisy 5000x1001
scene                 40  5  750 2  play 1000x1001  noisy 1000x1001
puzzle-3x3            55  5  500 4  play 1000x1001  noisy 1000x1001
puzzle-4x4            83  5  500 4  play 1000x1001  noisy 1000x1001
puzzle-4x5            99  5 1000 4  play 3000x1001  noisy 3000x1001
puzzle-4x6           115  5 1000 4  play 5000x1001  noisy 5000x1001
"""


class Size(NamedTuple):
    """Size of a training file; for validation there is a tenth of that more."""

    episodes: int
    rows: int
    """Of an episode; the last one has no successor."""


@dataclass(frozen=True)
class Family:
    """An environment with its tasks.

    Attributes:
        name: As ``cube-single``.
        observation_dim: Size of an observation, o.
        action_dim: Size of an action, a. Actions are within ±1.
        max_episode_steps: The step limit.
        default_task: Number of the task that an id without one means.
        data: Size of the training file of each kind of data, as ``{"play": Size(1000, 1001)}``.
    """

    name: str
    observation_dim: int
    action_dim: int
    max_episode_steps: int
    default_task: int
    data: Mapping[str, Size]

    @property
    def walks(self) -> bool:
        """Whether its data take the authors' walkers to be made."""
        return self.name.startswith(("ant", "humanoid"))


class Task(NamedTuple):
    """What an id names: an environment with all its tasks, or with one of them."""

    family: Family
    task: int | None


def _families() -> dict[str, Family]:
    found = {}
    for line in _FACTS.strip().splitlines():
        name, *words = line.split()
        observations, actions, limit, task = map(int, words[:4])
        pairs = zip(words[4::2], words[5::2], strict=True)
        data = {kind: Size(*map(int, size.split("x"))) for kind, size in pairs}
        found[name] = Family(name, observations, actions, limit, task, data)
    return found


FAMILIES: Mapping[str, Family] = _families()
"""By the name of the environment."""


def _endings(family: Family) -> dict[str, int | None]:
    """Return what may stand between a name and its version, and the task that it means."""
    numbered = {f"-{SINGLE}-task{task}": task for task in TASKS}
    return {"": None, f"-{SINGLE}": family.default_task, **numbered}


ENV_TASKS: Mapping[str, Task] = {
    f"{name}{ending}{VERSION}": Task(family, task)
    for name, family in FAMILIES.items()
    for ending, task in _endings(family).items()
}
"""What OGBench's own ids of environments name."""

_SINGLE_ID = re.compile(rf"(?P<base>.+?)(?P<ending>-{SINGLE}(-task\d+)?)?{VERSION}")


class DataName(NamedTuple):
    """What the name of data says: the file's own name, and the environment's id."""

    file: str
    env_id: str


def data_name(name: str) -> DataName | None:
    """Read a name such as ``cube-single-play-singletask-task2-v0``; None where it is none.

    What stands between the environment and ``singletask`` may be anything: data of a user's own
    have names of their own.
    """
    found = _SINGLE_ID.fullmatch(name)
    if found is None:
        return None
    base, ending = found["base"], found["ending"] or ""
    family = next((each for each in FAMILIES if base.startswith(f"{each}-")), None)
    env_id = f"{family}{ending}{VERSION}"
    return DataName(base + VERSION, env_id) if env_id in ENV_TASKS else None
