"""Advantage-conditioned Gaussian (ACG): ACD's proof of concept."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from lit_offrl.common.policy import Policy
from lit_offrl.modules.critic_guided import CriticGuidedModule
from lit_offrl.nets import AdvantageEncoding, GaussianPolicy


class ACGModule(CriticGuidedModule):
    """A Gaussian policy conditioned on IQL's advantages, acting at A = 0 (ACD paper, section 4.1).

    Args:
        representation: How A is represented as an input of the policy: as the ``raw`` number, or as
            the ``one_hot`` vector of its bin (Table 2).
        advantage_scale: Positive number by which A is divided before it is represented.
        bins: Number of bins of ``one_hot``, which is odd.
        bin_width: Width of a bin, above 0, in units of A / ``advantage_scale``.
        dropout: Probability in [0, 1) of dropping a unit of the actor.
        weight_decay: AdamW's decay of the actor's weights, at least 0; 0 is Adam. The paper found
            AdamW better with raw advantages (section 4.3).
        **kwargs: Options of ``CriticGuidedModule``.
    """

    eager_because = None
    actor: GaussianPolicy
    encoding: AdvantageEncoding

    def __init__(
        self,
        *args: Any,
        representation: Literal["raw", "one_hot"] = "raw",
        advantage_scale: float = 1.0,
        bins: int = 41,
        bin_width: float = 0.25,
        dropout: float = 0.0,
        weight_decay: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, weight_decay=weight_decay, **kwargs)
        self.encoding = AdvantageEncoding(
            representation, scale=advantage_scale, bins=bins, bin_width=bin_width
        )
        given = self.observation_dim + self.encoding.dim
        self.actor = GaussianPolicy(
            given, self.action_dim, hidden=self.hidden, dropout=dropout, **self.bounds
        )

    def actor_loss(self, observations: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
        """Negative log-likelihood of the data's actions under their advantages."""
        condition = self._condition(observations, advantages)
        return -self.actor.log_prob(condition, actions).mean()

    def policy(
        self, advantage: float = 0.0, *, execute_steps: Annotated[int | None, "[1, inf)"] = None
    ) -> Policy:
        """Act by the mean at one advantage.

        Args:
            advantage: Advantage A for which the policy acts; 0 is that of an optimal action.
            execute_steps: Number of steps, at most h, for which a chunk is executed; the module's
                own by default.
        """

        def act(rows: Tensor) -> Tensor:
            advantages = torch.full((rows.shape[0],), float(advantage), device=rows.device)
            return self.actor(self._condition(self.normalize_observations(rows), advantages))

        return self.acting(act, execute_steps)

    def _condition(self, observations: Tensor, advantages: Tensor) -> Tensor:
        return torch.cat([observations, self.encoding(advantages)], dim=-1)
