"""maze2d: steps a second of collecting, and returns of known policies beside D4RL's references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import measure
from lit_offrl.collecting.planned import PlannedCollection
from lit_offrl.common.policy import Policy
from lit_offrl.datasets.environments import ENVIRONMENTS
from lit_offrl.envs.mazes import MAZE2D
from lit_offrl.envs.planners import WaypointPlanner
from lit_offrl.evaluation.envs import make_env
from lit_offrl.evaluation.rollouts import rollout

MAZES = ("umaze", "medium", "large")


class RandomPolicy:
    """Uniform actions in [−1, 1]²."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Forget nothing."""

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Draw actions (E, 2)."""
        return self._random.uniform(-1, 1, (len(observations), 2)).astype(np.float32)


@dataclass(frozen=True)
class MazeSpeed:
    """Steps a second of the one run, and of the same planner through gymnasium's interface."""

    maze: str
    steps_per_second: float
    gymnasium_steps_per_second: float
    ratio: float


@dataclass(frozen=True)
class MazeScore:
    """Mean return and score of a policy, and the score's standard error."""

    maze: str
    policy: str
    episodes: int
    mean_return: float
    reference: float
    score: float
    error: float


def run_speed(
    *, maze: str = "large", steps: int = 20_000, seed: int = 0, budget: float = 3.0
) -> MazeSpeed:
    """Collect with noise 0.5, without writing, in turns with plain stepping."""
    env_id = f"lit_offrl/maze2d-{maze}-v1"
    options: dict[str, Any] = {"env": env_id, "steps": steps, "noise": 0.5, "seed": seed}
    env, policy = make_env(env_id), WaypointPlanner(MAZE2D[maze])
    few = max(steps // 10, 1)

    def step() -> None:
        observation, _ = env.reset(seed=seed)
        policy.reset()
        for _ in range(few):
            observation, *_ = env.step(policy.act(observation[None])[0])

    step()
    runs = [lambda: PlannedCollection(output=Path(), **options).run(), step]
    collecting, stepping = measure(runs, torch.device("cpu"), budget=budget)
    speeds = steps / collecting.seconds, few / stepping.seconds
    return MazeSpeed(maze, *speeds, ratio=speeds[0] / speeds[1])


def run_scores(
    *, mazes: Sequence[str] = MAZES, episodes: int = 100, seed: int = 0
) -> list[MazeScore]:
    """Score random actions, the planner, and the planner as the references' own script used it."""
    results = []
    for name in mazes:
        env_id = f"lit_offrl/maze2d-{name}-v1"
        facts = ENVIRONMENTS[env_id]
        low, high = facts.ref_min_score, facts.ref_max_score
        policies: dict[str, tuple[Policy, int, float]] = {  # policy, environments, its reference
            "random": (RandomPolicy(seed), 20, low),
            "planner": (WaypointPlanner(MAZE2D[name], seed=seed), 20, high),
            "planned once": (WaypointPlanner(MAZE2D[name], seed=seed, replan=False), 1, high),
        }
        for label, (policy, num_envs, reference) in policies.items():
            returns = rollout(
                policy, env_id, episodes=episodes, seed=seed, num_envs=num_envs
            ).returns
            scores = 100 * (returns - low) / (high - low)
            error = float(scores.std() / np.sqrt(episodes))
            mean = float(returns.mean())
            results.append(
                MazeScore(name, label, episodes, mean, reference, float(scores.mean()), error)
            )
    return results
