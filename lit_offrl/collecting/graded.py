"""Collecting Mountain Car with controllers of graded skill, for learning from several policies.

    grade 0 ... | grade 1 ... | ... | grade K−1 ... | grade 0 ... | ...     ``|`` ends an episode

Controllers take turns, so an interrupted collection is balanced. DVF's paper (Mazoure et al., 2023,
section 4.1) does not say which policies its Mountain Car data are of; these are lit-offrl's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.continuous_mountain_car import Continuous_MountainCarEnv

from lit_offrl.collecting.batched import BATCH, BatchedCollection
from lit_offrl.common.seeds import mix
from lit_offrl.evaluation.recorder import episode_returns


def _in_turn(steps: list[dict[str, np.ndarray]], lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Put columns (E, …) of each step one episode after another, each of ``lengths`` (E,) rows."""
    inside = np.arange(len(steps)) < lengths[:, None]
    return {
        name: np.stack([step[name] for step in steps], axis=1)[inside].astype(np.float32)
        for name in steps[0]
    }


@dataclass(kw_only=True)
class GradedCollection(BatchedCollection):
    """Mountain Car by K controllers from random (grade 0) to good (K−1), an episode each in turn.

    A controller of skill s pushes the way the car rolls, which pumps energy into it, with
    probability (1 + s) / 2 and against it otherwise, with a force that is uniform in [0, 1): s = 0
    is uniformly random. Skills are k / (K − 1), and 1 where there is one controller only.

    Args:
        policies: Number of controllers, K, at most 1000.

    Raises:
        ConfigError: the environment is no Mountain Car, has no step limit, or there are more than
            1000 policies.
    """

    planner: ClassVar[str] = "graded"
    kind: ClassVar[type[gymnasium.Env]] = Continuous_MountainCarEnv
    example: ClassVar[str] = "lit_offrl/mountain-car-v0"
    policies: Annotated[int, "[1, 1000]"] = 10  # what each earned has to fit into attributes

    def __post_init__(self) -> None:
        super().__post_init__()
        self.skills = np.linspace(0, 1, self.policies) if self.policies > 1 else np.ones(1)
        self._noise = np.random.default_rng(mix(self.seed, 6))

    def _batch(self) -> dict[str, np.ndarray]:
        rounds = max(1, BATCH // (len(self.skills) * self._limit))
        policy = np.tile(np.arange(len(self.skills)), rounds)
        along = (1 + self.skills[policy]) / 2
        # as float32 the start is stored whole, and all that follows can be replayed from the file
        position = self._random.uniform(-0.6, -0.4, len(policy)).astype(np.float32)
        velocity = np.zeros_like(position)
        lengths = np.full(len(policy), self._limit)
        going = np.ones(len(policy), bool)
        steps: list[dict[str, np.ndarray]] = []
        # more steps than are wanted are of no use, even to the first episode
        for step in range(1, min(self._limit, self.steps) + 1):
            force, luck = self._random.random((2, len(policy)))
            action = np.where((velocity >= 0) == (luck < along), force, -force)
            if self.noise:
                noise = self._noise.standard_normal(len(policy))
                action = np.clip(action + self.noise * noise, -1, 1)
            action = action.astype(np.float32)
            before = np.stack([position, velocity], axis=1)
            position, velocity = self._roll(position, velocity, action, first=step == 1)
            arrived = (position >= self._env.goal_position) & (velocity >= self._env.goal_velocity)
            row = {
                "observations": before,
                "actions": action[:, None],
                "rewards": 100.0 * arrived - 0.1 * action.astype(np.float64) ** 2,
                "terminals": arrived,
                "next_observations": np.stack([position, velocity], axis=1),
                "policy": policy,
            }
            steps.append(row)
            lengths[arrived & going] = step
            going &= ~arrived
            if not going.any():
                break
        columns = _in_turn(steps, lengths)
        columns["terminals"] = columns["terminals"] > 0
        ends = np.cumsum(np.minimum(lengths, len(steps))) - 1
        columns["timeouts"] = np.zeros(len(columns["rewards"]), bool)
        columns["timeouts"][ends] = (lengths <= len(steps)) & ~columns["terminals"][ends]
        return columns

    def _roll(
        self, position: np.ndarray, velocity: np.ndarray, action: np.ndarray, *, first: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Move cars (E,), float32, as gymnasium's does one: in float32, but with math's cosine.

        ``math.cos`` and not NumPy's, whose last bit is not the same on all machines. The angle of
        the first step is float64, since the environment keeps its first state so.
        """
        env, angle = self._env, 3 * (position.astype(np.float64) if first else position)
        slope = 0.0025 * np.fromiter(map(math.cos, angle.tolist()), np.float64, len(angle))
        velocity = velocity + (action * env.power - slope.astype(np.float32))
        top, left = np.float32(env.max_speed), np.float32(env.min_position)
        velocity = np.clip(velocity, -top, top)
        position = np.clip(position + velocity, left, np.float32(env.max_position))
        return position, np.where((position == left) & (velocity < 0), np.float32(0), velocity)

    def facts(self, columns: dict[str, np.ndarray], cut: bool) -> dict[str, Any]:
        """Say how skilled each controller is and what it earned in its whole episodes."""
        ends = columns["terminals"] | columns["timeouts"]
        grade, arrived = columns["policy"][ends].astype(int), columns["terminals"][ends]
        returns = episode_returns(columns)
        whole = slice(None, -1 if cut else None)
        number = len(self.skills)
        episodes = np.bincount(grade[whole], minlength=number)
        with np.errstate(invalid="ignore"):  # NaN for a grade without a whole episode
            mean = np.bincount(grade[whole], returns[whole], number) / episodes
            success = np.bincount(grade[whole], arrived[whole], number) / episodes
        return {
            "kind": "graded",
            "algorithm": "pushes the way the car rolls with probability (1 + skill) / 2, else"
            " against it, with a force uniform in [0, 1)",
            "noise": self.noise,
            "policies": number,
            "policy_skill": self.skills,
            "policy_episodes": episodes,
            "policy_return_mean": mean,
            "policy_success": success,
        }
