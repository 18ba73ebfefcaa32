"""Collecting with any trained policy, or with random actions, and noise that lasts.

    slot 0   | episode 0 ........ | episode 3 .... |          every slot is always acted on
    slot 1   | episode 1 ... | episode 2 ............ |       rows: episodes 0, 1, 2, … in order

An episode's environment and noise depend on (seed, its number) alone, and its rows stand in the
file where its number says, so the data do not depend on how many environments are stepped together
(but for what rounding makes of a policy's sums).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lit_offrl.collecting.base import origin, progress_bar, return_summary
from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.common.policy import Policy, begin_episodes, named_goal
from lit_offrl.common.randomness import mix
from lit_offrl.datasets.hdf5 import write_hdf5
from lit_offrl.evaluation.envs import box, make_env, require_step_limit

_NOISE = 8  # keeps the streams of one seed apart
_COLUMNS = {
    "observations": np.float32,
    "actions": np.float32,
    "rewards": np.float32,
    "terminals": np.bool_,
    "timeouts": np.bool_,
    "next_observations": np.float32,
}


class _Episode:
    """An episode: its environment, its noise, and the rows so far.

    Args:
        number: of the episode; with the seed it gives those of environment and noise.
        options: ``env``, ``seed``, ``noise``, ``hold``, ``max_episode_steps``.
        random: whether actions are drawn, rather than a policy's disturbed.
    """

    def __init__(self, number: int, options: argparse.Namespace, random: bool) -> None:
        self.number = number
        self._env = make_env(options.env, max_episode_steps=options.max_episode_steps)
        space = box(self._env.action_space)
        self._low, self._high = space.low, space.high
        self._noise, self._hold, self._is_random = options.noise, options.hold, random
        self._random = np.random.default_rng(mix(options.seed, number, _NOISE))
        self._held: Any = None  # what was drawn last, (a,)
        observation, info = self._env.reset(seed=mix(options.seed, number) % 2**31)
        self.observation = np.asarray(observation, np.float32)
        self.goal = named_goal(info)
        self.rows: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        self.done = False

    def explore(self, action: np.ndarray | None) -> np.ndarray:
        """Return the action to take (a,); what is drawn lasts ``hold`` steps in the mean."""
        if self._held is None or self._random.random() < 1 / self._hold:
            shape = self._low.shape
            if self._is_random:
                self._held = self._random.uniform(self._low, self._high)
            else:
                half = (self._high - self._low) / 2
                self._held = self._noise * half * self._random.standard_normal(shape)
        if action is None:
            return self._held.astype(np.float32)
        return np.clip(action + self._held, self._low, self._high).astype(np.float32)

    def step(self, action: np.ndarray) -> None:
        """Take one step and keep it."""
        following, reward, terminated, truncated, _ = self._env.step(action)
        after = np.array(following, np.float32)
        row = (self.observation, action, reward, terminated, truncated and not terminated, after)
        for column, value in zip(self.rows.values(), row, strict=True):
            column.append(value)
        self.observation = after
        self.done = terminated or truncated

    def close(self) -> None:
        self._env.close()


class PolicyCollection:
    """Whole episodes of a checkpoint's policy, or of uniform actions, until there are N steps.

    A policy's actions get normal noise of ``noise`` half-ranges and are clipped. Each draw, also
    one of a uniform action, is kept for as many steps as a geometric distribution of mean ``hold``
    says: where noise that is new at every step averages out before it moves anything, as in
    Mountain Car, noise that lasts does not.

    Args:
        options: ``env``, ``policy`` (a checkpoint, or None for uniform actions), ``steps``,
            ``seed``, ``noise``, ``hold``, ``num_envs``, ``max_episode_steps``; for ``save`` also
            ``output`` and ``next_observations``.

    Raises:
        ConfigError: an option cannot be, the environment has unbounded actions, or the checkpoint
            is of an environment of other sizes.
        EvaluationError: there is no such environment, it has no step limit, or its spaces are no
            continuous vectors.
    """

    target_reached: bool | None = None

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        if not options.hold >= 1:
            raise ConfigError(f"--hold {options.hold:g}: give the steps that noise lasts, from 1.")
        env = make_env(options.env, max_episode_steps=options.max_episode_steps)
        self.action_space = box(env.action_space)
        sizes = (box(env.observation_space).shape[0], self.action_space.shape[0])
        env.close()
        self._limit = require_step_limit(env, options.env)
        if not np.isfinite([self.action_space.low, self.action_space.high]).all():
            raise ConfigError(
                f"Environment '{options.env}' has unbounded actions: wrap it so that they are."
            )
        self._policy = None if options.policy is None else _load(options.policy, options.env, sizes)
        self._episodes: list[_Episode] = []

    def run(self) -> None:
        """Collect until there is enough.

        An episode begins if those under way may leave steps over, were all as long as they can be:
        so there is never much more than is wanted, and only the last episode is cut.
        """
        chosen = self.options
        slots: list[_Episode | None] = [None] * chosen.num_envs
        with progress_bar(chosen.steps, "collecting") as bar:
            try:
                self._run(slots, bar)
            finally:
                for episode in slots:
                    if episode is not None:
                        episode.close()

    def _run(self, slots: list[_Episode | None], bar: tqdm) -> None:
        finished = 0
        shape = (len(slots), *self.action_space.shape)
        observations: np.ndarray | None = None
        goals: np.ndarray | None = None
        while True:
            begun = np.zeros(len(slots), bool)
            for slot, episode in enumerate(slots):
                going = sum(one is not None for one in slots)
                if episode is None and finished + going * self._limit < self.options.steps:
                    number = len(self._episodes)
                    slots[slot] = begins = _Episode(number, self.options, self._policy is None)
                    self._episodes.append(begins)
                    begun[slot] = True
            if not any(slots):
                return
            if observations is None:
                first = self._episodes[0]
                observations = np.zeros((len(slots), len(first.observation)), np.float32)
                if first.goal is not None:
                    goals = np.zeros((len(slots), *first.goal.shape), np.float32)
            for slot, episode in enumerate(slots):
                if episode is not None:
                    observations[slot] = episode.observation
                    if goals is not None:
                        goals[slot] = episode.goal
            actions = None
            if self._policy is not None:
                if begun.any():
                    begin_episodes(self._policy, begun, goals)
                actions = np.asarray(self._policy.act(observations), np.float32)
                if actions.shape != shape or not np.isfinite(actions).all():
                    raise EvaluationError(
                        f"{self.options.policy}: its policy's actions are not finite or not of"
                        f" shape {shape}: its training went wrong."
                    )
            for slot, episode in enumerate(slots):
                if episode is None:
                    continue
                episode.step(episode.explore(None if actions is None else actions[slot]))
                if episode.done:
                    finished += len(episode.rows["rewards"])
                    bar.update(len(episode.rows["rewards"]))
                    episode.close()
                    slots[slot] = None

    def recorded(self) -> tuple[dict[str, np.ndarray], bool]:
        """Return at most N rows, the last of which ends an episode, and whether it was cut.

        A cut episode ends in a timeout: it did not fail, and nothing is known beyond its last row.
        """
        begun = [one for one in self._episodes if one.rows["next_observations"]]
        parts = [one for one in begun if one.done] or begun[:1]  # fewer only where interrupted
        columns: dict[str, np.ndarray] = {}
        for name, kind in _COLUMNS.items():
            columns[name] = np.concatenate([np.asarray(one.rows[name], kind) for one in parts])
        rows = self.options.steps
        columns = {name: column[:rows] for name, column in columns.items()}
        cut = not (columns["terminals"][-1] or columns["timeouts"][-1])
        columns["timeouts"][-1] |= cut
        return columns, cut

    def save(self, command: str, *, complete: bool) -> int:
        """Write what there is, if anything, and return the number of rows."""
        if not any(one.rows["next_observations"] for one in self._episodes):
            return 0
        columns, cut = self.recorded()
        chosen, rows = self.options, len(columns["rewards"])
        if not chosen.next_observations:
            del columns["next_observations"]
        attributes = {
            "complete": complete,
            "environment_steps": rows,
            "rows": rows,
            **self.facts(columns, cut),
            **origin(chosen, self.action_space, command),
        }
        write_hdf5(chosen.output, columns, attributes)
        return rows

    def facts(self, columns: dict[str, np.ndarray], cut: bool) -> dict[str, Any]:
        """Say how the rows came to be and how their episodes went; None is to be left out."""
        checkpoint = self.options.policy
        return {
            "kind": "random" if checkpoint is None else "policy",
            "algorithm": "uniform random actions"
            if checkpoint is None
            else "a checkpoint's policy",
            "policy": None if checkpoint is None else str(checkpoint),
            "noise": None if checkpoint is None else self.options.noise,
            "hold": self.options.hold,
            "last_episode_cut": cut,
            **return_summary(columns, cut),
        }


def _load(path: Path, env_id: str, sizes: tuple[int, int]) -> Policy:
    """Return a checkpoint's policy for an environment with ``sizes`` (o, a)."""
    from lit_offrl.common.quiet import say
    from lit_offrl.modules import load_module  # here: it imports Lightning, which takes seconds

    module = load_module(path)
    spec = module.spec
    trained = None if spec is None else (spec.observation_dim, spec.action_dim)
    if trained is not None and trained != sizes:
        raise ConfigError(
            f"{path}: acts from {trained[0]} numbers to {trained[1]}, but '{env_id}' has"
            f" {sizes[0]} and {sizes[1]}: give a checkpoint of that environment."
        )
    if spec is not None and spec.env_id not in (None, env_id):
        say(f"{path} was trained on data of {spec.env_id}, not {env_id}.")
    return module.policy()
