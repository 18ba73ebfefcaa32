"""What IQL, ACG, IDQL and ACD share: IQL's critics beside a policy that learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.ranges import require_in
from lit_offrl.datasets.views import AdvantageBatch, TransitionBatch
from lit_offrl.figures import advantage_histogram
from lit_offrl.modules.base import Decay, OfflineModule
from lit_offrl.modules.diffusion_actor import DiffusionActor
from lit_offrl.modules.expectile import ExpectileCritics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ActorModule(OfflineModule):
    """A method with one actor on one-step transitions.

    A subclass builds ``self.actor`` and gives ``actor_loss`` and ``policy``.

    Args:
        observation_dim: o.
        action_dim: a.
        normalize: scale observations to the data's range [−1, 1].
        learning_rate: Adam's rate.
        weight_decay: of the actor's weights (AdamW).
        decay: of the actor's rate: constant, or by a cosine to 0 at ``trainer.max_steps``.
        seed: names the stream of all random numbers in training.

    Raises:
        ConfigError: the data have no actions, or a number is out of its range.
    """

    actor: nn.Module

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        normalize: bool,
        learning_rate: float,
        weight_decay: float,
        decay: Decay,
        seed: int,
    ) -> None:
        super().__init__(observation_dim, learning_rate, seed, decay)
        if action_dim < 1:
            raise ConfigError(
                f"{type(self).__name__} needs a dataset with actions; this one has none."
            )
        require_in("[0, inf)", weight_decay=weight_decay)
        self.normalize, self.weight_decay = normalize, weight_decay

    def normalize_observations(self, observations: Tensor) -> Tensor:
        """Observations as the networks see them."""
        return self.normalizer.normalize(observations) if self.normalize else observations

    def actor_loss(self, observations: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
        """The actor's loss for observed states (B, o), actions (B, a), advantages (B,)."""
        raise NotImplementedError(f"{type(self).__name__} must define actor_loss().")

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The actor's weights, without those of its average."""
        return {"actor": [p for p in self.actor.parameters() if p.requires_grad]}

    def learning_rate_of(self, network: str, step: int) -> float:
        """The actor's rate may decay; the critics' does not."""
        return super().learning_rate_of(network, step) if network == "actor" else self.learning_rate

    def weight_decay_of(self, network: str) -> float:
        """Only the actor's weights decay."""
        return self.weight_decay if network == "actor" else 0.0

    def after_step(self) -> None:
        """Move the actor's average, if it has one."""
        if isinstance(self.actor, DiffusionActor):
            self.actor.update_ema()


class CriticGuidedModule(ActorModule):
    """An actor that learns from IQL's critics, trained in the same step (ACD, Algorithm 1).

    Args:
        observation_dim: o.
        action_dim: a.
        gamma: discount γ.
        expectile: τ of V.
        polyak_rate: of the target critics.
        hidden: widths of the critics.
        layer_norm: LayerNorm in the critics.
        normalize: as ``ActorModule``.
        learning_rate: as ``ActorModule``.
        weight_decay: as ``ActorModule``.
        decay: as ``ActorModule``.
        seed: as ``ActorModule``.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        gamma: float,
        expectile: float,
        polyak_rate: float,
        hidden: Sequence[int],
        layer_norm: bool,
        normalize: bool,
        learning_rate: float,
        weight_decay: float,
        decay: Decay,
        seed: int,
    ) -> None:
        super().__init__(
            observation_dim, action_dim, normalize, learning_rate, weight_decay, decay, seed
        )
        self.critics = ExpectileCritics(
            observation_dim,
            action_dim,
            gamma=gamma,
            expectile=expectile,
            polyak_rate=polyak_rate,
            hidden=hidden,
            layer_norm=layer_norm,
        )
        self._seen: list[Tensor] = []

    def losses(self, batch: TransitionBatch | AdvantageBatch) -> dict[str, Tensor]:
        """``value`` and ``critic`` (IQL) and ``actor``.

        Raises:
            ConfigError: the view gives no transitions with rewards.
        """
        if not isinstance(batch, TransitionBatch | AdvantageBatch) or batch.rewards is None:
            raise ConfigError(
                f"{type(self).__name__} trains on Transitions with rewards, but the view gives a "
                f"{type(batch).__name__}: set data.init_args.view to Transitions, or leave the "
                "view to the model."
            )
        observations = self.normalize_observations(batch.observations)
        losses, advantages = self.critics.losses(
            observations,
            batch.actions,
            batch.rewards,
            self.normalize_observations(batch.next_observations),
            batch.terminals,
        )
        self.log_scalar("advantage/mean", advantages.mean())
        self.log_scalar("advantage/positive", (advantages > 0).float().mean())
        return losses | {"actor": self.actor_loss(observations, batch.actions, advantages)}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Critics, value and actor."""
        return self.critics.parameter_groups() | super().parameter_groups()

    def after_step(self) -> None:
        """Move the target critics, and the actor's average."""
        super().after_step()
        self.critics.update_ema()

    # ---- advantages of held-out states, for a figure -------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget the advantages of the last validation."""
        self._seen = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Losses, and the advantages for the figure."""
        super().validation_step(batch, batch_idx)
        self._seen.append(self.batch_advantages(batch).float().cpu())

    def batch_advantages(self, batch: Any) -> Tensor:
        """Advantages (B,) of a batch for the figure, without gradient."""
        return self.advantages(batch.observations, batch.actions)

    @torch.no_grad()
    def advantages(self, observations: Tensor, actions: Tensor) -> Tensor:
        """A(s, a) by the target critics for raw observations (B, o): (B,), in reward units."""
        return self.critics.advantages(self.normalize_observations(observations), actions)

    def figures(self) -> dict[str, Figure]:
        """The histogram of advantages on held-out states (ACD, Figure 1)."""
        if not self._seen:
            return {}
        return {"advantages": advantage_histogram(torch.cat(self._seen).numpy())}
