"""Roll-outs of the policy while it is being trained, and tables at the end."""

from __future__ import annotations

import contextlib
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from rich.console import Console

from lit_offrl.callbacks.checkpoints import Checkpoints, run_folder
from lit_offrl.callbacks.curves import record_metrics
from lit_offrl.callbacks.every import EveryNSteps
from lit_offrl.callbacks.interruption import GracefulStop, end_training
from lit_offrl.callbacks.lookup import find_callback, settings
from lit_offrl.callbacks.record import data_figures, describe_runs
from lit_offrl.callbacks.yardsticks import clone_behaviour, yardsticks
from lit_offrl.common.errors import ConfigError, EvaluationError, LitOffRLError
from lit_offrl.common.policy import GoalPolicy
from lit_offrl.common.quiet import say
from lit_offrl.common.ranges import require_in
from lit_offrl.evaluation.envs import make_env, step_limit
from lit_offrl.evaluation.evaluate import evaluate_module
from lit_offrl.evaluation.record import CURVES, EvaluationRecord
from lit_offrl.modules.base import OfflineModule


class EvaluationDuringFit(EveryNSteps):
    """Rolls the policy out every N steps and at the end of a fit; processes share the episodes.

    Training is as if nothing had happened: it draws nothing from global generators, and
    ``evaluate_module`` leaves those as they were. Logs ``eval/return_mean``, where the
    environment has reference returns ``eval/score``, and where it tells of successes their share,
    ``eval/success_rate``; writes ``evaluation.json`` (of
    a step: ``evaluation-step-STEP.json``) to the run's folder.

    At the end a table shows the policy's mean beside that of the data's own episodes, without which
    a score says little, and with ``bc_steps`` beside that of a policy which imitates the data:
    trained then, in seconds, rolled out alike, and recorded in ``behaviour-cloning.json``.

    Where nothing can be rolled out, a line says so and training goes on: the dataset names no
    environment, or one whose episodes nothing limits; the module has no policy (yet), or one that
    the environment gives no goal.

    Args:
        episodes: Number of episodes of each evaluation, at least 0; 0 turns evaluations off.
        every_n_steps: Number N of optimiser steps between two evaluations, at least 1. By default
            only the end of a fit has one.
        seed: Seed that gives each episode, by its number, a seed of its own.
        num_envs: Number of environments that are stepped together, at least 1.
        max_episode_steps: Step limit of episodes, at least 1. The default is the environment's own,
            or where it has none that of the data.
        bc_steps: Optimiser steps of behaviour cloning for the table at the end, at least 0; 0
            leaves it out.

    Raises:
        ConfigError: A number is out of its range.
        EvaluationError: The environment cannot be made when training begins.
    """

    acts_at_last = False  # the last step is evaluated when training ends

    def __init__(
        self,
        episodes: int = 10,
        every_n_steps: int | None = None,
        seed: int = 0,
        num_envs: int = 8,
        max_episode_steps: int | None = None,
        bc_steps: int = 0,
    ) -> None:
        require_in("[0, inf)", episodes=episodes, bc_steps=bc_steps)
        limits = {"every_n_steps": every_n_steps, "max_episode_steps": max_episode_steps}
        require_in("[1, inf)", num_envs=num_envs, **limits)
        self.episodes = episodes
        self.interval = every_n_steps
        self.seed = seed
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.bc_steps = bc_steps
        self._possible = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See whether there is anything to roll out, before hours are spent.

        A roll-out that a signal has cut short is made up for.
        """
        self._look(trainer, pl_module)
        is_cut_short = self._due == trainer.global_step
        super().on_train_start(trainer, pl_module)
        if is_cut_short:
            self._due = trainer.global_step
            self.act_now(trainer, pl_module)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._possible = False
        if self.episodes == 0 or settings(trainer).fast_dev_run:
            return
        assert isinstance(pl_module, OfflineModule)
        spec = pl_module.spec
        if spec is not None and spec.env_id is None and spec.why_no_env is not None:
            say(f"no evaluation: {spec.why_no_env}.")
            return
        if spec is None or spec.env_id is None:
            say("no evaluation: the dataset does not name its environment; give it by --data."
                 "init_args.env_id.")  # fmt: skip
            return
        try:
            policy = pl_module.policy()
        except ConfigError as error:
            say(f"no evaluation: {error}")
            return
        try:
            env = make_env(spec.env_id, discrete=True)
        except EvaluationError as error:
            raise EvaluationError(f"{error} Or train with --evaluation.episodes 0.") from error
        with contextlib.closing(env):
            if not (self.max_episode_steps or spec.max_episode_steps or step_limit(env)):
                say(f"no evaluation: {spec.env_id} has no step limit, and the data name none:"
                     " give --evaluation.max_episode_steps.")  # fmt: skip
                return
            if isinstance(policy, GoalPolicy) and "goal" not in env.reset(seed=self.seed)[1]:
                say(f"no evaluation: the policy needs a goal, and {spec.env_id} gives none; "
                     "lit-offrl evaluate takes one by --policy.goal.")  # fmt: skip
                return
        self._possible = True

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the policy as it is after this step."""
        self._evaluate(trainer, pl_module, f"evaluation-step-{trainer.global_step}.json")

    def state_dict(self) -> dict[str, Any]:
        """The step that has yet to be evaluated, if there is one."""
        return {"due": self._due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        due = state_dict["due"]
        self._due = due if isinstance(due, int) else None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate what was trained, once it is saved, and print the tables."""
        end_training(trainer)
        record = self._evaluate(trainer, pl_module, "evaluation.json")
        if record is not None:
            describe_runs(trainer, pl_module, record)
        cloning = self._evaluate_cloning(trainer, pl_module)
        if not trainer.is_global_zero or self.episodes == 0 or settings(trainer).fast_dev_run:
            return
        console = Console()
        if record is not None:
            console.print(record.table())
        data = data_figures(trainer)
        if record is not None or data:
            dataset = settings(trainer).datamodule.spec.name
            console.print(yardsticks(data, dataset, record, cloning))

    def _evaluate_cloning(
        self, trainer: Trainer, module: LightningModule
    ) -> EvaluationRecord | None:
        if not self._possible or self.bc_steps == 0:
            return None
        assert isinstance(module, OfflineModule) and module.spec is not None
        say(f"training behaviour cloning for {self.bc_steps:,} steps, to compare with.")
        try:
            dataset = settings(trainer).datamodule.train_set.with_spec(module.spec)
            clone = clone_behaviour(dataset, self.bc_steps, module.seed)
            name = "behaviour-cloning.json"
            return self._roll_out(trainer, clone, name, training_steps=self.bc_steps)
        except LitOffRLError as error:  # a yardstick must not cost the run its own table
            say(f"no behaviour cloning beside it: {error}")
            return None

    def _evaluate(
        self, trainer: Trainer, module: LightningModule, name: str
    ) -> EvaluationRecord | None:
        if not self._possible:
            return None
        assert isinstance(module, OfflineModule)
        checkpoints = find_callback(trainer, Checkpoints)
        saved = checkpoints.last_model_path if checkpoints is not None else ""
        last = name == "evaluation.json" and bool(saved)
        record = self._roll_out(
            trainer,
            module,
            name,
            checkpoint=saved if last else None,
            checkpoint_rule="last" if last else f"step {trainer.global_step}",
            training_steps=trainer.global_step,
        )
        metrics = record.metrics()
        record_metrics(trainer, {name: metrics[name] for name in CURVES if name in metrics})
        return record

    def _roll_out(
        self, trainer: Trainer, module: OfflineModule, name: str, **facts: Any
    ) -> EvaluationRecord:
        """Evaluate a module by the callback's options, and write the record, with ``facts``."""
        stop = find_callback(trainer, GracefulStop) or GracefulStop()
        names = ("episodes", "seed", "num_envs", "max_episode_steps")
        chosen = {name: getattr(self, name) for name in names}
        with stop.rolling_out(trainer) as stopping:
            record = evaluate_module(module, **chosen, **facts, stopping=stopping)
        if trainer.is_global_zero:
            record.save(run_folder(trainer) / name)
        return record
