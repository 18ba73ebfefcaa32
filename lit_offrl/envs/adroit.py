"""D4RL's Adroit hand: pen, door, hammer and relocate, from gymnasium-robotics.

Observations and resets are the same there. Put right here: the step limit and the end of a dropped
pen, and the rewards, which are computed as D4RL does (``hand_manipulation_suite/``):
gymnasium-robotics 1.4.2 *pays* for the distance between palm and object, D4RL charges for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from lit_offrl.envs.extras import require

_DROPPED = 0.075  # metres above the origin, where the pen's centre is lost


def make(task: str, **options: Any) -> gymnasium.Env:
    """Make the environment of ``task``; ``options`` are gymnasium-robotics', e.g. ``render_mode``.

    Raises:
        EvaluationError: gymnasium-robotics or mujoco is not installed.
    """
    module, name, _, reward = TASKS[task]
    found = require(f"gymnasium_robotics.envs.adroit_hand.{module}", task)
    return D4RLAdroit(getattr(found, name)(**options), reward)


class D4RLAdroit(gymnasium.Wrapper):
    """An Adroit environment with D4RL's reward, and its end where the pen is dropped.

    ``reward`` maps the simulator's data after the step to (reward, whether the episode ends).
    """

    def __init__(self, env: gymnasium.Env, reward: Callable[[Any], tuple[float, bool]]) -> None:
        super().__init__(env)
        self._reward = reward

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Step; ``info["success"]`` is gymnasium-robotics', which is D4RL's."""
        observation, _, _, truncated, info = self.env.step(action)
        reward, ended = self._reward(self.env.unwrapped.data)  # type: ignore[attr-defined]
        return observation, reward, ended, truncated, {**info, "success": bool(info["success"])}


def _gap(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.linalg.norm(first - second))


def _pen(data: Any) -> tuple[float, bool]:
    def direction(what: str) -> np.ndarray:
        axis = data.site(f"{what}_top").xpos - data.site(f"{what}_bottom").xpos
        return axis / np.linalg.norm(axis)  # both are rigid: its length is that at the start

    position = data.body("Object").xpos
    gap = _gap(position, data.site("eps_ball").xpos)
    similarity = float(direction("object") @ direction("target"))
    dropped = bool(position[2] < _DROPPED)
    near = gap < 0.075
    bonus = 10 * (near and similarity > 0.9) + 50 * (near and similarity > 0.95)
    return similarity - gap + bonus - 5 * dropped, dropped


def _door(data: Any) -> tuple[float, bool]:
    angle = float(data.joint("door_hinge").qpos[0])
    cost = 0.1 * _gap(data.site("S_grasp").xpos, data.site("S_handle").xpos)
    cost += 0.1 * (angle - 1.57) ** 2 + 1e-5 * float(np.square(data.qvel).sum())
    return 2 * (angle > 0.2) + 8 * (angle > 1.0) + 10 * (angle > 1.35) - cost, False


def _hammer(data: Any) -> tuple[float, bool]:
    hammer, head, nail = (
        data.body("Object").xpos,
        data.site("tool").xpos,
        data.site("S_target").xpos,
    )
    depth = _gap(nail, data.site("nail_goal").xpos)
    cost = 0.1 * _gap(data.site("S_grasp").xpos, hammer) + _gap(head, nail) + 10 * depth
    cost += 0.01 * float(np.linalg.norm(data.qvel))
    lifted = hammer[2] > 0.04 and head[2] > 0.04
    return 2 * bool(lifted) + 25 * (depth < 0.02) + 75 * (depth < 0.01) - cost, False


def _relocate(data: Any) -> tuple[float, bool]:
    ball, palm, target = (
        data.body("Object").xpos,
        data.site("S_grasp").xpos,
        data.site("target").xpos,
    )
    gap = _gap(ball, target)
    reward = 10 * (gap < 0.1) + 20 * (gap < 0.05) - 0.1 * _gap(palm, ball)
    if ball[2] > 0.04:
        reward += 1 - 0.5 * _gap(palm, target) - 0.5 * gap
    return reward, False


# task → module and class in gymnasium_robotics.envs.adroit_hand, D4RL's step limit, its reward
TASKS: Mapping[str, tuple[str, str, int, Callable[[Any], tuple[float, bool]]]] = {
    "pen": ("adroit_pen", "AdroitHandPenEnv", 100, _pen),
    "door": ("adroit_door", "AdroitHandDoorEnv", 200, _door),
    "hammer": ("adroit_hammer", "AdroitHandHammerEnv", 200, _hammer),
    "relocate": ("adroit_relocate", "AdroitHandRelocateEnv", 200, _relocate),
}
