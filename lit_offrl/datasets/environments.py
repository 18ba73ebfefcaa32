"""What is known of environments by their ids: sizes, bounds, step limits, reference scores."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True)
class EnvironmentFacts:
    """Sizes, action bounds, step limit and the two returns that score 0 and 100."""

    env_id: str
    observation_dim: int
    action_dim: int
    max_episode_steps: int
    ref_min_score: float
    ref_max_score: float
    ref_source: str
    action_bound: float = 1.0


def _bullet(
    env_id: str, task: str, sizes: tuple[int, int], low: float, high: float
) -> EnvironmentFacts:
    source = f"d4rl/infos.py, bullet-{task}-*-v0"
    return EnvironmentFacts(env_id, *sizes, 1000, low, high, source)


# Sizes, step limit and references of the tasks that this package's own environments stand for.
_TASKS = """
maze2d-open-v1               4  2  150    0.01     20.66                maze2d-open-v0
maze2d-umaze-v1              4  2  300    23.85    161.86               maze2d-umaze-v1
maze2d-medium-v1             4  2  600    13.13    277.39               maze2d-medium-v1
maze2d-large-v1              4  2  800    6.7      273.99               maze2d-large-v1
antmaze-umaze-v2            29  8  700    0.0      1.0                  antmaze-umaze-v2
antmaze-umaze-diverse-v2    29  8  700    0.0      1.0                  antmaze-umaze-diverse-v2
antmaze-medium-play-v2      29  8  1000   0.0      1.0                  antmaze-medium-play-v2
antmaze-medium-diverse-v2   29  8  1000   0.0      1.0                  antmaze-medium-diverse-v2
antmaze-large-play-v2       29  8  1000   0.0      1.0                  antmaze-large-play-v2
antmaze-large-diverse-v2    29  8  1000   0.0      1.0                  antmaze-large-diverse-v2
hopper-v2                   11  3  1000  -20.272305   3234.3            hopper-*-v2
halfcheetah-v2              17  6  1000  -280.178953  12135.0           halfcheetah-*-v2
walker2d-v2                 17  6  1000   1.629008    4592.3            walker2d-*-v2
ant-v2                     111  8  1000  -325.6       3879.7            ant-*-v2
pen-v0                      45 24  100    96.262799   3076.8331017826877   pen-*-v1
hammer-v0                   46 26  200   -274.856578  12794.134825156867   hammer-*-v1
door-v0                     39 28  200   -56.512833   2880.5693087298737   door-*-v1
relocate-v0                 39 30  200   -6.425911    4233.877797728884    relocate-*-v1
kitchen-complete-v0         60  9  280    0.0      4.0                  kitchen-complete-v0
kitchen-partial-v0          60  9  280    0.0      4.0                  kitchen-partial-v0
kitchen-mixed-v0            60  9  280    0.0      4.0                  kitchen-mixed-v0
"""
OWN = "lit_offrl/"
"""Where gymnasium finds this package's environments."""


def _own() -> Iterator[EnvironmentFacts]:
    for line in _TASKS.strip().splitlines():
        name, observations, actions, limit, low, high, task = line.split()
        yield EnvironmentFacts(
            OWN + name,
            int(observations),
            int(actions),
            int(limit),
            float(low),
            float(high),
            f"d4rl/infos.py, {task}",
        )


# d4rl-pybullet registers no references for its data; these are D4RL's, for the same environments.
# D4RL's minimum for the ant is far above what d4rl-pybullet's untrained actor earns (10.35).
ENVIRONMENTS: Mapping[str, EnvironmentFacts] = {
    facts.env_id: facts
    for facts in (
        _bullet("HopperBulletEnv-v0", "hopper", (15, 3), 20.058972, 1441.8059623430963),
        _bullet("HalfCheetahBulletEnv-v0", "halfcheetah", (26, 6), -1275.766996, 2381.6725),
        _bullet("Walker2DBulletEnv-v0", "walker2d", (22, 6), 16.523877, 1623.6476303317536),
        _bullet("AntBulletEnv-v0", "ant", (28, 8), 373.705955, 2650.495),
        *_own(),
    )
}

_BULLET_TASKS = {
    "hopper": "HopperBulletEnv-v0",
    "halfcheetah": "HalfCheetahBulletEnv-v0",
    "walker2d": "Walker2DBulletEnv-v0",
    "ant": "AntBulletEnv-v0",
}


_OWN_NAMES = (
    # -v0 was published without a version in its files' names
    (r"maze2d-(open|umaze|medium|large)(?!-dense|-v0|-sparse\.)", "maze2d-{}-v1"),
    (r"antmaze-(umaze-diverse|umaze|(?:medium|large)-(?:play|diverse))", "antmaze-{}-v2"),
    (r"kitchen-(complete|partial|mixed)", "kitchen-{}-v0"),
    (r"(pen|hammer|door|relocate)-(?:human|cloned|expert)", "{}-v0"),
    (r"(hopper|halfcheetah|walker2d|ant)-(?:random|medium|expert|full)", "{}-v2"),
)


def env_id_from_name(name: str) -> str | None:
    """Guess the environment from a file's name, as ``hopper-bullet-mixed`` or ``maze2d-large-v1``.

    Returns:
        The gymnasium id, or None where the name says nothing.
    """
    tasks = "|".join(_BULLET_TASKS)
    stem = PurePath(name).name.lower()
    found = re.search(rf"\b({tasks})[-_]bullet|\bbullet[-_]({tasks})(?![a-z])", stem)
    if found:
        return _BULLET_TASKS[found[1] or found[2]]
    if "bullet" in stem or "eval" in stem:
        return None
    for pattern, env_id in _OWN_NAMES:
        if found := re.match(pattern, stem.replace("_", "-")):
            return OWN + env_id.format(found[1])
    return None
