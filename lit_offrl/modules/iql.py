"""Implicit Q-learning (IQL): values by expectiles, a policy by weighted imitation."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from lit_offrl.modules.critic_guided import CriticGuidedModule
from lit_offrl.nets import GaussianPolicy

_LARGEST_WEIGHT = 100.0


class IQLModule(CriticGuidedModule):
    """Implicit Q-learning (Kostrikov et al. 2022); acts by the mean of a Gaussian policy.

    Args:
        beta: Inverse temperature β, at least 0, of the weights exp(β A), which are capped at 100: 3
            for locomotion, 10 for AntMaze, 0.5 for kitchen and Adroit.
        dropout: Probability in [0, 1) of dropping a unit of the actor; 0.1 for kitchen and Adroit.
        **kwargs: Options of ``CriticGuidedModule``.
    """

    eager_because = None
    actor: GaussianPolicy

    def __init__(
        self,
        *args: Any,
        beta: Annotated[float, "[0, inf)"] = 3.0,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.beta = beta
        self.actor = GaussianPolicy(
            self.observation_dim,
            self.action_dim,
            hidden=self.hidden,
            dropout=dropout,
            **self.bounds,
        )

    def actor_loss(self, observations: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
        """−min(exp(β A), 100) · log π(a | s), mean over rows (IQL, Eq. 7)."""
        weights = torch.exp(self.beta * advantages).clamp_max(_LARGEST_WEIGHT)
        self.log_scalar("actor/weight_mean", weights.mean())
        return -(weights * self.actor.log_prob(observations, actions)).mean()
