"""Policies with one mode: a mean inside the action bounds, with or without noise around it."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_offrl.nets.mlp import MLP


class DeterministicPolicy(nn.Module):
    """a = centre + scale · tanh(MLP(s)), always inside the action bounds.

    Args:
        observation_dim: o, size of an observation.
        action_dim: a, size of an action.
        hidden: widths of the hidden layers.
        low: lower bounds ``(a,)``; −1 if None.
        high: upper bounds ``(a,)``; 1 if None.
        layer_norm: LayerNorm before each activation.
        dropout: probability of dropping a hidden unit.

    Raises:
        ValueError: if the bounds do not have ``action_dim`` finite numbers each, low below high.
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        hidden: Sequence[int] = (256, 256),
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
        layer_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        lower = torch.as_tensor([-1.0] * action_dim if low is None else low).float()
        upper = torch.as_tensor([1.0] * action_dim if high is None else high).float()
        if (
            not lower.shape == upper.shape == (action_dim,)
            or not bool(torch.isfinite(upper - lower).all())
            or not bool((lower < upper).all())
        ):
            raise ValueError(
                f"action bounds need {action_dim} finite numbers each, low < high; "
                f"got low={low}, high={high}"
            )
        self.net = MLP(observation_dim, hidden, action_dim, layer_norm=layer_norm, dropout=dropout)
        self.register_buffer("centre", (upper + lower) / 2)
        self.register_buffer("scale", (upper - lower) / 2)

    def forward(self, observations: Float[Tensor, "*B o"]) -> Float[Tensor, "*B a"]:
        """The mean action ``(…, a)``, in the environment's units."""
        return self.centre + self.scale * torch.tanh(self.net(observations))


class GaussianPolicy(DeterministicPolicy):
    """N(centre + scale · tanh(MLP(s)), σ²) with a σ that does not depend on the state.

    The squashed mean of Kostrikov et al. 2022 (IQL): the Gaussian itself is not squashed, so any
    action of a dataset has a finite likelihood, also one on the bounds.

    Args:
        observation_dim: o, size of an observation.
        action_dim: a, size of an action.
        hidden: widths of the hidden layers.
        low: lower bounds ``(a,)``; −1 if None.
        high: upper bounds ``(a,)``; 1 if None.
        layer_norm: LayerNorm before each activation.
        dropout: probability of dropping a hidden unit.
        log_std_range: log σ is clamped to it; σ is in units of the action and begins at 1.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        hidden: Sequence[int] = (256, 256),
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
        layer_norm: bool = False,
        dropout: float = 0.0,
        log_std_range: tuple[float, float] = (-5.0, 2.0),
    ) -> None:
        super().__init__(
            observation_dim,
            action_dim,
            hidden=hidden,
            low=low,
            high=high,
            layer_norm=layer_norm,
            dropout=dropout,
        )
        self.raw_log_std = nn.Parameter(torch.zeros(action_dim))
        self.log_std_range = log_std_range

    @property
    def log_std(self) -> Float[Tensor, " a"]:
        """log σ, ``(a,)``, inside ``log_std_range``."""
        return self.raw_log_std.clamp(*self.log_std_range)

    def log_prob(
        self, observations: Float[Tensor, "*B o"], actions: Float[Tensor, "*B a"]
    ) -> Float[Tensor, "*B"]:
        """Log density of given actions ``(…, a)``, summed over their dimensions: ``(…,)``, nats."""
        log_std = self.log_std
        distance = (actions - self(observations)) * torch.exp(-log_std)
        return -(0.5 * distance.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Float[Tensor, " a"]:
        """Entropy of each action dimension ``(a,)`` in nats, the same in every state."""
        return self.log_std + 0.5 * math.log(2 * math.pi * math.e)

    def perturb(
        self, mean: Float[Tensor, "*B a"], noise: Float[Tensor, "*B a"]
    ) -> Float[Tensor, "*B a"]:
        """Actions ``mean + σ · noise``, cut off at the bounds, beyond which no critic has data.

        Args:
            mean: what `forward` returned, ``(…, a)``.
            noise: standard normal numbers ``(…, a)``.

        Returns:
            Actions ``(…, a)``, differentiable in mean and σ where they are not cut off.
        """
        drawn = mean + self.log_std.exp() * noise
        return drawn.clamp(self.centre - self.scale, self.centre + self.scale)
