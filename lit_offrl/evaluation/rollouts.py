"""Roll-outs: several environments stepped together, one call of the policy a step.

    slot 0   | episode 0 ........ | episode 3 .... | episode 4 ...
    slot 1   | episode 1 ... | episode 2 ............ | (idle)        every row is always acted on

Every episode has a fresh environment and a seed that depends on (seed, episode) alone, so what it
meets does not depend on when or where it runs. The policy always acts on ``num_envs`` rows, idle
ones included, so neither do its sums. A policy that draws noise depends on the order of its calls:
its episodes repeat for equal ``num_envs``, ``episodes`` and ``shard``.

A policy that is a ``GoalPolicy`` is told the ``goal`` in each episode's first ``info``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import gymnasium
import numpy as np
from tqdm import tqdm

from lit_offrl.common import signals
from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.common.policy import Policy, begin_episodes, named_goal
from lit_offrl.common.randomness import mix
from lit_offrl.evaluation.envs import box, make_env, require_step_limit
from lit_offrl.evaluation.video import VideoWriter

_TOLERANCE = 1e-5  # rounding at a bound does not make an action a clipped one


@dataclass(frozen=True)
class Rollouts:
    """What K episodes gave, in the order of their numbers.

    Attributes:
        episodes: numbers of the episodes (K,), int64.
        seeds: the seed that each environment was reset with (K,), int64.
        returns: undiscounted sums of rewards (K,), float64.
        lengths: steps (K,), int64.
        terminated: whether the episode ended in a terminal state, not at the step limit (K,).
        clipped: steps with an action outside the action space (K,), int64; it was clipped.
        discounted_returns: Σ γᵗ rₜ (K,), float64; NaN where no ``gamma`` was given.
        reached: steps after which ``info["success"]`` was first true (K,), int64; 0 if it never
            was, −1 where the environment does not say.
        stayed_returns: returns (K,), float64, had every step after the one that reached the goal
            been paid like that one.
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

    def __len__(self) -> int:
        return len(self.episodes)


def merge(parts: Sequence[Rollouts]) -> Rollouts:
    """Put the shards of several processes together, each episode once, in order."""
    columns = {
        item.name: np.concatenate([getattr(part, item.name) for part in parts])
        for item in fields(Rollouts)
    }
    _, first = np.unique(columns["episodes"], return_index=True)
    return Rollouts(**{name: column[first] for name, column in columns.items()})


@dataclass
class _Episode:
    """An episode under way."""

    number: int
    seed: int
    env: gymnasium.Env
    video: VideoWriter | None
    observation: np.ndarray
    goal: np.ndarray | None = None
    total: float = 0.0
    discounted: float = 0.0
    length: int = 0
    clipped: int = 0
    reached: int = -1
    stayed: float = 0.0
    paid: float = 0.0  # by the step that reached the goal
    terminated: bool = False
    done: bool = False

    def step(self, action: np.ndarray, clipped: bool, gamma: float) -> None:
        observation, reward, terminated, truncated, info = self.env.step(action)
        paid = float(reward)
        self.observation = np.asarray(observation, np.float32)
        self.total += paid
        self.discounted += gamma**self.length * paid
        self.length += 1
        self.stayed += self.paid if self.reached > 0 else paid
        if self.reached <= 0 and "success" in info:
            self.reached = self.length if info["success"] else 0
            self.paid = paid
        self.clipped += clipped
        self.terminated = terminated
        self.done = terminated or truncated
        if self.video is not None:
            self.video.add(self.env)

    def close(self) -> None:
        self.env.close()
        if self.video is not None:
            self.video.close()


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
        policy: acts on raw observations; reset where an episode begins.
        env_id: a gymnasium id.
        episodes: number of episodes of all shards together.
        seed: with the episode's number it gives the episode's own seed.
        num_envs: environments stepped together, E.
        max_episode_steps: instead of the environment's own step limit.
        shard: (rank, world size): this process runs the episodes rank, rank + world size, ….
        record_video: an ``.mp4`` of episode 0.
        video_size: (width, height) of the video in pixels; the environment's own when None.
        gamma: discount for ``discounted_returns``.
        progress: show a bar.
        stopping: asked before each step: the number of a signal that is to end the roll-outs, or 0.

    Raises:
        Interrupted: ``stopping`` has given a number.
        EvaluationError: no such environment, or one without a step limit; it gave what makes no
            sense; or the policy gave an action that is not finite or of the wrong shape.
        ConfigError: a number that cannot be.
    """
    for name, number in (("episodes", episodes), ("num_envs", num_envs)):
        if number < 1:
            raise ConfigError(f"{name} is {number}: give at least 1.")
    numbers = range(shard[0], episodes, shard[1])
    film = (record_video, video_size)
    waiting = (_begin(env_id, number, seed, max_episode_steps, film) for number in numbers)
    bar = tqdm(total=len(numbers), desc="evaluating", unit="episode", disable=not progress)
    discount = math.nan if gamma is None else gamma
    finished: list[_Episode] = []
    slots: list[_Episode | None] = [next(waiting, None) for _ in range(num_envs)]
    try:
        _run(policy, slots, waiting, finished, discount, bar, stopping)
    finally:
        bar.close()
        for episode in slots:
            if episode is not None:
                episode.close()
    finished.sort(key=lambda episode: episode.number)
    return Rollouts(
        episodes=np.array([episode.number for episode in finished], np.int64),
        seeds=np.array([episode.seed for episode in finished], np.int64),
        returns=np.array([episode.total for episode in finished], np.float64),
        lengths=np.array([episode.length for episode in finished], np.int64),
        terminated=np.array([episode.terminated for episode in finished], bool),
        clipped=np.array([episode.clipped for episode in finished], np.int64),
        discounted_returns=np.array([episode.discounted for episode in finished], np.float64),
        reached=np.array([episode.reached for episode in finished], np.int64),
        stayed_returns=np.array([episode.stayed for episode in finished], np.float64),
    )


def episode_seed(seed: int, number: int) -> int:
    """Return the seed with which the environment of an episode is reset."""
    return mix(seed, number) % 2**31


def _begin(
    env_id: str,
    number: int,
    seed: int,
    max_episode_steps: int | None,
    film: tuple[str | Path | None, tuple[int, int] | None],
) -> _Episode:
    path, size = film if number == 0 else (None, None)
    mode = None if path is None else "rgb_array"
    env = make_env(
        env_id,
        max_episode_steps=max_episode_steps,
        render_mode=mode,
        render_size=size,
        discrete=True,
    )
    require_step_limit(env, env_id)
    own = episode_seed(seed, number)
    observation, info = env.reset(seed=own)
    video = None if path is None else VideoWriter(path, env)
    first = np.asarray(observation, np.float32)
    return _Episode(number, own, env, video, first, named_goal(info))


def _run(
    policy: Policy,
    slots: list[_Episode | None],
    waiting: Iterator[_Episode],
    finished: list[_Episode],
    gamma: float,
    bar: tqdm,
    stopping: Callable[[], int],
) -> None:
    """Step all slots until nobody waits and nobody runs; ``slots`` and ``finished`` change."""
    if slots[0] is None:
        return  # fewer episodes than processes
    space = box(slots[0].env.action_space)
    low, high = space.low, space.high
    observations = np.zeros((len(slots), len(slots[0].observation)), np.float32)
    goals = None if slots[0].goal is None else np.zeros((len(slots), *slots[0].goal.shape))
    begun = np.ones(len(slots), bool)
    while any(slots):
        if number := stopping():
            raise signals.Interrupted(number)
        for row, episode in enumerate(slots):
            if episode is not None:
                observations[row] = episode.observation
                if goals is not None:
                    goals[row] = episode.goal
        if begun.any():
            begin_episodes(policy, begun, goals)
        actions = np.asarray(policy.act(observations), np.float32)
        _check(actions, slots, low.shape)
        executed = np.clip(actions, low, high)
        clipped = (np.abs(actions - executed) > _TOLERANCE).any(axis=1)
        begun = np.zeros(len(slots), bool)
        for row, episode in enumerate(slots):
            if episode is None:
                continue
            episode.step(executed[row], bool(clipped[row]), gamma)
            if episode.done:
                episode.close()
                finished.append(episode)
                slots[row] = next(waiting, None)
                begun[row] = slots[row] is not None
                bar.update()


def _check(actions: np.ndarray, slots: list[_Episode | None], shape: tuple[int, ...]) -> None:
    if actions.shape != (len(slots), *shape):
        raise EvaluationError(
            f"The policy gave actions of shape {actions.shape} for {len(slots)} environments with"
            f" actions of shape {shape}: evaluate it in the environment that it was trained for."
        )
    for row, episode in enumerate(slots):
        if episode is not None and not np.isfinite(actions[row]).all():
            raise EvaluationError(
                f"The policy's action at step {episode.length} of episode {episode.number} is not"
                " finite (NaN or infinity): its training went wrong, or its input is out of range."
            )
