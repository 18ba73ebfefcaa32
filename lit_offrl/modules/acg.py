"""Advantage-conditioned Gaussian (ACG): ACD's proof of concept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lit_offrl.modules.base import Decay
from lit_offrl.modules.critic_guided import CriticGuidedModule
from lit_offrl.modules.policies import NetworkPolicy
from lit_offrl.nets import AdvantageEncoding, GaussianPolicy


class ACGModule(CriticGuidedModule):
    """A Gaussian policy conditioned on IQL's advantages, acting at A = 0 (ACD paper, section 4.1).

    Args:
        observation_dim: o, size of an observation; linked from the data.
        action_dim: a, size of an action; linked from the data.
        action_low: lower bounds (a,); linked from the data.
        action_high: upper bounds (a,); linked from the data.
        gamma: discount γ.
        expectile: τ of V: 0.7 for locomotion, 0.9 for AntMaze.
        representation: how A is given to the policy: the number, or its bin (Table 2).
        advantage_scale: divides A before it is given.
        bins: N_bin of one_hot, odd.
        bin_width: of a bin.
        polyak_rate: of the target critics.
        hidden: widths of all MLPs.
        layer_norm: LayerNorm in the critics.
        dropout: in the actor.
        normalize: scale observations to the data's range [−1, 1].
        learning_rate: Adam's rate.
        weight_decay: of the actor's weights; 0 is Adam. With raw advantages AdamW did better
            (section 4.3).
        decay: of the actor's rate: constant, or by a cosine to 0 at ``trainer.max_steps``.
        seed: names the stream of all random numbers in training.

    Raises:
        ConfigError: the data have no actions, or a number is out of its range.
    """

    actor: GaussianPolicy
    encoding: AdvantageEncoding

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        action_low: Sequence[float] | None = None,
        action_high: Sequence[float] | None = None,
        *,
        gamma: float = 0.99,
        expectile: float = 0.7,
        representation: Literal["raw", "one_hot"] = "raw",
        advantage_scale: float = 1.0,
        bins: int = 41,
        bin_width: float = 0.25,
        polyak_rate: float = 0.005,
        hidden: Sequence[int] = (256, 256),
        layer_norm: bool = False,
        dropout: float = 0.0,
        normalize: bool = False,
        learning_rate: float = 3e-4,
        weight_decay: float = 1e-4,
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
        self.save_hyperparameters()
        self.encoding = AdvantageEncoding(
            representation, scale=advantage_scale, bins=bins, bin_width=bin_width
        )
        self.actor = GaussianPolicy(
            observation_dim + self.encoding.dim,
            action_dim,
            hidden=hidden,
            low=action_low,
            high=action_high,
            dropout=dropout,
        )

    def actor_loss(self, observations: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
        """Negative log-likelihood of the data's actions under their advantages."""
        condition = self._condition(observations, advantages)
        return -self.actor.log_prob(condition, actions).mean()

    def policy(self, advantage: float = 0.0) -> NetworkPolicy:
        """Act by the mean at one advantage.

        Args:
            advantage: A, 0 being that of an optimal action.
        """

        def act(rows: Tensor) -> Tensor:
            asked = torch.full((len(rows),), float(advantage), device=rows.device)
            return self.actor(self._condition(self.normalize_observations(rows), asked))

        return NetworkPolicy(act, self.device)

    def _condition(self, observations: Tensor, advantages: Tensor) -> Tensor:
        return torch.cat([observations, self.encoding(advantages)], dim=-1)
