"""The velocity of a flow of actions, by an MLP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.nets.mlp import MLP, make_activation, require_widths


class VelocityNet(nn.Module):
    """v(x_t, t, condition) by an MLP of condition, x_t and t joined, as in FQL's code.

    Its first layer is a sum, of which ``encode`` computes the condition's part and the bias: once
    for all steps of a sampling call.

    Args:
        event_dim: Size of x_t.
        condition_dim: Size of a condition.
        hidden: Widths of the hidden layers, at least one.
        activation: A name of `lit_offrl.nets.mlp.ACTIVATIONS`.

    Raises:
        ConfigError: A width is below 1, or there is none.
    """

    def __init__(
        self,
        event_dim: int,
        condition_dim: int,
        hidden: Sequence[int] = (512,) * 4,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        require_widths(hidden)
        if not hidden:
            raise ConfigError("hidden is []: give at least one width.")
        self.condition_dim = condition_dim
        self.first = nn.Linear(condition_dim + event_dim + 1, hidden[0])
        self.activation = make_activation(activation, overwrite=True)
        self.rest = MLP(hidden[0], hidden[1:], event_dim, activation)

    def encode(self, condition: Float[Tensor, "B c"]) -> Float[Tensor, "B width"]:
        """Return the condition's part of the first layer, and its bias."""
        return F.linear(condition, self.first.weight[:, : self.condition_dim], self.first.bias)

    def velocity(
        self,
        x_t: Float[Tensor, "B event"],
        t: Float[Tensor, " B"],
        encoded: Float[Tensor, "B width"],
    ) -> Float[Tensor, "B event"]:
        """Predict dx/dt at times t in [0, 1], for an encoded condition."""
        joined = torch.cat([x_t, t[:, None].to(x_t.dtype)], dim=1)
        weight = self.first.weight[:, self.condition_dim :]
        return self.rest(self.activation(torch.addmm(encoded, joined, weight.T)))

    def forward(
        self, x_t: Float[Tensor, "B event"], t: Float[Tensor, " B"], condition: Float[Tensor, "B c"]
    ) -> Float[Tensor, "B event"]:
        """Predict from a condition that is not encoded yet."""
        return self.velocity(x_t, t, self.encode(condition))
