"""Advantage-weighted regression (AWR): imitation weighted by the behaviour policy's advantages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.views import TransitionBatch, Transitions
from lit_offrl.modules.iql import IQLModule


class AWRModule(IQLModule):
    """Advantage-weighted regression (Peng et al. 2019): IQL with the behaviour's own value.

    Only the weights prefer better actions: V is the mean over the data's actions (expectile 0.5).
    It is learned by bootstrapping, or by regression on the returns up to the end of the episode.

    Args:
        bootstrap: Whether values bootstrap. If not, A = (discounted return) − V(s), and a timeout
            ends the return as a terminal does.
        **kwargs: Options of ``IQLModule`` but for the expectile.
    """

    eager_because = None

    def __init__(self, *args: Any, bootstrap: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, expectile=0.5, **kwargs)
        self.bootstrap = bootstrap
        if not bootstrap:
            self.critics.q.requires_grad_(False)

    def view(self) -> Transitions:
        """Transitions, with discounted returns where values do not bootstrap."""
        return self.transitions(returns=None if self.bootstrap else self.gamma)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Critics, value and actor; without bootstrapping there are no critics."""
        groups = super().parameter_groups()
        if not self.bootstrap:
            del groups["critic"]
        return groups

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """IQL's at expectile 0.5; without bootstrapping ``value`` and ``actor`` by returns."""
        if self.bootstrap:
            return super().losses(batch)
        returns = getattr(batch, "returns", None)  # which batches of other views lack
        if returns is None:
            raise ConfigError(
                "bootstrap is false, but the batch has no returns: leave the view to the model, or "
                f"set its 'returns' to {self.critics.gamma}; the data must have all rewards."
            )
        observations = self.normalize_observations(batch.observations)
        error = returns - self.critics.value(observations)
        actor = self.actor_loss(observations, batch.actions, error.detach())
        return {"value": error.square().mean(), "actor": actor}

    def after_step(self) -> None:
        """Move the target critics, where there are critics."""
        if self.bootstrap:
            super().after_step()

    @torch.no_grad()
    def batch_advantages(self, batch: TransitionBatch) -> Tensor:
        """Those of ``advantages``, or without bootstrapping (discounted return) − V(s), (B,)."""
        if self.bootstrap:
            return super().batch_advantages(batch)
        assert batch.returns is not None  # or losses() would have refused the batch
        return batch.returns - self.critics.value(self.normalize_observations(batch.observations))

    @torch.no_grad()
    def advantages(self, observations: Tensor, actions: Tensor) -> Tensor:
        """A(s, a), (B,).

        Raises:
            ConfigError: Without bootstrapping there is no Q.
        """
        if not self.bootstrap:
            raise ConfigError("AWRModule with bootstrap false has no Q, so no advantages of steps.")
        return super().advantages(observations, actions)
