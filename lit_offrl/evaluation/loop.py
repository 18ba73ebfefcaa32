"""The one loop that steps environments: several at a time, one call of the policy for each step.

    slot 0   | episode 0 ........ | episode 3 .... | episode 4 ...
    slot 1   | episode 1 ... | episode 2 ............ | (idle)        every row is always acted on

An ``Episode`` has an environment of its own and says what becomes of its steps: evaluation adds up
rewards, collecting keeps rows. The policy always acts on the rows of all slots, idle ones included,
so what it computes for one episode does not depend on how many others are under way.

Of an environment with several tasks, ``task_ids``, the episodes take them in turn. A policy that
is a ``GoalPolicy`` is given the ``goal`` of each episode's first ``info``, and one
that is a ``RewardPolicy`` the rewards of each step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import gymnasium
import numpy as np

from lit_offrl.common import signals
from lit_offrl.common.errors import EvaluationError
from lit_offrl.common.policy import Policy, RewardPolicy, begin_episodes, named_goal
from lit_offrl.common.seeds import mix
from lit_offrl.evaluation.envs import box


class Step(NamedTuple):
    """One step of an episode; observations (o,) and the action (a,) are float32."""

    observation: np.ndarray
    action: np.ndarray
    reward: float
    terminated: bool
    truncated: bool
    next_observation: np.ndarray
    info: dict[str, Any]


class Episode:
    """A running episode in an environment of its own; subclasses keep its steps.

    Args:
        number: Number of the episode, which with ``seed`` gives the environment's own seed.
        env: Environment, not yet reset; the episode closes it.
        seed: Seed of all episodes.
    """

    reward = 0.0
    """The reward of the last step."""

    def __init__(self, number: int, env: gymnasium.Env, seed: int) -> None:
        self.number, self.env = number, env
        self.seed = episode_seed(seed, number)
        observation, info = env.reset(seed=self.seed, **_task_options(env, number))
        self.observation = np.array(observation, np.float32)
        self.goal = named_goal(info)
        self.task = int(info.get("task", 0))
        self.length = 0
        self.done = False

    def step(self, action: np.ndarray) -> None:
        """Take one step with what comes of the policy's action (a,), and keep it."""
        executed = self.execute(action)
        following, reward, terminated, truncated, info = self.env.step(executed)
        after = np.array(following, np.float32)
        step = Step(self.observation, executed, float(reward), terminated, truncated, after, info)
        self.length += 1
        self.observation, self.reward = after, step.reward
        self.keep(step)
        self.done = terminated or truncated

    def execute(self, action: np.ndarray) -> np.ndarray:
        """Return the action (a,) that is executed where the policy gives ``action`` (a,)."""
        return action

    def keep(self, step: Step) -> None:
        """Keep a step; ``length`` counts it already."""

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


E = TypeVar("E", bound=Episode)


def _task_options(env: gymnasium.Env, number: int) -> dict[str, Any]:
    """Return the options that give episode ``number`` its task, where there are ``task_ids``."""
    tasks = env.get_wrapper_attr("task_ids") if env.has_wrapper_attr("task_ids") else ()
    return {"options": {"task_id": tasks[number % len(tasks)]}} if tasks else {}


def episode_seed(seed: int, number: int) -> int:
    """Return the seed with which the environment of an episode is reset."""
    return mix(seed, number) % 2**31


def step_in_turn(episodes: Sequence[E], actions: Sequence[np.ndarray]) -> None:
    """Step episodes one after another."""
    for episode, action in zip(episodes, actions, strict=True):
        episode.step(action)


def run_episodes(
    policy: Policy,
    begin: Callable[[int], E | None],
    num_envs: int,
    *,
    finished: Callable[[E], None] = lambda _: None,
    step: Callable[[Sequence[E], Sequence[np.ndarray]], None] = step_in_turn,
    stopping: Callable[[], int] = lambda: 0,
    who: str = "The policy",
) -> None:
    """Run episodes until none is running and none begins. All are closed in the end.

    Args:
        policy: Acts on the raw observations of all slots; it is reset where an episode begins.
        begin: Returns the next episode, or None where none is to begin now; called for each empty
            slot before each step, with the number of episodes under way.
        num_envs: Number of slots, E.
        finished: Called with each episode that is done.
        step: Steps the episodes under way, each with its action.
        stopping: Called before each step; returns the number of a signal that is to end the
            episodes, or 0.
        who: Name of the policy in messages.

    Raises:
        Interrupted: ``stopping`` has given a number.
        EvaluationError: The policy gave an action that is not finite or of the wrong shape.
    """
    slots: list[E | None] = [None] * num_envs
    observations: np.ndarray | None = None
    goals: np.ndarray | None = None
    rewarded = policy if isinstance(policy, RewardPolicy) else None
    try:
        while True:
            begun = np.full(num_envs, observations is None)  # a policy may remember earlier ones
            for row in range(num_envs):
                if slots[row] is None:
                    slots[row] = begin(sum(each is not None for each in slots))
                    begun[row] |= slots[row] is not None
            running = {row: each for row, each in enumerate(slots) if each is not None}
            if not running:
                return
            if number := stopping():
                raise signals.Interrupted(number)
            first = next(iter(running.values()))
            if observations is None:
                observations = np.zeros_like([first.observation] * num_envs)
                if first.goal is not None:
                    goals = np.zeros_like([first.goal] * num_envs)
            for row, episode in running.items():
                observations[row] = episode.observation
                if goals is not None:
                    goals[row] = episode.goal
            if begun.any():
                begin_episodes(policy, begun, goals)
            actions = np.asarray(policy.act(observations), np.float32)
            require_actions(actions, num_envs, running, who)
            step(list(running.values()), [actions[row] for row in running])
            if rewarded is not None:
                rewards = np.zeros(num_envs, np.float32)
                rewards[list(running)] = [episode.reward for episode in running.values()]
                rewarded.earn(rewards)
            for row, episode in running.items():
                if episode.done:
                    episode.close()
                    slots[row] = None
                    finished(episode)
    finally:
        for remaining in slots:
            if remaining is not None:
                remaining.close()


def require_actions(
    actions: np.ndarray, num_envs: int, running: Mapping[int, Episode], who: str
) -> None:
    """Refuse what a policy gave for E environments, of which some rows are of episodes under way.

    Raises:
        EvaluationError: It is not of the shape (E, a), or an episode's action is not finite.
    """
    shape = box(next(iter(running.values())).env.action_space).shape
    if actions.shape != (num_envs, *shape):
        raise EvaluationError(
            f"{who} gave actions of shape {actions.shape} for {num_envs} environments with actions"
            f" of shape {shape}: use it in the environment that it was trained for."
        )
    for row, episode in running.items():
        if not np.isfinite(actions[row]).all():
            raise EvaluationError(
                f"{who}'s action at step {episode.length} of episode {episode.number} is not finite"
                " (NaN or infinity): its training went wrong, or its input is out of range."
            )
