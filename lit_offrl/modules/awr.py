"""Advantage-weighted regression (AWR): imitation weighted by the behaviour policy's advantages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.views import TransitionBatch, Transitions
from lit_offrl.modules.base import Decay
from lit_offrl.modules.iql import IQLModule


class AWRModule(IQLModule):
    """Advantage-weighted regression (Peng et al. 2019): IQL with the behaviour's own value.

    Nothing is maximised but by the weights: V is the mean over the data's actions (τ = 0.5), by
    bootstrapping, or by regression on the returns that followed, to an episode's end.

    Args:
        observation_dim: o, size of an observation; linked from the data.
        action_dim: a, size of an action; linked from the data.
        action_low: lower bounds (a,); linked from the data.
        action_high: upper bounds (a,); linked from the data.
        gamma: discount γ.
        bootstrap: whether values bootstrap; if not, A = (discounted return) − V(s), in which a
            timeout ends the return as a terminal does.
        beta: β of the weights exp(β A), cut at 100.
        polyak_rate: of the target critics.
        hidden: widths of all MLPs.
        layer_norm: LayerNorm in the critics.
        dropout: in the actor.
        normalize: scale observations to the data's range [−1, 1].
        learning_rate: Adam's rate.
        weight_decay: of the actor's weights (AdamW).
        decay: of the actor's rate: constant, or by a cosine to 0 at ``trainer.max_steps``.
        seed: names the stream of all random numbers in training.

    Raises:
        ConfigError: the data have no actions, or a number is out of its range.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        action_low: Sequence[float] | None = None,
        action_high: Sequence[float] | None = None,
        *,
        gamma: float = 0.99,
        bootstrap: bool = True,
        beta: float = 3.0,
        polyak_rate: float = 0.005,
        hidden: Sequence[int] = (256, 256),
        layer_norm: bool = False,
        dropout: float = 0.0,
        normalize: bool = False,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.0,
        decay: Decay = "constant",
        seed: int = 0,
    ) -> None:
        super().__init__(
            observation_dim,
            action_dim,
            action_low,
            action_high,
            gamma=gamma,
            expectile=0.5,
            beta=beta,
            polyak_rate=polyak_rate,
            hidden=hidden,
            layer_norm=layer_norm,
            dropout=dropout,
            normalize=normalize,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            decay=decay,
            seed=seed,
        )
        self.save_hyperparameters()
        self.bootstrap = bootstrap
        self.gamma = gamma
        if not bootstrap:
            self.critics.q.requires_grad_(False)

    def view(self) -> Transitions:
        """Transitions, with discounted returns where values do not bootstrap."""
        return Transitions() if self.bootstrap else Transitions(returns=self.gamma)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Without bootstrapping there is no Q."""
        groups = super().parameter_groups()
        if not self.bootstrap:
            del groups["critic"]
        return groups

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:  # type: ignore[override]
        """IQL's at τ = 0.5; without bootstrapping ``value`` and ``actor`` by returns.

        Raises:
            ConfigError: the view gives no returns.
        """
        if self.bootstrap:
            return super().losses(batch)
        returns = getattr(batch, "returns", None)  # which batches of other views lack
        if returns is None:
            raise ConfigError(
                "bootstrap is false, but the batch has no returns: leave the view to the model, or "
                f"set its 'returns' to {self.gamma}; the data must have all rewards."
            )
        observations = self.normalize_observations(batch.observations)
        error = returns - self.critics.value(observations)
        actor = self.actor_loss(observations, batch.actions, error.detach())
        return {"value": error.square().mean(), "actor": actor}

    def after_step(self) -> None:
        """Move the target critics, where there are critics."""
        if self.bootstrap:
            super().after_step()

    @torch.no_grad()
    def batch_advantages(self, batch: TransitionBatch) -> Tensor:
        """Those of ``advantages``, or without bootstrapping (discounted return) − V(s), (B,)."""
        if self.bootstrap:
            return super().batch_advantages(batch)
        assert batch.returns is not None  # or losses() would have refused the batch
        return batch.returns - self.critics.value(self.normalize_observations(batch.observations))

    @torch.no_grad()
    def advantages(self, observations: Tensor, actions: Tensor) -> Tensor:
        """A(s, a), (B,).

        Raises:
            ConfigError: without bootstrapping there is no Q.
        """
        if not self.bootstrap:
            raise ConfigError("AWRModule with bootstrap false has no Q, so no advantages of steps.")
        return super().advantages(observations, actions)
