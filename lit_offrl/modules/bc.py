"""Behaviour cloning: the baseline that every other method has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from lit_offrl.datasets.normalizers import Normalization
from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.modules.actor import ActorModule
from lit_offrl.nets import DeterministicPolicy, GaussianPolicy


class BCModule(ActorModule):
    """Imitates the dataset's actions; acts by the mean.

    Observations are scaled to [-1, 1] by default; the papers do not say how they scale them.

    Args:
        head: ``gaussian`` maximises the likelihood of the data under a tanh mean and a
            state-independent log σ; ``deterministic`` minimises the squared error.
        hidden: Widths of the policy's layers.
        normalize: How observations are scaled: ``true`` or ``min_max`` maps the range of the data
            to [-1, 1], ``mean_std`` subtracts the mean and divides by the standard deviation +
            1e-3, and ``false`` leaves them as they are.
        **kwargs: Options of ``ActorModule`` but for n_step, weight_decay and decay.
    """

    actor: DeterministicPolicy
    eager_because = None
    required_columns = ("actions",)

    def __init__(
        self,
        *args: Any,
        head: Literal["gaussian", "deterministic"] = "gaussian",
        hidden: Sequence[int] = (256, 256),
        normalize: Normalization = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args, normalize=normalize, weight_decay=0.0, decay="constant", n_step=None, **kwargs
        )
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
