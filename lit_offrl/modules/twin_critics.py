"""What methods have in common whose critics learn from temporal differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.modules.actor import ActorModule
from lit_offrl.nets import EnsembleCritic, frozen_copy, polyak_update_
from lit_offrl.nets.mlp import Activation, LayerNorms


class TwinCriticModule(ActorModule):
    """An actor with twin critics Q_1 and Q_2 and their slow target critics.

    Args:
        gamma: Discount γ in [0, 1).
        tau: Rate in (0, 1] at which the target critics follow the critics in each step.
        hidden: Widths of the critics' hidden layers.
        layer_norm: Where the critics have LayerNorms: ``true`` puts one before each activation,
            ``after`` one after it, and ``false`` none.
        activation: The critics' activation.
        **kwargs: Options of the method's other bases, see ``ActorModule``.
    """

    def __init__(
        self,
        *args: Any,
        gamma: Annotated[float, "[0, 1)"] = 0.99,
        tau: Annotated[float, "(0, 1]"] = 0.005,
        hidden: Sequence[int] = (256, 256),
        layer_norm: LayerNorms = False,
        activation: Activation = "relu",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.gamma, self.tau = gamma, tau
        self.hidden, self.activation = hidden, activation
        self.q = EnsembleCritic(
            self.observation_dim, self.action_dim, hidden, layer_norm, activation=activation
        )
        self.target = frozen_copy(self.q)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Critics and actor."""
        return {"critic": list(self.q.parameters())} | super().parameter_groups()

    def td_target(self, batch: TransitionBatch, next_value: Tensor) -> Tensor:
        """r + γ (1 − terminal) · next value, (B,); a time limit does not end the bootstrap.

        After n steps r is their discounted sum, and γ^n stands for γ.
        """
        assert batch.rewards is not None  # required_columns
        ahead = torch.where(batch.terminals, 0.0, next_value)
        return batch.rewards + batch.discount(self.gamma) * ahead

    def critic_loss(self, batch: TransitionBatch, td_target: Tensor) -> Tensor:
        """Sum over both critics of the mean squared distance to a target (B,)."""
        observations = self.normalize_observations(batch.observations)
        self.log_scalar("critic/target_mean", td_target.mean())
        return (self.q(observations, batch.actions) - td_target).square().mean(dim=1).sum()

    def after_step(self) -> None:
        """Move the target critics, and what the method's other bases move."""
        super().after_step()
        polyak_update_(self.target, self.q, self.tau)
