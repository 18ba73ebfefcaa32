"""Decision Transformer: imitation of the actions that led to a requested return."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.normalizers import Normalization
from lit_offrl.datasets.views import ContextBatch, Contexts
from lit_offrl.datasets.views.contexts import BoundContexts
from lit_offrl.modules.actor import ActorModule
from lit_offrl.modules.extraction import mean_over_processes
from lit_offrl.modules.policies import State, StepPolicy
from lit_offrl.nets import ActionTransformer


class DecisionTransformerModule(ActorModule):
    """Decision Transformer (Chen et al. 2021, Algorithm 1): a_t from K steps of (R̂, s, a).

    A causal transformer regresses the action of each step on the return-to-go R̂_t, the state and
    what came before. When it acts, a return is requested, and each reward that is received is
    subtracted from it. The rewards of the data therefore have to be those of the environment.

    Departures from the authors' code: 1e-3 is added to standard deviations instead of 1e-6; steps
    that an episode lacks come last in a context, where the causal mask hides them, and not first;
    errors are in units of half the width of the action range, which are the authors' units if the
    bounds are ±1.

    Args:
        context: Number K of steps that the policy sees, at least 1.
        return_scale: Number, above 0, by which returns-to-go are divided.
        target_return: Return that is requested at the beginning of an episode, in the environment's
            units; by default the largest return of any episode of the training data.
        max_timesteps: Number of embeddings of timesteps, at least 1; all later steps share the last
            one.
        width: Width of a token, at least 1.
        blocks: Number of transformer blocks, at least 1.
        heads: Number of attention heads, at least 1, which divides the width.
        dropout: Probability in [0, 1) of dropping a unit.
        activation: Activation of the blocks' MLPs.
        warmup_steps: Number of optimiser steps, at least 0, in which the learning rate rises from 0
            to its value. The authors' code has 10,000, the paper says 100,000.
        normalize: How observations are scaled: ``mean_std`` subtracts the mean and divides by the
            standard deviation + 1e-3, ``true`` or ``min_max`` maps the range of the data to [-1,
            1], and ``false`` leaves them as they are.
        weight_decay: AdamW's decay of all weights, at least 0.
        learning_rate: Adam's learning rate, at least 0.
        **kwargs: Options of ``ActorModule`` but for those of chunks and n_step.
    """

    eager_because = None
    actor: ActionTransformer
    best_return: Tensor

    def __init__(
        self,
        *args: Any,
        context: Annotated[int, "[1, inf)"] = 20,
        return_scale: Annotated[float, "(0, inf)"] = 1000.0,
        target_return: Annotated[float | None, "(-inf, inf)"] = None,
        max_timesteps: Annotated[int, "[1, inf)"] = 1000,
        width: Annotated[int, "[1, inf)"] = 128,
        blocks: Annotated[int, "[1, inf)"] = 3,
        heads: Annotated[int, "[1, inf)"] = 1,
        dropout: float = 0.1,
        activation: Literal["relu", "gelu"] = "relu",
        warmup_steps: Annotated[int, "[0, inf)"] = 10_000,
        normalize: Normalization = "mean_std",
        weight_decay: float = 1e-4,
        learning_rate: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            normalize=normalize,
            weight_decay=weight_decay,
            learning_rate=learning_rate,
            chunk=1,
            execute_steps=None,
            n_step=None,
            **kwargs,
        )
        self.context, self.return_scale = context, return_scale
        self.target_return, self.warmup_steps = target_return, warmup_steps
        self.register_buffer("best_return", torch.tensor(math.nan))
        self.actor = ActionTransformer(
            self.observation_dim,
            self.action_dim,
            max_timesteps=max_timesteps,
            width=width,
            blocks=blocks,
            heads=heads,
            dropout=dropout,
            activation=activation,
            **self.bounds,
        )

    def view(self) -> Contexts:
        """Contexts of K steps."""
        return Contexts(self.context)

    def on_fit_start(self) -> None:
        """Take the largest return from the data at hand, which may be more than a checkpoint's."""
        super().on_fit_start()
        if self.datamodule is not None:
            view = self.datamodule.train_view()
            if isinstance(view, BoundContexts):  # losses() refuses another one
                self.best_return.fill_(view.best_return())

    def learning_rate_of(self, network: str, step: int) -> float:
        """The rate rises evenly over the warm-up."""
        risen = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return risen * super().learning_rate_of(network, step)

    def losses(self, batch: ContextBatch) -> dict[str, Tensor]:
        """``actor``: mean squared error of the actions of all real steps."""
        if not isinstance(batch, ContextBatch) or batch.mask.shape[1] != self.context:
            raise ConfigError(
                f"{type(self).__name__} trains on Contexts of length {self.context}: leave "
                "data.init_args.view to the model, or set it to those."
            )
        predicted = self.predict(*batch[:-1])
        error = ((predicted - batch.actions) / self.actor.scale).square().mean(dim=-1)
        # steps count alike, however many a process has of them
        real = mean_over_processes(batch.mask.float().flatten())
        return {"actor": error.masked_fill(~batch.mask, 0.0).mean() / real}

    def predict(
        self, observations: Tensor, actions: Tensor, returns: Tensor, timesteps: Tensor
    ) -> Tensor:
        """The actions (B, K, a) of raw observations (B, K, o), returns-to-go (B, K) and so on."""
        return self.actor(
            self.normalize_observations(observations),
            actions,
            returns / self.return_scale,
            timesteps,
        )

    def policy(  # type: ignore[override]  # it has no chunks
        self, target_return: Annotated[float | None, "(-inf, inf)"] = None
    ) -> ReturnPolicy:
        """Act so as to get a return.

        Args:
            target_return: Requested return in the environment's units; the module's own by default.

        Raises:
            ConfigError: The module has none, as it was not trained on data.
        """
        asked = self.target_return if target_return is None else target_return
        asked = self.best_return.item() if asked is None else asked
        if math.isnan(asked):
            raise ConfigError(
                f"{type(self).__name__} has seen no data that say which return to ask for: give "
                "target_return."
            )
        sizes = (self.context, self.observation_dim, self.action_dim)
        return ReturnPolicy(self.predict, asked, *sizes, self.device)


class ReturnPolicy(StepPolicy):
    """Acts by the last K steps of each episode and the return that is still to come.

    It is a ``RewardPolicy``: the requested return falls by each reward.

    Args:
        predict: Maps observations (E, K, o), actions (E, K, a), returns-to-go (E, K) and timesteps
            (E, K) to the actions (E, K, a) of all steps; no step sees later ones, or its own
            action.
        target: Return that is requested at the beginning of an episode.
        context: Number K of steps.
        observation_dim: Size o of an observation.
        action_dim: Size a of an action.
        device: Where ``predict`` computes.
    """

    def __init__(
        self,
        predict: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
        target: float,
        context: int,
        observation_dim: int,
        action_dim: int,
        device: torch.device,
    ) -> None:
        super().__init__(device)
        self._predict, self._target, self._context = predict, target, context
        self._dims = (observation_dim, action_dim)
        self._earned: Tensor | None = None

    def beside_sizes(self) -> dict[str, int]:
        """Rewards (E, 1) of the step before, which count unless an episode begins."""
        return {"rewards": 1}

    def _begun(self, observations: Tensor) -> State:
        """Return the state of episodes that begin."""
        rows, context = observations.shape[0], self._context
        zeros, count = observations.new_zeros, torch.int64
        return {
            "observations": zeros(rows, context, self._dims[0]),
            "actions": zeros(rows, context, self._dims[1]),
            "returns": zeros(rows, context),
            "timesteps": zeros(rows, context, dtype=count),
            "time": zeros(rows, dtype=count),
            "left": zeros(rows),
        }

    def step(self, observations: Tensor, state: State, **beside: Tensor) -> tuple[Tensor, State]:
        """Return actions (E, a), and the last K steps with them.

        Its state is those steps, the ``time`` (E,) that episodes have had, in steps, and the return
        ``left`` (E,) to ask for.
        """
        state = state or self._begun(observations)
        time, context = state["time"], self._context
        left = torch.where(time == 0, self._target, state["left"] - beside["rewards"][:, 0])
        full, at = time >= context, time.clamp(max=context - 1)
        now = torch.arange(context, device=time.device) == at[:, None]

        def kept(name: str, value: Tensor) -> Tensor:
            before = state[name]
            dims = (1,) * (before.ndim - 2)
            before = torch.where(full.view(-1, 1, *dims), before.roll(-1, dims=1), before)
            return torch.where(now.view(*now.shape, *dims), value[:, None], before)

        observed, returns = kept("observations", observations), kept("returns", left)
        timesteps = kept("timesteps", time)
        # what will be this step's action is hidden from it, as is what is behind it
        hidden = kept("actions", torch.zeros_like(state["actions"][:, 0]))
        predicted = self._predict(observed, hidden, returns, timesteps)
        actions = predicted[torch.arange(at.shape[0], device=at.device), at].float()
        following = {"observations": observed, "actions": kept("actions", actions)}
        following |= {"returns": returns, "timesteps": timesteps}
        return actions, following | {"time": time + 1, "left": left}

    def _beside(self, observations: np.ndarray) -> dict[str, Tensor]:
        """Return what the step before has earned."""
        earned, self._earned = self._earned, None
        if earned is None or len(earned) != len(observations):
            earned = torch.zeros(len(observations), device=self._device)
        return {"rewards": earned[:, None]}

    def earn(self, rewards: np.ndarray) -> None:
        """Ask for less by the rewards (E,) of the step just taken."""
        self._earned = torch.as_tensor(rewards, dtype=torch.float32).to(self._device)
