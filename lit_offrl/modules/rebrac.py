"""ReBRAC (Tarasov et al. 2023): TD3+BC that stays near the data in its critics' targets, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.normalizers import Normalization
from lit_offrl.datasets.views import TransitionBatch, Transitions
from lit_offrl.modules.extraction import mean_over_processes
from lit_offrl.modules.td3bc import TD3BCModule
from lit_offrl.nets.mlp import LayerNorms


class ReBRACModule(TD3BCModule):
    """ReBRAC: actor loss β₁ ‖π(s) − a‖² − min_j Q_j(s, π(s)) / mean |min_j Q_j|.

    Critics are regressed on r + γ (1 − terminal) (min_j Q̄_j(s', ã') − β₂ ‖ã' − a'‖²), where ã' is
    the target actor's action with clipped noise and a' the data's action in s'. With β₁ = β₂ = 0
    this is TD3 whose actor climbs the smaller critic. As in the authors' code, distances are summed
    over an action's dimensions, and Q is divided by its mean size, which the paper does not
    mention.

    Departures from the authors' code: in each step, critics and actor compute their losses with the
    weights from before the step, while the authors' actor uses the critics after their update; the
    actor is updated in the last of ``actor_every`` steps instead of the first; weights begin as
    PyTorch's layers do, while the authors' last layers begin near zero; LayerNorms add 1e-5 to
    variances, the authors' 1e-6; distances are in units of half the width of the action range,
    which are the authors' units if the bounds are ±1.

    Args:
        actor_bc: Weight β₁, at least 0, of the actor's distance to the data's actions. The authors
            use 0.001 to 0.1 for locomotion and Adroit, 0.001 to 0.003 for AntMaze.
        critic_bc: Weight β₂, at least 0, of the next action's distance to the data's. The authors
            use 0 to 0.5 for locomotion and Adroit, 0 to 0.002 for AntMaze with rewards of 100.
        critic_learning_rate: Adam's learning rate of the critics, at least 0; ``learning_rate`` by
            default. The authors use 5e-5 for AntMaze, with 3e-4 for the actor.
        hidden: Widths of the hidden layers of the critics and of the actor.
        layer_norm: Where the critics have LayerNorms: ``true`` puts one before each activation,
            ``after`` one after it, and ``false`` none.
        normalize: How observations are scaled: ``false`` leaves them as they are, ``true`` or
            ``min_max`` maps the range of the data to [-1, 1], and ``mean_std`` subtracts the mean
            and divides by the standard deviation + 1e-3.
        learning_rate: Adam's learning rate, at least 0.
        **kwargs: Options of ``TD3BCModule`` but for alpha.
    """

    eager_because = None

    def __init__(
        self,
        *args: Any,
        actor_bc: Annotated[float, "[0, inf)"] = 0.01,
        critic_bc: Annotated[float, "[0, inf)"] = 0.01,
        critic_learning_rate: Annotated[float | None, "[0, inf)"] = None,
        hidden: Sequence[int] = (256, 256, 256),
        layer_norm: LayerNorms = "after",
        normalize: Normalization = False,
        learning_rate: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            alpha=1.0,
            hidden=hidden,
            layer_norm=layer_norm,
            normalize=normalize,
            learning_rate=learning_rate,
            **kwargs,
        )
        self.actor_bc, self.critic_bc = actor_bc, critic_bc
        self.critic_learning_rate = critic_learning_rate

    def view(self) -> Transitions:
        """Transitions with the data's next actions."""
        return self.transitions(next_actions=True)

    def learning_rate_of(self, network: str, step: int) -> float:
        """The critics' rate may be another than the actor's."""
        own = self.critic_learning_rate if network == "critic" else None
        return super().learning_rate_of(network, step) if own is None else own

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """``critic`` by temporal differences and, where the step moves it, ``actor``."""
        if getattr(batch, "next_actions", None) is None:
            raise ConfigError(
                f"{type(self).__name__} needs the data's next actions, but the view gives a "
                f"{type(batch).__name__} without: set next_actions of Transitions to true, or "
                "leave the view to the model."
            )
        return super().losses(batch)

    @torch.no_grad()
    def _next_value(self, batch: TransitionBatch) -> Tensor:
        assert batch.next_actions is not None  # or losses() would have refused the batch
        observations = self.normalize_observations(batch.next_observations)
        actions = self.target_actions(observations)
        distance = self._distance(actions, batch.next_actions)
        return self.target.minimum(observations, actions) - self.critic_bc * distance

    def _actor_loss(self, batch: TransitionBatch) -> Tensor:
        observations = self.normalize_observations(batch.observations)
        actions = self.actor(observations)
        q_values = self.q.frozen(observations, actions).amin(dim=0)
        scale = mean_over_processes(q_values.abs()).clamp_min(1e-6)
        distance = self._distance(actions, batch.actions).mean()
        self.log_scalar("actor/q_mean", q_values.mean())
        self.log_scalar("actor/distance", distance)
        return self.actor_bc * distance - q_values.mean() / scale

    def _distance(self, actions: Tensor, data: Tensor) -> Tensor:
        """Squared distances (B,) of actions (B, a), in units of half the action range."""
        return ((actions - data) / self.actor.scale).square().sum(dim=-1)
