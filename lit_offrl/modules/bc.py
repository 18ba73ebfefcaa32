"""Behaviour cloning: the control that every offline method has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.policies import NetworkPolicy
from lit_offrl.nets import DeterministicPolicy, GaussianPolicy


class BCModule(OfflineModule):
    """Imitates the dataset's actions.

    ``gaussian`` maximises the likelihood of the data under a tanh mean and a state-independent
    log σ; ``deterministic`` minimises the squared error. Both act by the mean.

    Args:
        observation_dim: o, size of an observation; linked from the data.
        action_dim: a, size of an action; linked from the data.
        action_low: lower bounds (a,); linked from the data.
        action_high: upper bounds (a,); linked from the data.
        head: how the policy is fitted.
        hidden: widths of the policy's layers.
        learning_rate: Adam's rate.
        seed: names the stream of all random numbers in training.

    Raises:
        ConfigError: the data have no actions.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        action_low: Sequence[float] | None = None,
        action_high: Sequence[float] | None = None,
        *,
        head: Literal["gaussian", "deterministic"] = "gaussian",
        hidden: Sequence[int] = (256, 256),
        learning_rate: float = 3e-4,
        seed: int = 0,
    ) -> None:
        super().__init__(observation_dim, learning_rate, seed)
        if action_dim < 1:
            raise ConfigError("Behaviour cloning needs a dataset with actions; this one has none.")
        self.save_hyperparameters()
        kind = GaussianPolicy if head == "gaussian" else DeterministicPolicy
        self.actor = kind(
            observation_dim, action_dim, hidden=hidden, low=action_low, high=action_high
        )

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Columns without which it cannot be trained; rewards are not among them."""
        return ("actions",)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The actor alone."""
        return {"actor": list(self.actor.parameters())}

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """``actor``: negative log-likelihood (nats a row), or squared error."""
        observations = self.normalizer.normalize(batch.observations)
        error = (self.actor(observations) - batch.actions).square().mean()
        self.log_scalar("actor/squared_error", error)
        if isinstance(self.actor, GaussianPolicy):
            return {"actor": -self.actor.log_prob(observations, batch.actions).mean()}
        return {"actor": error}

    def policy(self) -> NetworkPolicy:
        """Act by the mean."""
        return NetworkPolicy(lambda rows: self.actor(self.normalizer.normalize(rows)), self.device)
