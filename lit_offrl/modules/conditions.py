"""Conditions of a policy on an action's advantage, or on whether the advantage is positive.

Source of the latter, and of values of returns: "π*0.6: a VLA that learns from experience" (Physical
Intelligence 2025, arXiv:2511.14759), RECAP; docs/recap.md maps its terms to options.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.views import OutcomeBatch, Outcomes, View
from lit_offrl.datasets.views.outcomes import BoundOutcomes
from lit_offrl.modules.extraction import rows_of_processes
from lit_offrl.modules.frozen_critics import FrozenCriticsModule
from lit_offrl.modules.return_values import ReturnValues


class ConditionModule(FrozenCriticsModule):
    """An actor that is conditioned on the advantage A(s, a), or on whether it exceeds ε.

    The advantage comes from IQL's critics or from a value model of returns. The threshold ε is a
    number, or the batch's quantile above which a share of its rows lies; in training the batch is
    that of all processes. Rows that the column ``interventions`` marks as a human's corrections
    count as positive whatever their advantage is. A dataset is one task.

    Args:
        values: What gives the advantages: IQL's critics (``expectile``), or a value model of the
            ``returns`` that the data earned, in ``return_bins`` bins.
        lookahead: What A is with ``values: returns``: the return to the end of the ``episode`` −
            V(s_t), or with ``n_step`` the sum of n discounted rewards + γ^n V(s_{t+n}) − V(s_t).
        failure_reward: Reward that is added to the last reward of each episode that ended in a
            timeout. Such an episode then counts as failed, and its end as a terminal. By default a
            timeout is no failure.
        return_bins: Number of bins of returns, at least 2.
        return_range: Smallest and largest return of the bins; those of the data by default.
        condition: Condition of the actor: the ``advantage`` itself, or whether it is ``positive``,
            that is above the threshold, as 1 or −1.
        threshold: Threshold ε of a positive advantage, any finite number.
        positive_share: Share in (0, 1) of a batch's rows that count as positive, in place of
            ``threshold``. Rows equal to the quantile do not count as positive, so the share may be
            smaller. If no row lies above the quantile, rows equal to it count, so that every batch
            has positive rows. The source does not say how ties are treated.
        **kwargs: Options of ``FrozenCriticsModule``.

    Raises:
        ConfigError: Two options do not go together.
    """

    def __init__(
        self,
        *args: Any,
        values: Literal["expectile", "returns"] = "expectile",
        lookahead: Literal["episode", "n_step"] = "episode",
        failure_reward: Annotated[float | None, "(-inf, inf)"] = None,
        return_bins: Annotated[int, "[2, inf)"] = 201,
        return_range: Sequence[float] | None = None,
        condition: Literal["advantage", "positive"] = "advantage",
        threshold: Annotated[float, "(-inf, inf)"] = 0.0,
        positive_share: Annotated[float | None, "(0, 1)"] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.values, self.lookahead, self.failure_reward = values, lookahead, failure_reward
        self.condition, self.threshold = condition, threshold
        self.positive_share = positive_share
        if threshold != 0.0 and positive_share is not None:
            raise ConfigError(
                f"threshold is {threshold} and positive_share {positive_share}: give one of them."
            )
        if values == "returns" and self.frozen_from is not None:
            raise ConfigError(
                "values is 'returns', which are no critics that could label rows: leave labels and "
                "critic out."
            )
        if values == "returns":
            self.critics = ReturnValues(  # type: ignore[assignment]
                self.observation_dim,
                bins=return_bins,
                ends=return_range,
                hidden=self.hidden,
                layer_norm=self.layer_norm,
                activation=self.activation,
            )

    # ---- the data ------------------------------------------------------------------------------

    def view(self) -> View:
        """``Transitions`` or labelled ones; ``Outcomes`` where more of an episode has to be known.

        That is for values of returns, where failures count, and for human corrections.
        """
        plain = self.condition == "advantage" and self.failure_reward is None
        if self.frozen_from is not None or (plain and self.values == "expectile"):
            return super().view()
        return Outcomes(
            returns=self.gamma if self.values == "returns" else None,
            chunk=self.chunk,
            n_step=self.n_step,
            gamma=self.gamma,
            failure=self.failure_reward,
        )

    def setup(self, stage: str) -> None:
        """Set up as any method; a first fit takes the range of returns from the data.

        Raises:
            ConfigError: Their returns are all the same, or the view gives none.
        """
        super().setup(stage)
        if stage != "fit" or self.datamodule is None or not isinstance(self.critics, ReturnValues):
            return
        bound: Any = self.datamodule.train_view()
        returns = bound.returns() if isinstance(bound, BoundOutcomes) else None
        if returns is None:
            raise ConfigError(_NO_RETURNS.format(type(self).__name__))
        self.critics.fit(returns, self.failure_reward)

    # ---- training ------------------------------------------------------------------------------

    def critic_losses(self, batch: Any, observations: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The critics' losses and the batch's advantages, by IQL or by returns."""
        if not isinstance(self.critics, ReturnValues):
            return super().critic_losses(batch, observations)
        if not isinstance(batch, OutcomeBatch) or batch.returns is None:
            raise ConfigError(_NO_RETURNS.format(type(self).__name__))
        outside = (batch.returns < self.critics.ends[0]) | (batch.returns > self.critics.ends[1])
        self.log_scalar("value/outside_range", outside.float().mean())
        return self.critics.losses(observations, batch.returns), self.batch_advantages(batch)

    @torch.no_grad()
    def batch_advantages(self, batch: Any) -> Tensor:
        """Advantages (B,) of a batch by what it says of the steps after, or by the critics."""
        if not isinstance(self.critics, ReturnValues):
            return super().batch_advantages(batch)
        value = self.critics.value(self.normalize_observations(batch.observations))
        if self.lookahead == "episode":
            return batch.returns - value
        following = self.critics.value(self.normalize_observations(batch.next_observations))
        discount = self.gamma if batch.discounts is None else batch.discounts
        return batch.rewards + torch.where(batch.terminals, 0.0, discount * following) - value

    def actor_condition(self, batch: Any, advantages: Tensor) -> Tensor:
        """The actor's condition (B,): the advantages, or 1 for positive ones and −1 for others."""
        if self.condition == "advantage":
            return advantages
        positive = advantages > self.threshold
        if self.positive_share is not None:
            joined = rows_of_processes(advantages) if self.training else advantages
            limit = torch.quantile(joined, 1.0 - self.positive_share)
            positive = (advantages > limit) | (advantages == joined.max())
        corrected = getattr(batch, "corrected", None)  # which batches of other views lack
        if corrected is not None:
            positive = positive | corrected
        self.log_scalar("condition/positive", positive.float().mean())
        return torch.where(positive, 1.0, -1.0)

    @torch.no_grad()
    def advantages(self, observations: Tensor, actions: Tensor) -> Tensor:
        """A(s, a) by the target critics, (B,).

        Raises:
            ConfigError: Values of returns have no Q.
        """
        if isinstance(self.critics, ReturnValues):
            raise ConfigError(
                "values of returns have no Q, so no advantages of single actions: batch_advantages "
                "takes what followed them."
            )
        return super().advantages(observations, actions)


_NO_RETURNS = (
    "{} has values of returns, but the view gives none: leave the view to the model, or set it to "
    "Outcomes with returns."
)
