"""Steps of the policy in training in its environment, between optimiser steps, and its scores."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import gymnasium
import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer

from lit_offrl.callbacks.checkpoints import run_folder
from lit_offrl.callbacks.curves import record_metrics
from lit_offrl.callbacks.evaluation import EvaluationDuringFit
from lit_offrl.callbacks.every import EveryNSteps
from lit_offrl.callbacks.interruption import end_training
from lit_offrl.callbacks.lookup import find_callback, settings
from lit_offrl.collecting.base import require_bounded
from lit_offrl.collecting.exploration import Exploration
from lit_offrl.collecting.pace import Pace
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.policy import (
    GoalPolicy,
    Policy,
    RewardPolicy,
    StatefulPolicy,
    begin_episodes,
)
from lit_offrl.common.quiet import say
from lit_offrl.common.ranges import require_fields
from lit_offrl.common.seeds import mix
from lit_offrl.datasets.replay import ROWS_FILE, Mixture, Replay
from lit_offrl.datasets.views import Transitions
from lit_offrl.evaluation.envs import box, make_env
from lit_offrl.evaluation.evaluate import acting, environment_of
from lit_offrl.evaluation.loop import Episode, Step, require_actions
from lit_offrl.evaluation.record import EvaluationRecord
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.policies import NetworkPolicy

_EPISODES, _DRAWS, _ACTIONS, _ROWS = 0x0E9, 0x0D2A, 0x0AC7, 0x0205  # streams of one seed


class _OwnEpisode(Episode):
    """An episode whose steps become rows of the replay."""

    def __init__(
        self, number: int, env: gymnasium.Env, seed: int, explore: Exploration, replay: Replay
    ) -> None:
        super().__init__(number, env, seed)
        self._explore, self._replay = explore, replay
        self.draws = False
        """Whether the next action is drawn, not the policy's."""

    def execute(self, action: np.ndarray) -> np.ndarray:
        """Return the action to take (a,)."""
        return self._explore(None if self.draws else action)

    def keep(self, step: Step) -> None:
        """Add the step to the replay."""
        self._replay.add(*step[:6])

    def repeat(self, random: int) -> bool:
        """Take the rows of the replay's last episode again; say whether they came out the same.

        Args:
            random: Number of rows of the replay whose actions were drawn.
        """
        rows = self._replay.columns
        for row in range(self._replay.begun, self._replay.length):
            action = rows["actions"][row]
            self._explore(None if row < random else action)  # draws what was drawn then
            following, *_ = self.env.step(action.copy())
            self.observation = np.array(following, np.float32)
            self.length += 1
            if not np.array_equal(self.observation, rows["next_observations"][row]):
                return False
        return True


@dataclass(frozen=True, kw_only=True)
class OwnStepsOptions:
    """How a run takes steps of its own.

    Args:
        pace: When.
        ratio: Share of offline rows in a batch.
        noise: Standard deviation of the noise on actions, in half-ranges of the action.
        hold: Mean number of steps that a draw of noise, or of a random action, lasts.
        initial_actions: Whose actions the initial steps have.
        seed: Seed of episodes, noise, the policy's samples and the choice of own rows.
        max_episode_steps: Step limit of episodes instead of the environment's own.
        begins: Whether the run begins here: a checkpoint's own steps are those of another run.
    """

    pace: Pace
    ratio: Annotated[float, "[0, 1]"] = 0.5
    noise: Annotated[float, "[0, inf)"] = 0.1
    hold: Annotated[float, "[1, inf)"] = 1.0
    initial_actions: Literal["policy", "random"] = "policy"
    seed: int = 0
    max_episode_steps: int | None = None
    begins: bool = True

    def __post_init__(self) -> None:
        require_fields(self)


class OwnSteps(EveryNSteps):
    """Has the policy in training act in its environment, and batches take rows of these steps.

    What a step does depends on the weights, the seed, the number of the step and its episode's
    steps before it. So a checkpoint need only count the rows: a run that goes on makes the episode
    under way anew, by its seed and its actions. An environment that does not repeat itself has that
    episode cut off there, which a line says.

    Rows are needed before an optimiser step and taken at the end of the one before, or, where a
    signal came in between, before the next one: with the same weights.

    Args:
        options: How.

    Raises:
        ConfigError: The module cannot be trained so: it learns nothing from rewards, does not train
            on transitions, or its policy takes goals or rewards, or has memory of earlier steps.
        EvaluationError: The environment is unknown, does not fit, or nothing limits its episodes.
    """

    waits_for_validation = False
    acts_at_last = False

    def __init__(self, options: OwnStepsOptions) -> None:
        self.options = options
        self.interval = options.pace.updates
        self.origin = options.pace.begun
        self.replay: Replay
        self._policy: Policy
        self._episode: _OwnEpisode | None = None
        self._rows = 0  # that the checkpoint counts
        self._memory: dict[str, Any] = {}  # of the policy, as the checkpoint has it

    # ---- before the first step -----------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the replay, and have the data add its rows to each batch."""
        data, chosen = settings(trainer).datamodule, self.options
        assert isinstance(pl_module, OfflineModule)
        _require_transitions(pl_module, data.view)
        spec, limit = environment_of(data.spec, None, chosen.max_episode_steps)
        assert spec.env_id is not None  # environment_of saw to it
        self._env_id, self._limit = spec.env_id, limit
        with contextlib.closing(self._make()) as env:
            self._space = box(env.action_space)
        require_bounded(self._space, self._env_id)
        self.replay = Replay(chosen.pace.steps, spec.observation_dim, spec.action_dim)
        rewards = data.environment_rewards()
        data.mixture = Mixture(self.replay, chosen.ratio, mix(chosen.seed, _ROWS), rewards)

    def _make(self) -> gymnasium.Env:
        return make_env(self._env_id, max_episode_steps=self._limit)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the rows that the checkpoint counts."""
        self.replay.load(run_folder(trainer) / ROWS_FILE, self._rows)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the episode under way, and take the steps that are needed first."""
        super().on_train_start(trainer, pl_module)
        assert isinstance(pl_module, OfflineModule)
        self._policy = pl_module.policy()
        if self.replay.begun < self.replay.length:
            episode = self._begin()
            if episode.repeat(self._random_steps):
                self._episode = episode
                if isinstance(self._policy, StatefulPolicy):
                    self._policy.load_state_dict(self._memory)
            else:
                episode.close()
                self.replay.cut()
                say(
                    f"{self._env_id} does not repeat an episode's steps: the one under way ends in"
                    " a timeout here, and the run is not the unbroken one to the bit"
                )
        self.act(trainer, pl_module)

    # ---- steps ---------------------------------------------------------------------------------

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the steps that the next optimiser step needs."""
        assert isinstance(pl_module, OfflineModule)
        ended = self.replay.ended
        while self.replay.length < self.options.pace.needed(trainer.global_step):
            self._step(pl_module)
        if self.replay.ended > ended:
            earned = self.replay.returns()[ended:].mean()
            record_metrics(trainer, {"online/return": earned})

    def _step(self, module: OfflineModule) -> None:
        if self._episode is None:
            self._episode = self._begin()
        episode, row = self._episode, self.replay.length
        episode.draws = row < self._random_steps
        action = np.zeros(self._space.shape, np.float32)
        if not episode.draws:
            with acting(module, mix(self.options.seed, _ACTIONS, row)):
                actions = np.asarray(self._policy.act(episode.observation[None]), np.float32)
            require_actions(actions, 1, {0: episode}, "The policy")
            (action,) = actions
        episode.step(action)
        if episode.done:
            self._close()

    def _begin(self) -> _OwnEpisode:
        number, seed = self.replay.ended, self.options.seed
        explore = Exploration(
            self._space,
            noise=self.options.noise,
            hold=self.options.hold,
            seed=mix(seed, _DRAWS, number),
        )
        begin_episodes(self._policy, np.ones(1, np.bool_), None)
        return _OwnEpisode(number, self._make(), mix(seed, _EPISODES), explore, self.replay)

    @property
    def _random_steps(self) -> int:
        return self.options.pace.initial if self.options.initial_actions == "random" else 0

    def _close(self) -> None:
        if self._episode is not None:
            self._episode.close()
            self._episode = None

    # ---- what lasts ----------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the rows that the checkpoint counts."""
        self.replay.save(run_folder(trainer) / ROWS_FILE)

    def state_dict(self) -> dict[str, Any]:
        """The number of rows, and what the policy remembers of the episode under way."""
        memory = self._policy.state_dict() if isinstance(self._policy, StatefulPolicy) else {}
        return {"rows": self.replay.length, "policy": memory}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back, unless they are another run's."""
        if self.options.begins:
            return
        rows, memory = state_dict.get("rows"), state_dict.get("policy")
        if type(rows) is not int or rows < 0:
            raise ConfigError(f"the checkpoint counts {rows!r:.40} own steps, which cannot be.")
        if not (isinstance(memory, dict) and all(map(torch.is_tensor, memory.values()))):
            raise ConfigError(f"the checkpoint's policy remembers {memory!r:.40}, not tensors.")
        self._rows, self._memory = rows, memory

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the environment."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the environment."""
        self._close()


Hear = Callable[[EvaluationRecord, int, Replay], None]
"""Takes a score, the number of own steps that it is after, and the own steps."""


class OnlineEvaluation(EvaluationDuringFit):
    """Scores before the first own step and at some of them; the last is left to the command.

    Args:
        **kwargs: Options of ``EvaluationDuringFit``.
    """

    pace: Pace
    heard: Hear

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score what the run begins with, too."""
        self.origin = self.pace.origin
        if trainer.global_step == self.pace.begun:
            self._due = trainer.global_step
        super().on_train_start(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step."""
        end_training(trainer)

    def _evaluate(
        self, trainer: Trainer, module: LightningModule, name: str
    ) -> EvaluationRecord | None:
        record = super()._evaluate(trainer, module, name)
        if record is not None:
            own = self.pace.own(trainer.global_step)
            record_metrics(trainer, {"online/steps": own})
            steps = find_callback(trainer, OwnSteps)
            assert steps is not None  # the command has put it there
            self.heard(record, own, steps.replay)
        return record


def _require_transitions(module: OfflineModule, view: Any) -> None:
    """Refuse a module that own steps cannot train.

    Raises:
        ConfigError: saying why in a line.
    """
    name = type(module).__name__
    why = None
    if "rewards" not in module.required_columns:
        why = "it learns nothing from rewards, so its own steps teach it nothing"
    elif not isinstance(view, Transitions):
        why = f"it trains on {type(view).__name__}, and own steps come as Transitions"
    else:
        policy = module.policy()
        if isinstance(policy, GoalPolicy | RewardPolicy):
            why = "its policy is told goals or rewards beside observations"
        elif not isinstance(policy, NetworkPolicy | StatefulPolicy):
            why = "its policy remembers earlier steps, which no checkpoint holds"
    if why is not None:
        raise ConfigError(f"{name} cannot go on online: {why}.")
