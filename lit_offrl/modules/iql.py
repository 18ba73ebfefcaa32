"""Implicit Q-learning (IQL): values by expectiles, a policy by weighted imitation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_offrl.common.ranges import require_in
from lit_offrl.modules.base import Decay
from lit_offrl.modules.critic_guided import CriticGuidedModule
from lit_offrl.modules.policies import NetworkPolicy
from lit_offrl.nets import GaussianPolicy

_LARGEST_WEIGHT = 100.0


def weighted_imitation(
    actor: GaussianPolicy,
    observations: Tensor,
    actions: Tensor,
    advantages: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """−min(exp(β A), 100) · log π(a | s), mean over rows; and the weights (B,)."""
    weights = torch.exp(beta * advantages).clamp_max(_LARGEST_WEIGHT)
    return -(weights * actor.log_prob(observations, actions)).mean(), weights


class IQLModule(CriticGuidedModule):
    """Implicit Q-learning (Kostrikov et al. 2022).

    Args:
        observation_dim: o, size of an observation; linked from the data.
        action_dim: a, size of an action; linked from the data.
        action_low: lower bounds (a,); linked from the data.
        action_high: upper bounds (a,); linked from the data.
        gamma: discount γ.
        expectile: τ of V: 0.7 for locomotion, 0.9 for AntMaze.
        beta: β of the weights exp(β A), cut at 100: 3 locomotion, 10 AntMaze, 0.5 kitchen, Adroit.
        polyak_rate: of the target critics.
        hidden: widths of all MLPs.
        layer_norm: LayerNorm in the critics.
        dropout: in the actor; 0.1 for kitchen and Adroit.
        normalize: scale observations to the data's range [−1, 1].
        learning_rate: Adam's rate.
        weight_decay: of the actor's weights (AdamW).
        decay: of the actor's rate: constant, or by a cosine to 0 at ``trainer.max_steps``.
        seed: names the stream of all random numbers in training.

    Raises:
        ConfigError: the data have no actions, or a number is out of its range.
    """

    actor: GaussianPolicy

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        action_low: Sequence[float] | None = None,
        action_high: Sequence[float] | None = None,
        *,
        gamma: float = 0.99,
        expectile: float = 0.7,
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
            gamma=gamma,
            expectile=expectile,
            polyak_rate=polyak_rate,
            hidden=hidden,
            layer_norm=layer_norm,
            normalize=normalize,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            decay=decay,
            seed=seed,
        )
        require_in("[0, inf)", beta=beta)
        self.save_hyperparameters()
        self.beta = beta
        self.actor = GaussianPolicy(
            observation_dim,
            action_dim,
            hidden=hidden,
            low=action_low,
            high=action_high,
            dropout=dropout,
        )

    def actor_loss(self, observations: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
        """Likelihood weighted by min(exp(β A), 100)."""
        loss, weights = weighted_imitation(self.actor, observations, actions, advantages, self.beta)
        self.log_scalar("actor/weight_mean", weights.mean())
        return loss

    def policy(self) -> NetworkPolicy:
        """Act by the mean."""
        return NetworkPolicy(
            lambda rows: self.actor(self.normalize_observations(rows)), self.device
        )
