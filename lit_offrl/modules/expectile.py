"""Implicit Q-learning's critics: values within the data, of the data's actions alone.

Source: Kostrikov et al. 2022 (IQL), section 4.2; in ACD (seed paper) section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lit_offrl.common.randomness import draw_one
from lit_offrl.nets import MLP, EnsembleCritic, frozen_copy, polyak_update_
from lit_offrl.nets.mlp import LayerNorms


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """Return |τ − 1(u < 0)| · u² of each error u = target − prediction, (B,) to (B,)."""
    weight = torch.where(error < 0, 1.0 - expectile, expectile)
    return weight * error.square()


class ExpectileCritics(nn.Module):
    """Q_1, Q_2 with slow targets, and V as an expectile of them over the data's actions.

    V(s) is regressed on min_j Q̄_j(s, a) by the expectile loss, Q on r + γ (1 − terminal) V(s').
    Only a true terminal cuts the bootstrap, never a timeout. τ = 0.5 gives the behaviour policy's
    own values; τ → 1 the best that the data's actions allow. τ is ``expectile``, not ``tau``.

    Args:
        observation_dim: Size o of an observation.
        action_dim: Size a of an action.
        gamma: Discount γ; for this and what follows see ``CriticGuidedModule``.
        expectile: Expectile of the target critics that V is regressed on.
        tau: Rate at which the target critics follow the critics.
        hidden: Widths of the hidden layers.
        layer_norm: Whether a LayerNorm is applied before each activation, or ``after`` it.
        activation: Which.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        gamma: float,
        expectile: float,
        tau: float,
        hidden: Sequence[int],
        layer_norm: LayerNorms = False,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.gamma, self.expectile, self.tau = gamma, expectile, tau
        self.q = EnsembleCritic(
            observation_dim, action_dim, hidden, layer_norm, activation=activation
        )
        self.target = frozen_copy(self.q)
        self.v = MLP(observation_dim, hidden, 1, activation, layer_norm)

    def losses(
        self,
        observations: Tensor,
        actions: Tensor,
        rewards: Tensor,
        next_observations: Tensor,
        terminals: Tensor,
        discount: float | Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Losses ``value`` and ``critic`` of a batch, and its advantages (B,) without gradient.

        ``discount`` (B,) stands for γ where the next states are several steps later.
        """
        with torch.no_grad():
            next_value = torch.where(terminals, 0.0, self.value(next_observations))
            td_target = rewards + (self.gamma if discount is None else discount) * next_value
            target_q = self.target.minimum(observations, actions)
        error = target_q - self.value(observations)
        # the sum over the ensemble: each critic has a mean squared error of its own
        critic = (self.q(observations, actions) - td_target).square().mean(dim=1).sum()
        losses = {"value": expectile_loss(error, self.expectile).mean(), "critic": critic}
        return losses, error.detach()

    @torch.no_grad()
    def advantages(self, observations: Tensor, actions: Tensor) -> Tensor:
        """A(s, a) = min_j Q̄_j(s, a) − V(s) by the target critics, (B,)."""
        return self.target.minimum(observations, actions) - self.value(observations)

    def value(self, observations: Tensor) -> Tensor:
        """V(s), (B,), in float32 under autocast, too."""
        return self.v(observations).squeeze(-1)

    def update_ema(self) -> None:
        """Let the targets follow the online critics."""
        polyak_update_(self.target, self.q, self.tau)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The networks that are trained."""
        return {"critic": list(self.q.parameters()), "value": list(self.v.parameters())}


Pick = Literal["max", "softmax"]


@torch.no_grad()
def best_of(
    critic: EnsembleCritic,
    observations: Tensor,
    candidates: Tensor,
    pick: Pick = "max",
    temperature: float = 1.0,
) -> Tensor:
    """Choose one action a state by the pessimistic value of candidates.

    Args:
        critic: Critic whose minimum over members is used.
        observations: (E, o).
        candidates: (E, N, a).
        pick: ``max`` takes the best one, ``softmax`` draws with probability ∝ exp(Q / temperature).
        temperature: Temperature of the softmax.

    Returns:
        Actions (E, a).
    """
    values = critic.many(observations, candidates).amin(dim=0)
    if pick == "max":
        chosen = values.argmax(dim=1)
    else:
        chosen = draw_one(torch.softmax(values / temperature, dim=1))
    return candidates[torch.arange(chosen.shape[0], device=chosen.device), chosen]
