"""Behaviour cloning: the control that every offline method has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.modules.actor import ActorModule
from lit_offrl.nets import DeterministicPolicy, GaussianPolicy


class BCModule(ActorModule):
    """Imitates the dataset's actions; acts by the mean.

    Args:
        head: ``gaussian`` maximises the likelihood of the data under a tanh mean and a
            state-independent log σ; ``deterministic`` minimises the squared error.
        hidden: Widths of the policy's layers.
        **kwargs: Options of ``OfflineModule``; observations are scaled to [-1, 1].
    """

    actor: DeterministicPolicy
    required_columns = ("actions",)

    def __init__(
        self,
        *args: Any,
        head: Literal["gaussian", "deterministic"] = "gaussian",
        hidden: Sequence[int] = (256, 256),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, normalize=True, weight_decay=0.0, decay="constant", **kwargs)
        kind = GaussianPolicy if head == "gaussian" else DeterministicPolicy
        self.actor = kind(self.observation_dim, self.action_dim, hidden=hidden, **self.bounds)

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """``actor``: negative log-likelihood (nats a row), or squared error."""
        mean = self.actor(self.normalize_observations(batch.observations))
        error = (mean - batch.actions).square().mean()
        self.log_scalar("actor/squared_error", error)
        if isinstance(self.actor, GaussianPolicy):
            return {"actor": -self.actor.log_density(mean, batch.actions).mean()}
        return {"actor": error}
