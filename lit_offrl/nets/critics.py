"""Ensembles of critics that run as one batched product a layer."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lit_offrl.nets.mlp import make_activation


class EnsembleLinear(nn.Module):
    """``size`` independent linear layers: ``(size, B, in_dim)`` to ``(size, B, out_dim)``.

    Member i computes ``x[i] @ weight[i] + bias[i]`` and is initialised as an `nn.Linear` is.
    """

    def __init__(self, size: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        bound = in_dim**-0.5
        self.weight = nn.Parameter(torch.empty(size, in_dim, out_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(size, 1, out_dim).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "size B in"]) -> Float[Tensor, "size B out"]:
        """Apply each member to its own rows."""
        return torch.baddbmm(self.bias, x, self.weight)


class EnsembleLayerNorm(nn.Module):
    """``size`` independent LayerNorms over the last of ``(size, B, dim)``."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, 1, dim))
        self.bias = nn.Parameter(torch.zeros(size, 1, dim))

    def forward(self, x: Float[Tensor, "size B dim"]) -> Float[Tensor, "size B dim"]:
        """Normalise each row, then scale and shift it by its member's weights."""
        return torch.addcmul(self.bias, F.layer_norm(x, x.shape[-1:]), self.weight)


class EnsembleMLP(nn.Module):
    """``size`` independent MLPs, on the same rows or each on its own.

    Args:
        size: number of members.
        in_dim: size of an input.
        hidden: widths of the hidden layers.
        out_dim: size of a member's output.
        layer_norm: whether each member has a LayerNorm of its own before each activation.
        activation: a name of `lit_offrl.nets.mlp.ACTIVATIONS`.
    """

    def __init__(
        self,
        size: int,
        in_dim: int,
        hidden: Sequence[int],
        out_dim: int = 1,
        layer_norm: bool = False,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.size = size
        layers: list[nn.Module] = []
        for before, after in pairwise((in_dim, *hidden)):
            layers.append(EnsembleLinear(size, before, after))
            if layer_norm:
                layers.append(EnsembleLayerNorm(size, after))
            layers.append(make_activation(activation))
        layers.append(EnsembleLinear(size, (in_dim, *hidden)[-1], out_dim))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "*size B in"]) -> Float[Tensor, "members B out"]:
        """Map ``(B, in_dim)``, or ``(size, B, in_dim)``, to ``(size, B, out_dim)``."""
        return self.layers(x.expand(self.size, -1, -1))


class TwinCritic(nn.Module):
    """Q_1(s, a), …, Q_size(s, a), two by default, whose minimum is the pessimistic value.

    Args:
        observation_dim: size of an observation.
        action_dim: size of an action.
        hidden: widths of the hidden layers.
        layer_norm: LayerNorm before each activation.
        size: number of critics.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256),
        layer_norm: bool = False,
        size: int = 2,
    ) -> None:
        super().__init__()
        self.members = EnsembleMLP(size, observation_dim + action_dim, hidden, 1, layer_norm)

    def forward(
        self, observations: Float[Tensor, "B o"], actions: Float[Tensor, "B a"]
    ) -> Float[Tensor, "size B"]:
        """Every member's value, ``(size, B)``."""
        return self.members(torch.cat([observations, actions], dim=-1)).squeeze(-1)

    def minimum(
        self, observations: Float[Tensor, "B o"], actions: Float[Tensor, "B a"]
    ) -> Float[Tensor, " B"]:
        """The least of the members' values, ``(B,)``."""
        return self(observations, actions).amin(dim=0)
