"""What every method shares: one optimiser, reproducible noise, a checkpoint that can act alone."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_type_hints

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_offrl import __version__
from lit_offrl.common.errors import ConfigError, TrainingError
from lit_offrl.common.policy import Policy, checked
from lit_offrl.common.quiet import say
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.common.ranges import SEEDS, require_in
from lit_offrl.datasets.bounds import ranges
from lit_offrl.datasets.normalizers import MinMaxNormalizer
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.modules.calls import Calls
from lit_offrl.modules.optimizer import OneOptimizer
from lit_offrl.nets import Dropout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECKPOINT_KEY = "lit_offrl"
"""Where a checkpoint keeps the class, the dataset's spec and the library's version."""

_VALIDATION_STREAM = 1


class Stopping(Protocol):
    """Lets long computations check whether SIGINT, SIGTERM or SIGUSR1 has arrived."""

    def asked(self, trainer: Any) -> bool:
        """Whether one has, as far as this process knows."""

    def stop_if_asked(self, trainer: Any, kept: str) -> None:
        """Leave if one has come to any process, saying what is kept; all must call this."""


class OfflineModule(OneOptimizer):
    """A method: networks, losses, and a policy that acts on raw observations.

    A subclass takes the options that it adds or whose defaults it changes, forwards all others by
    ``*args`` and ``**kwargs``, builds its networks from plain numbers, and gives

    * ``losses(batch)``: named scalar losses, which are summed for one backward pass;
    * ``parameter_groups()``: the parameters of each network, which must not see each other's
      gradients except through their own loss (detach keeps them apart);
    * ``policy(**options)``: what acts;
    * ``after_step()``, if it has target networks or averages.

    In ``losses()`` and in ``after_step()`` alike, ``self.trainer.global_step`` is the number of
    optimiser steps before the one under way, 0 in the first; in ``after_step()`` the weights have
    moved already. With accumulated gradients several calls of ``losses()`` see the same number.

    All noise comes from ``self.noise``, seeded anew each step by (seed, step), so that a resumed
    run draws what the unbroken one would have drawn, and two processes what one would have.

    A class whose steps can be captured as CUDA graphs says so by ``eager_because = None``, see
    ``OneOptimizer``; a class derived from it has to say so again.

    Args:
        observation_dim: Size o of an observation; linked from the data.
        action_dim: Size a of an action, 0 without actions; linked from the data.
        action_low: Lower bounds (a,) of the actions, -1 by default; linked from the data.
        action_high: Upper bounds (a,) of the actions, 1 by default; linked from the data.
        seed: Seed of all random numbers in training.
        **kwargs: Options of the optimiser, see ``OneOptimizer``.

    Raises:
        ConfigError: A number is out of its range, or an option is none of its choices.
    """

    noise: ShardedGenerator
    normalizer: MinMaxNormalizer
    missing_columns_advice: str = "Choose a dataset that has it."
    learns_rewards: bool = False
    """Whether rows without a known reward, by a column ``reward_mask``, are of use all the same."""
    late_metrics: tuple[str, ...] = ()
    """Metrics that a validation may lack before training; callbacks may watch them all the same."""
    cpu_advice: str | None = None
    """What makes the method fit CPU cores, in words, where there is a config for it."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Have the policies of every method, a user's own too, refuse what no state can be.

        Whether steps can be captured is not inherited, as other losses may not be.
        """
        super().__init_subclass__(**options)
        if "eager_because" not in vars(cls):
            cls.eager_because = f"{cls.__name__} does not say that its steps can be captured"
        if "policy" in vars(cls):
            cls.policy = checked(cls.policy)  # type: ignore[method-assign]

    def __init__(
        self,
        observation_dim: int,
        action_dim: int = 0,
        action_low: Sequence[float] | None = None,
        action_high: Sequence[float] | None = None,
        *,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if action_dim != int(action_dim):
            raise ConfigError(
                f"action_dim is {action_dim}: give a whole number; learning_rate, decay and seed "
                "are keywords."
            )
        require_in("[1, inf)", observation_dim=observation_dim)
        require_in("[0, inf)", action_dim=action_dim)
        require_in(SEEDS, seed=seed)
        self.seed = seed
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.action_low, self.action_high = action_low, action_high
        self.spec: DatasetSpec | None = None
        self.resumed_from: str | None = None
        """The checkpoint whose weights come once the data are there, where a command names one."""
        self.loaded_from: Path | None = None
        """The file that ``load_module`` made it from."""
        self.stopping: Stopping | None = None
        """Set by the callback that hears signals, in a fit that has it."""
        self.normalizer = MinMaxNormalizer(observation_dim)
        self.noise = ShardedGenerator(seed)
        self._noise_of: tuple[torch.device, int, int] | None = None
        self.latest_losses: dict[str, Tensor] = {}
        """Losses of the current step, from which an error can name one that is not finite."""
        self.latest_metrics: dict[str, Tensor] = {}
        """Losses and logged scalars of the step under way, as they are logged."""
        self.latest_batch: Any = None
        """The batch of the step under way."""
        self._info: dict[str, Tensor] = {}

    # ---- what a method gives -------------------------------------------------------------------

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Named scalar losses of one batch; their sum is minimised.

        Raises:
            ConfigError: The view gives other batches than the method trains on.
        """
        raise NotImplementedError(f"{type(self).__name__} must define losses().")

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Columns of the dataset without which the method cannot be trained."""
        return ("actions", "rewards")

    def policy(self) -> Policy:
        """What acts: raw observations in, environment actions out."""
        raise NotImplementedError(f"{type(self).__name__} must define policy().")

    @classmethod
    def policy_options(cls) -> dict[str, Any]:
        """Types of the options of ``policy`` by name; ``**options`` are for a subclass to add."""
        own = list(inspect.signature(cls.policy).parameters.values())[1:]  # without self
        hints = get_type_hints(cls.policy)
        return {one.name: hints.get(one.name, Any) for one in own if one.kind != one.VAR_KEYWORD}

    def figures(self) -> dict[str, Figure]:
        """Figures about the trained method, by name; drawn once, when fitting ends."""
        return {}

    def require_batch(self, batch: Any, kind: Any, view: str, rewards: bool = False) -> None:
        """Refuse a batch of another view than the method trains on.

        Args:
            batch: What the view gave.
            kind: The batches' type that is needed.
            view: Name of the view that gives them, for the message.
            rewards: Whether the batch needs rewards, too.

        Raises:
            ConfigError: The batch is of another type, or lacks rewards.
        """
        if not isinstance(batch, kind) or (rewards and getattr(batch, "rewards", None) is None):
            raise ConfigError(
                f"{type(self).__name__} trains on {view}{' with rewards' if rewards else ''}, but "
                f"the view gives a {type(batch).__name__}: set data.init_args.view to {view}, or "
                "leave the view to the model."
            )

    def log_scalar(self, name: str, value: Tensor) -> None:
        """Log a scalar of this step beside the losses."""
        self._info[name] = value.detach()

    # ---- Lightning -----------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take the spec, and for a first fit the normaliser's statistics, from the data."""
        if self.datamodule is None:
            return
        if self.spec is None or stage == "fit":
            self.spec = self.datamodule.spec
        if stage == "fit" and not self.normalizer.fitted:
            self.normalizer.fit(self.datamodule.train_column("observations"))

    @property
    def datamodule(self) -> Any:
        """The Trainer's datamodule; None without one."""
        return getattr(self.trainer, "datamodule", None)

    def seed_noise(self, step: int, stream: int = 0) -> None:
        """Make the noise of one step, the same for every number of processes."""
        attached = self._trainer is not None
        rank, size = (self.global_rank, self.trainer.world_size) if attached else (0, 1)
        if self._noise_of != (self.device, rank, size):
            self._noise_of = (self.device, rank, size)
            self.noise = ShardedGenerator(device=self.device, rank=rank, world_size=size)
            for part in self.modules():
                if isinstance(part, Dropout):
                    part.noise = self.noise
        self.noise.reseed(self.seed, stream, step)

    def seed_step(self, batch_idx: int) -> None:
        """Make the noise of a batch of training."""
        accumulated = self.trainer.accumulate_grad_batches
        self.seed_noise(self.trainer.global_step * accumulated + batch_idx % accumulated)

    def renew_noise(self) -> None:
        """Let the next noise come from a new generator."""
        self._noise_of = None

    def begin_calls(self) -> Calls:
        """Let the loader of a fit, which asks this, hand over several batches at once."""
        self.calls = Calls(self)
        return self.calls

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Sum the losses of one batch and log each."""
        self.latest_batch = batch
        self.seed_step(batch_idx)
        losses = self._measure(batch, "train", logged=self._logs_step(batch_idx))
        total = torch.stack(list(losses.values())).sum()
        idle = self.idle_parameters() if self.trainer.world_size > 1 else []
        # DDP waits for a gradient of every parameter: zero here, and none for the optimiser below
        return total + 0.0 * torch.stack([part.sum() for part in idle]).sum() if idle else total

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the losses on held-out episodes, each time with the same noise."""
        self.seed_noise(batch_idx, _VALIDATION_STREAM)
        self._measure(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log the losses on held-out episodes."""
        self.seed_noise(batch_idx, _VALIDATION_STREAM)
        self._measure(batch, "test")

    def _logs_step(self, batch_idx: int) -> bool:
        """Whether Lightning hears of this step's metrics, which is dear beside a small network.

        As often as loggers do, and at an epoch's first batch, so that there is one to watch.
        """
        trainer: Any = self.trainer  # sets attributes that type checkers do not see
        step, every = trainer.global_step + 1, max(1, trainer.log_every_n_steps)
        return batch_idx == 0 or step % every == 0 or step == trainer.max_steps

    def _measure(self, batch: Any, prefix: str, logged: bool = True) -> dict[str, Tensor]:
        self._info = {}
        losses = self.losses(batch)
        self.latest_losses = {name: loss.detach() for name, loss in losses.items()}
        values = {f"{prefix}/loss/{name}": loss for name, loss in self.latest_losses.items()}
        values |= {f"{prefix}/{name}": value for name, value in self._info.items()}
        self.latest_metrics = values
        if not logged:
            return losses
        # Lightning weighs each process's mean by its rows, but averages the numbers of rows over
        # the processes as integers, cut off: times the number of processes their average is exact.
        rows = batch.observations.shape[0] * self.trainer.world_size
        # During fit the Curves callback takes them to the loggers, by optimiser step.
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        self.log_dict(values, batch_size=rows, sync_dist=prefix != "train", logger=not fitting)
        return losses

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return the policy's actions (B, a) for a batch's observations, or snippets' first."""
        observations = batch.observations.cpu()
        if observations.ndim == 3:
            observations = observations[:, 0]
        acted = self.policy().act(observations.numpy())
        return {"observations": observations, "actions": torch.from_numpy(acted)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what it takes to act without the dataset.

        Raises:
            TrainingError: a weight, also of an average or a target, is not finite: the optimiser
                can take a step too far with gradients that are.
        """
        self.require_finite_weights()
        kind = type(self)
        checkpoint[CHECKPOINT_KEY] = {
            **checkpoint.get(CHECKPOINT_KEY, {}),
            "class_path": f"{kind.__module__}.{kind.__qualname__}",
            "spec": None if self.spec is None else self.spec.to_dict(),
            "version": __version__,
        }

    def require_finite_weights(self) -> None:
        """Refuse to save weights that are not finite, those of averages and targets too.

        Raises:
            TrainingError: naming the weight, the step and the last good checkpoint.
        """
        weights = [part.detach() for part in self.parameters()]
        # the largest number, not the root of the sum of squares, which may itself overflow
        if weights and bool(torch.stack(torch._foreach_norm(weights, math.inf)).isfinite().all()):
            return
        for name, part in self.named_parameters():
            if not bool(part.isfinite().all()):
                step = self.trainer.global_step
                raise TrainingError(
                    f"weight '{name}' is not finite after step {step}, and not saved; the last "
                    f"good checkpoint is {last_checkpoint(self.trainer)}. Lower the learning rate."
                )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the spec back; a fit keeps that of the data it goes on with, and says which."""
        stored = checkpoint.get(CHECKPOINT_KEY, {}).get("spec")
        there = None if stored is None else DatasetSpec.from_dict(stored)
        fitting = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if self._trainer is not None:
            # Lightning would do so only after the weights, which float32 would round, are loaded
            self.trainer.precision_plugin.convert_module(self)
        if not fitting or self.spec is None:
            self.spec = there
            return
        if there is None:
            return
        self._keep_bounds(there)
        if there.sha256 != self.spec.sha256:
            say(
                f"{self.spec.origin}: other data than the checkpoint's, sha256 {_short(self.spec)} "
                f"and {_short(there)}: the run goes on with these, and with the normaliser's "
                "statistics of those"
            )

    def _keep_bounds(self, there: DatasetSpec) -> None:
        """Have the spec say the action bounds of the checkpoint, which its weights are of.

        Raises:
            ConfigError: The options name others.
        """
        assert self.spec is not None
        if _bounds(there) == _bounds(self.spec):
            return
        within = "-1 to 1, as the data's were unknown to its run"
        if there.action_low is not None and there.action_high is not None:
            within = ranges(there.action_low, there.action_high)
        options = (getattr(self.datamodule, name, None) for name in ("action_low", "action_high"))
        if any(option is not None for option in options):
            raise ConfigError(
                f"{self.resumed_from or 'the checkpoint'}: its policy acts within {within}, which "
                "action_low and action_high cannot change any more: leave them out, or begin a new "
                "run."
            )
        say(
            f"the checkpoint's policy acts within {within}, and goes on to; a new run would take "
            f"other bounds of {self.spec.name}"
        )
        self.spec = replace(self.spec, action_low=there.action_low, action_high=there.action_high)


def _bounds(spec: DatasetSpec) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    return spec.action_low, spec.action_high


def last_checkpoint(trainer: Any) -> str:
    """Return where a fit's weights were saved last, or the checkpoint that it goes on from."""
    saved = (getattr(each, "last_model_path", "") for each in trainer.checkpoint_callbacks)
    none = "none, as none has been saved yet"
    return next(filter(None, saved), None) or trainer.ckpt_path or none


def _short(spec: DatasetSpec) -> str:
    return "unknown" if spec.sha256 is None else f"{spec.sha256[:12]}…"
