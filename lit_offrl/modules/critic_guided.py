"""What IQL, AWR, ACG, IDQL and ACD share: IQL's critics and a policy that learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from lit_offrl.datasets.views import AdvantageBatch, OutcomeBatch, TransitionBatch
from lit_offrl.figures import advantage_histogram
from lit_offrl.modules.actor import ActorModule
from lit_offrl.modules.expectile import ExpectileCritics
from lit_offrl.nets.mlp import Activation, LayerNorms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BATCHES = TransitionBatch | AdvantageBatch | OutcomeBatch


class CriticGuidedModule(ActorModule):
    """An actor that learns from IQL's critics, which are trained in the same steps.

    That critics and actor are trained together is ACD's Algorithm 1.
    A subclass builds ``self.actor`` and gives ``actor_loss``.

    Args:
        gamma: Discount γ in [0, 1).
        expectile: Expectile in (0, 1) of the target critics' values that V is regressed on: 0.7 for
            locomotion, 0.9 for AntMaze.
        tau: Rate in (0, 1] at which the target critics follow the critics in each step.
        hidden: Widths of the hidden layers of the critics and of a Gaussian actor.
        layer_norm: Where the critics have LayerNorms: ``true`` puts one before each activation,
            ``after`` one after it, and ``false`` none.
        activation: The critics' activation.
        **kwargs: Options of ``ActorModule``.
    """

    def __init__(
        self,
        *args: Any,
        gamma: Annotated[float, "[0, 1)"] = 0.99,
        expectile: Annotated[float, "(0, 1)"] = 0.7,
        tau: Annotated[float, "(0, 1]"] = 0.005,
        hidden: Sequence[int] = (256, 256),
        layer_norm: LayerNorms = False,
        activation: Activation = "relu",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.hidden, self.activation, self.gamma = hidden, activation, gamma
        self.layer_norm = layer_norm
        self.critics = ExpectileCritics(
            self.observation_dim,
            self.action_dim,
            gamma=gamma,
            expectile=expectile,
            tau=tau,
            hidden=hidden,
            layer_norm=layer_norm,
            activation=activation,
        )
        self._advantages: list[Tensor] = []

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """``value`` and ``critic`` (IQL) and ``actor``."""
        self.require_batch(batch, _BATCHES, "Transitions", rewards=True)
        observations = self.normalize_observations(batch.observations)
        losses, advantages = self.critic_losses(batch, observations)
        self.log_scalar("advantage/mean", advantages.mean())
        self.log_scalar("advantage/positive", (advantages > 0).float().mean())
        condition = self.actor_condition(batch, advantages)
        return losses | {"actor": self.actor_loss(observations, batch.actions, condition)}

    def critic_losses(self, batch: Any, observations: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of a batch's critics, and its advantages (B,) without gradient.

        Args:
            batch: Batch with rewards.
            observations: Its normalised observations (B, o).
        """
        return self.critics.losses(
            observations,
            batch.actions,
            batch.rewards,
            self.normalize_observations(batch.next_observations),
            batch.terminals,
            getattr(batch, "discounts", None),
        )

    def actor_condition(self, batch: Any, advantages: Tensor) -> Tensor:
        """What the actor's loss takes for the advantages (B,) of a batch: they themselves."""
        return advantages

    def actor_loss(self, observations: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
        """The actor's loss for observed states (B, o), actions (B, a), advantages (B,)."""
        raise NotImplementedError(f"{type(self).__name__} must define actor_loss().")

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Critics, value and actor."""
        return self.critics.parameter_groups() | super().parameter_groups()

    def after_step(self) -> None:
        """Move the target critics, and the actor's average if it has one."""
        super().after_step()
        self.critics.update_ema()

    # ---- advantages of held-out states, for a figure -------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget the advantages of the last validation."""
        self._advantages = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Losses, and the advantages for the figure."""
        super().validation_step(batch, batch_idx)
        self._advantages.append(self.batch_advantages(batch).float().cpu())

    def batch_advantages(self, batch: Any) -> Tensor:
        """Advantages (B,) of a batch for the figure, without gradient."""
        return self.advantages(batch.observations, batch.actions)

    @torch.no_grad()
    def advantages(self, observations: Tensor, actions: Tensor) -> Tensor:
        """A(s, a) by the target critics for raw observations (B, o): (B,), in reward units."""
        return self.critics.advantages(self.normalize_observations(observations), actions)

    def figures(self) -> dict[str, Figure]:
        """The histogram of advantages on held-out states (ACD, Figure 1)."""
        if not self._advantages:
            return {}
        return {"advantages": advantage_histogram(torch.cat(self._advantages).numpy())}
