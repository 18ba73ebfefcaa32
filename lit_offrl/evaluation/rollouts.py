"""Roll-outs: what K episodes of a policy earn, by the loop of ``evaluation.loop``.

Every episode has a fresh environment and a seed that depends on (seed, episode) alone, so what it
meets does not depend on when or where it runs. A policy that draws noise depends on the order of
its calls: its episodes repeat for equal ``num_envs``, ``episodes`` and ``shard``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import gymnasium
import numpy as np
from tqdm import tqdm

from lit_offrl.common import signals
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.policy import Policy
from lit_offrl.evaluation.envs import box, make_env, require_step_limit
from lit_offrl.evaluation.loop import Episode, Step, run_episodes
from lit_offrl.evaluation.video import VideoWriter

_TOLERANCE = 1e-5  # rounding at a bound does not make an action a clipped one


@dataclass(frozen=True)
class Rollouts:
    """The results of K episodes, in the order of their numbers.

    Attributes:
        episodes: Numbers of the episodes (K,), int64.
        seeds: Seeds that the environments were reset with (K,), int64.
        returns: Undiscounted sums of rewards (K,), float64.
        lengths: Numbers of steps (K,), int64.
        terminated: Whether each episode ended in a terminal state, not at the step limit (K,).
        clipped: Numbers of steps whose action was outside the action space and was clipped (K,),
            int64.
        discounted_returns: Σ γᵗ rₜ (K,), float64; NaN without a ``gamma``.
        reached: Numbers of steps after which ``info["success"]`` was first true (K,), int64; 0 if
            it never was, −1 where the environment does not say.
        stayed_returns: Returns (K,), float64, if every step after the one that reached the goal
            had the reward of that one.
        tasks: Numbers of the tasks (K,), int64, as ``info["task"]`` says; 0 where it does not.
    """

    episodes: np.ndarray
    seeds: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray
    clipped: np.ndarray
    discounted_returns: np.ndarray
    reached: np.ndarray
    stayed_returns: np.ndarray
    tasks: np.ndarray


def merge(parts: Sequence[Rollouts]) -> Rollouts:
    """Join the shards of several processes: each episode once, in the order of their numbers."""
    columns = {
        item.name: np.concatenate([getattr(part, item.name) for part in parts])
        for item in fields(Rollouts)
    }
    _, first = np.unique(columns["episodes"], return_index=True)
    return Rollouts(**{name: column[first] for name, column in columns.items()})


class _Sums(Episode):
    """An episode whose rewards are added up, discounted by ``gamma`` too, and may be filmed."""

    def __init__(
        self, number: int, env: gymnasium.Env, seed: int, gamma: float, film: str | Path | None
    ) -> None:
        super().__init__(number, env, seed)
        self._gamma = gamma
        self._video = None if film is None else VideoWriter(film, env)
        self._space = box(env.action_space)
        self.total = self.discounted = self.stayed = 0.0
        self.clipped, self.reached = 0, -1
        self._reward_at_goal = 0.0
        self.terminated = False

    def execute(self, action: np.ndarray) -> np.ndarray:
        """Return the action within the action space, and count where it was outside."""
        executed = np.clip(action, self._space.low, self._space.high)
        self.clipped += bool((np.abs(action - executed) > _TOLERANCE).any())
        return executed

    def keep(self, step: Step) -> None:
        """Add a step's reward up."""
        self.total += step.reward
        self.discounted += self._gamma ** (self.length - 1) * step.reward
        self.stayed += self._reward_at_goal if self.reached > 0 else step.reward
        if self.reached <= 0 and "success" in step.info:
            self.reached = self.length if step.info["success"] else 0
            self._reward_at_goal = step.reward
        self.terminated = step.terminated
        if self._video is not None:
            self._video.add(self.env)

    def close(self) -> None:
        """Close the environment and finish the video."""
        super().close()
        if self._video is not None:
            self._video.close()


def rollout(
    policy: Policy,
    env_id: str,
    *,
    episodes: int,
    seed: int,
    num_envs: int = 8,
    max_episode_steps: int | None = None,
    shard: tuple[int, int] = (0, 1),
    record_video: str | Path | None = None,
    video_size: tuple[int, int] | None = None,
    gamma: float | None = None,
    progress: bool = False,
    stopping: Callable[[], int] = signals.received,
) -> Rollouts:
    """Run episodes 0 … ``episodes`` − 1 of a policy, or this process's share of them.

    Args:
        policy: Policy that acts on raw observations; it is reset where an episode begins.
        env_id: Gymnasium id of the environment.
        episodes: Number of episodes of all shards together, at least 1.
        seed: Seed that gives each episode its own, with the episode's number.
        num_envs: Number of environments stepped together, E, at least 1.
        max_episode_steps: Step limit instead of the environment's own.
        shard: (rank, world size): this process runs the episodes rank, rank + world size, ….
        record_video: Path of an ``.mp4`` of episode 0.
        video_size: (width, height) of the video in pixels; None for the environment's own.
        gamma: Discount in [0, 1] of ``discounted_returns``.
        progress: Whether to show a bar.
        stopping: Called before each step; returns the number of a signal that is to end the
            roll-outs, or 0.

    Raises:
        Interrupted: ``stopping`` has given a number.
        EvaluationError: There is no such environment, it has no step limit or gave what makes no
            sense, or the policy gave an action that is not finite or of the wrong shape.
        ConfigError: A number is outside its range.
    """
    for name, number in (("episodes", episodes), ("num_envs", num_envs)):
        if number < 1:
            raise ConfigError(f"{name} is {number}: give at least 1.")
    numbers = range(shard[0], episodes, shard[1])
    waiting = iter(numbers)
    done: list[_Sums] = []

    def begin(under_way: int) -> _Sums | None:
        number = next(waiting, None)
        if number is None:
            return None
        film, size = (record_video, video_size) if number == 0 else (None, None)
        env = make_env(
            env_id,
            max_episode_steps=max_episode_steps,
            render_mode=None if film is None else "rgb_array",
            render_size=size,
            discrete=True,
        )
        require_step_limit(env, env_id)
        return _Sums(number, env, seed, math.nan if gamma is None else gamma, film)

    with tqdm(total=len(numbers), desc="evaluating", unit="episode", disable=not progress) as bar:

        def finished(episode: _Sums) -> None:
            done.append(episode)
            bar.update()

        run_episodes(policy, begin, num_envs, finished=finished, stopping=stopping)
    done.sort(key=lambda episode: episode.number)

    def column(name: str, kind: type) -> np.ndarray:
        return np.array([getattr(episode, name) for episode in done], kind)

    return Rollouts(
        episodes=column("number", np.int64),
        seeds=column("seed", np.int64),
        returns=column("total", np.float64),
        lengths=column("length", np.int64),
        terminated=column("terminated", bool),
        clipped=column("clipped", np.int64),
        discounted_returns=column("discounted", np.float64),
        reached=column("reached", np.int64),
        stayed_returns=column("stayed", np.float64),
        tasks=column("task", np.int64),
    )
