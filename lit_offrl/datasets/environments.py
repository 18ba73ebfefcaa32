"""What is known of environments by their ids: sizes, bounds, step limits, reference scores."""

from __future__ import annotations

import re
from collections.abc import Mapping
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


# d4rl-pybullet registers no references for its data; these are D4RL's, for the same environments.
# D4RL's minimum for the ant is far above what d4rl-pybullet's untrained actor earns (10.35).
ENVIRONMENTS: Mapping[str, EnvironmentFacts] = {
    facts.env_id: facts
    for facts in (
        _bullet("HopperBulletEnv-v0", "hopper", (15, 3), 20.058972, 1441.8059623430963),
        _bullet("HalfCheetahBulletEnv-v0", "halfcheetah", (26, 6), -1275.766996, 2381.6725),
        _bullet("Walker2DBulletEnv-v0", "walker2d", (22, 6), 16.523877, 1623.6476303317536),
        _bullet("AntBulletEnv-v0", "ant", (28, 8), 373.705955, 2650.495),
    )
}

_BULLET_TASKS = {
    "hopper": "HopperBulletEnv-v0",
    "halfcheetah": "HalfCheetahBulletEnv-v0",
    "walker2d": "Walker2DBulletEnv-v0",
    "ant": "AntBulletEnv-v0",
}


def env_id_from_name(name: str) -> str | None:
    """Guess the environment from a file's name, as ``hopper-bullet-mixed`` or ``bullet-hopper_x``.

    Returns:
        The gymnasium id, or None where the name says nothing.
    """
    tasks = "|".join(_BULLET_TASKS)
    stem = PurePath(name).name.lower()
    found = re.search(rf"\b({tasks})[-_]bullet|\bbullet[-_]({tasks})(?![a-z])", stem)
    return _BULLET_TASKS[found[1] or found[2]] if found else None
