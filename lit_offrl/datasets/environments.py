"""What is known of environments by their ids: sizes, bounds, step limits, reference scores."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from lit_offrl.common.errors import DatasetError
from lit_offrl.datasets.ogbench_tasks import ENV_TASKS

REFERENCES = ("ref_min_score", "ref_max_score", "ref_source", "score_of")
"""Fields of a ``DatasetSpec`` that say how its episodes are scored."""


@dataclass(frozen=True)
class EnvironmentFacts:
    """Sizes, step limit and what scores 0 and 100; actions are within ±1.

    The two references are returns, or shares of successful episodes: see ``DatasetSpec.score_of``.
    """

    env_id: str
    observation_dim: int
    action_dim: int
    max_episode_steps: int
    ref_min_score: float
    ref_max_score: float
    ref_source: str
    score_of: str = "return"

    @property
    def sizes(self) -> dict[str, int]:
        """Dimensions of a row, by column."""
        return {"observations": self.observation_dim, "actions": self.action_dim}

    @property
    def references(self) -> dict[str, Any]:
        """What scores 0 and 100, by the fields of ``DatasetSpec``."""
        return {key: getattr(self, key) for key in REFERENCES}


# Sizes, step limit and references of environments, and the task of D4RL's that these are of.
# d4rl-pybullet registers none for its data; these are D4RL's, for the same environments. D4RL's
# minimum for the ant is far above what d4rl-pybullet's untrained actor earns (10.35).
_FACTS = """
HopperBulletEnv-v0          15  3 1000   20.058972 1441.8059623430963   bullet-hopper-*-v0
HalfCheetahBulletEnv-v0     26  6 1000 -1275.766996 2381.6725           bullet-halfcheetah-*-v0
Walker2DBulletEnv-v0        22  6 1000   16.523877 1623.6476303317536   bullet-walker2d-*-v0
AntBulletEnv-v0             28  8 1000  373.705955 2650.495             bullet-ant-*-v0
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
_SUCCESS = "OGBench: share of successful episodes in per cent"
OWN = "lit_offrl/"
"""Where gymnasium finds this package's environments."""


def _facts() -> Iterator[EnvironmentFacts]:
    for line in _FACTS.strip().splitlines():
        name, *numbers, task = line.split()
        observations, actions, limit = map(int, numbers[:3])
        low, high = map(float, numbers[3:])
        env_id = name if "Bullet" in name else OWN + name
        source = f"d4rl/infos.py, {task}"
        yield EnvironmentFacts(env_id, observations, actions, limit, low, high, source)
    for name, (family, _) in ENV_TASKS.items():
        sizes = (family.observation_dim, family.action_dim, family.max_episode_steps)
        yield EnvironmentFacts(OWN + name, *sizes, 0.0, 1.0, _SUCCESS, "success")


ENVIRONMENTS: Mapping[str, EnvironmentFacts] = {facts.env_id: facts for facts in _facts()}


def scored_quantity(
    stated: object,
    references: tuple[object, object],
    facts: EnvironmentFacts | None,
    where: str,
) -> str:
    """Return what a dataset's references are of: an episode's ``return`` or its ``success``.

    Args:
        stated: What the dataset says of it; None if it says nothing.
        references: What scores 0 and 100 by the dataset, and is None if it does not say.
        facts: What is known of the environment, whose word holds for the very same references.
        where: The dataset, for messages.

    Raises:
        DatasetError: The dataset says something else.
    """
    if stated is None:
        same = facts is not None and references == (facts.ref_min_score, facts.ref_max_score)
        return facts.score_of if facts is not None and same else "return"
    if stated not in ("return", "success"):
        raise DatasetError(
            f"{where}: 'score_of' is {str(stated)!r:.60}: write return or success, or leave it out."
        )
    return str(stated)


_BULLET_TASKS = {
    env_id.partition("Bullet")[0].lower(): env_id for env_id in ENVIRONMENTS if "Bullet" in env_id
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
