"""A value model of returns that were earned: a distribution over bins, by cross-entropy.

Source: "π*0.6: a VLA that learns from experience" (Physical Intelligence 2025, arXiv:2511.14759),
the distributional value function of RECAP.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.nets import MLP
from lit_offrl.nets.mlp import LayerNorms


class ReturnValues(nn.Module):
    """V(s) = Σ_b p_b(s) v_b, with p(s) fitted to the returns that followed s in the data.

    It is the value of the policy that collected the data: nothing bootstraps, and there is no Q.

    Departure from the source: a return between two bins' values is shared between the two, so that
    the target's mean is the return itself; the source counts it to the nearest bin.

    Args:
        observation_dim: Size o of an observation.
        bins: Number B of bins, at least 2; 201 in the source.
        ends: Values of the first and the last bin; returns outside count as these. By default
            what ``fit`` finds, and before it those of the source's normalised returns, −1 and 0.
        hidden: Widths of the hidden layers.
        layer_norm: Whether a LayerNorm is applied before each activation, or ``after`` it.
        activation: Which.

    Raises:
        ConfigError: The ends are not two rising numbers.
    """

    ends: Tensor
    is_fitted: Tensor
    fractions: Tensor

    def __init__(
        self,
        observation_dim: int,
        *,
        bins: int,
        ends: Sequence[float] | None,
        hidden: Sequence[int],
        layer_norm: LayerNorms = False,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.v = MLP(observation_dim, hidden, bins, activation, layer_norm)
        if ends is not None and (len(ends) != 2 or not ends[0] < ends[1]):
            raise ConfigError(
                f"return_range is {list(ends)}: give two rising numbers, the smallest and the "
                "largest return, or leave it to the data."
            )
        self.register_buffer("ends", torch.tensor(ends or (-1.0, 0.0), dtype=torch.float32))
        self.register_buffer("is_fitted", torch.tensor(ends is not None))
        self.register_buffer("fractions", torch.linspace(0.0, 1.0, bins), persistent=False)

    def fit(self, returns: Tensor, failure: float | None = None) -> None:
        """Take the ends from the data's returns (n,), unless they are given or known already.

        Args:
            returns: Returns of the training rows.
            failure: Number that a failure adds to the last reward. Own episodes may end in a
                failure even if no episode of the data does; the smallest return is then no larger.

        Raises:
            ConfigError: All returns are the same.
        """
        if bool(self.is_fitted):
            return
        known = returns if failure is None else torch.cat([returns, returns.new_tensor([failure])])
        low, high = known.min(), known.max()
        if low == high:
            raise ConfigError(
                f"every return of the data is {float(low):g}, so there is nothing to tell states "
                "apart by: give model.init_args.return_range, or data with failures, too."
            )
        self.ends.copy_(torch.stack([low, high]))
        self.is_fitted.fill_(True)

    def losses(self, observations: Tensor, returns: Tensor) -> dict[str, Tensor]:
        """``value``: the cross-entropy −Σ_b q_b log p_b(s), mean over rows, q of the returns."""
        return {"value": F.cross_entropy(self.v(observations).float(), self.targets(returns))}

    def targets(self, returns: Tensor) -> Tensor:
        """Return q (B, bins) of returns (B,): 1 shared by the two nearest bins, or that of one."""
        within = (returns - self.ends[0]) / (self.ends[1] - self.ends[0])
        last = len(self.fractions) - 1
        place = within.clamp(0.0, 1.0)[:, None] * last
        return (1.0 - (place - self.fractions * last).abs()).clamp_min(0.0)

    def probabilities(self, observations: Tensor) -> Tensor:
        """p(s) (B, bins)."""
        return self.v(observations).float().softmax(dim=-1)

    def value(self, observations: Tensor) -> Tensor:
        """V(s), (B,), in float32 under autocast, too."""
        share = (self.probabilities(observations) * self.fractions).sum(dim=-1)
        return self.ends[0] + (self.ends[1] - self.ends[0]) * share

    def update_ema(self) -> None:
        """Nothing follows: no target is made of it."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The network that is trained."""
        return {"value": list(self.v.parameters())}
