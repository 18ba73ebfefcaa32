"""Collecting with any trained policy, or with random actions, and noise that lasts.

An episode's environment and noise depend on (seed, its number) alone, and its rows stand in the
file where its number says, so the data do not depend on how many environments are stepped together
(but for what rounding makes of a policy's sums).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np

from lit_offrl.collecting.base import (
    Collection,
    load_fitting,
    progress_bar,
    require_bounded,
    summary_of_episodes,
)
from lit_offrl.collecting.exploration import Exploration
from lit_offrl.common.policy import Policy
from lit_offrl.common.quiet import say
from lit_offrl.common.seeds import mix
from lit_offrl.evaluation.envs import box, make_env, require_step_limit
from lit_offrl.evaluation.loop import Episode, Step, run_episodes

_NOISE = 8  # keeps the streams of one seed apart
_COLUMNS = {
    "observations": np.float32,
    "actions": np.float32,
    "rewards": np.float32,
    "terminals": np.bool_,
    "timeouts": np.bool_,
    "next_observations": np.float32,
}


class _Episode(Episode):
    """An episode: its environment, its noise, and the rows so far."""

    def __init__(self, number: int, env: gymnasium.Env, collection: PolicyCollection) -> None:
        super().__init__(number, env, collection.seed)
        self._draws = collection.policy is None
        self._explore = Exploration(
            collection.action_space,
            noise=collection.noise,
            hold=collection.hold,
            seed=mix(collection.seed, number, _NOISE),
        )
        self.rows: list[tuple[Any, ...]] = []

    def execute(self, action: np.ndarray) -> np.ndarray:
        """Return the action to take (a,); what is drawn lasts ``hold`` steps in the mean."""
        return self._explore(None if self._draws else action)

    def keep(self, step: Step) -> None:
        """Keep the step as a row."""
        timeout = step.truncated and not step.terminated
        self.rows.append((*step[:4], timeout, step.next_observation))


class _Still:
    """The policy of episodes whose actions are drawn."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape

    def reset(self, mask: np.ndarray | None = None) -> None:
        pass

    def act(self, observations: np.ndarray) -> np.ndarray:
        return np.zeros((len(observations), *self._shape), np.float32)


@dataclass(kw_only=True)
class PolicyCollection(Collection):
    """Whole episodes of a checkpoint's policy, or of uniform actions, until there are N steps.

    A policy's actions get normal noise of ``noise`` half-ranges and are clipped. Each draw, also
    one of a uniform action, is kept for as many steps as a geometric distribution of mean ``hold``
    says: where noise that is new at every step averages out before it moves anything, as in
    Mountain Car, noise that lasts does not.

    Args:
        policy: Checkpoint whose policy acts; None for uniform actions.
        hold: Mean number of steps that noise lasts, at least 1.
        num_envs: Number of environments stepped together, at least 1.

    Raises:
        ConfigError: an option cannot be, the environment has unbounded actions, or the checkpoint
            is of an environment of other sizes.
        EvaluationError: there is no such environment, it has no step limit, or its spaces are no
            continuous vectors.
    """

    policy: Path | None = None
    hold: Annotated[float, "[1, inf)"] = 1.0
    num_envs: Annotated[int, "[1, inf)"] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        env = make_env(self.env, max_episode_steps=self.max_episode_steps)
        self.action_space = box(env.action_space)
        sizes = (box(env.observation_space).shape[0], self.action_space.shape[0])
        env.close()
        self._limit = require_step_limit(env, self.env)
        require_bounded(self.action_space, self.env)
        still = _Still(self.action_space.shape)
        self._policy = still if self.policy is None else _load(self.policy, self.env, sizes)
        self._episodes: list[_Episode] = []

    @property
    def count(self) -> int:
        """Number of environment steps so far, at most those that are wanted."""
        return min(self.steps, sum(len(one.rows) for one in self._whole()))

    def run(self) -> None:
        """Collect until there is enough.

        An episode begins if those under way may leave steps over, were all as long as they can be:
        so there is never much more than is wanted, and only the last episode is cut.
        """
        done = 0
        with progress_bar(self.steps, "collecting") as bar:

            def begin(under_way: int) -> _Episode | None:
                if done + under_way * self._limit >= self.steps:
                    return None
                env = make_env(self.env, max_episode_steps=self.max_episode_steps)
                self._episodes.append(_Episode(len(self._episodes), env, self))
                return self._episodes[-1]

            def finished(episode: _Episode) -> None:
                nonlocal done
                done += episode.length
                bar.update(episode.length)

            who = f"{self.policy}: its policy"
            run_episodes(self._policy, begin, self.num_envs, finished=finished, who=who)

    def _whole(self) -> list[_Episode]:
        """Return the episodes that are done, or where interrupted before any is, the first one."""
        begun = [one for one in self._episodes if one.rows]
        return [one for one in begun if one.done] or begun[:1]

    def recorded(self) -> tuple[dict[str, np.ndarray], bool]:
        """Return at most N rows, the last of which ends an episode, and whether it was cut."""
        rows = [row for one in self._whole() for row in one.rows][: self.steps]
        columns: dict[str, np.ndarray] = {
            name: np.asarray(values, kind)
            for (name, kind), values in zip(_COLUMNS.items(), zip(*rows, strict=True), strict=True)
        }
        cut = not (columns["terminals"][-1] or columns["timeouts"][-1])
        columns["timeouts"][-1] |= cut
        return columns, cut

    def attributes(self, columns: dict[str, np.ndarray], cut: bool, command: str) -> dict[str, Any]:
        """Return the file's attributes; their order is part of its bytes."""
        sizes = {"environment_steps": self.count, "rows": self.count}
        return {**sizes, **self.facts(columns, cut), **self.origin(command)}

    def facts(self, columns: dict[str, np.ndarray], cut: bool) -> dict[str, Any]:
        """Say who acted, how noisily, and how the episodes went; None is left out of the file."""
        random = self.policy is None
        return {
            "kind": "random" if random else "policy",
            "algorithm": "uniform random actions" if random else "a checkpoint's policy",
            "policy": None if random else str(self.policy),
            "noise": None if random else self.noise,
            "hold": self.hold,
            "last_episode_cut": cut,
            **summary_of_episodes(columns, cut),
        }


def _load(path: Path, env_id: str, sizes: tuple[int, int]) -> Policy:
    """Return a checkpoint's policy for an environment with ``sizes`` (o, a)."""
    has = f", but '{env_id}' has {sizes[0]} and {sizes[1]}"
    module = load_fitting(path, sizes, "", f"{has}: give a checkpoint of that environment.")
    if module.spec is not None and module.spec.env_id not in (None, env_id):
        say(f"{path} was trained on data of {module.spec.env_id}, not {env_id}.")
    return module.policy()
