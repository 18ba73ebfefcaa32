"""Policies with one mode inside the action bounds, with or without noise around it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.nets.mlp import MLP, DenseNetMLP

Observations = Float[Tensor, "*B o"]
Actions = Float[Tensor, "*B a"]
Densities = Float[Tensor, "*B"]


def centre_and_scale(
    action_dim: int, low: Sequence[float] | None, high: Sequence[float] | None
) -> tuple[Tensor, Tensor]:
    """Return centre and half width ``(a,)`` of the action bounds, −1 and 1 where they are None.

    Raises:
        ConfigError: They are not ``action_dim`` finite numbers each, low below high.
    """
    lower = torch.as_tensor([-1.0] * action_dim if low is None else low).float()
    upper = torch.as_tensor([1.0] * action_dim if high is None else high).float()
    fit = lower.shape == upper.shape == (action_dim,)
    if not fit or not bool((torch.isfinite(upper - lower) & (lower < upper)).all()):
        raise ConfigError(
            f"action_low is {low} and action_high {high}: give {action_dim} finite numbers each, "
            "low below high."
        )
    return (upper + lower) / 2, (upper - lower) / 2


class BoundedActions(nn.Module):
    """A network whose actions lie within bounds: their centre and half width (a,) are buffers.

    Args:
        action_dim: Size a of an action.
        low: Lower bounds ``(a,)``; −1 if None.
        high: Upper bounds ``(a,)``; 1 if None.

    Raises:
        ConfigError: The bounds are not ``action_dim`` finite numbers each, low below high.
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self, action_dim: int, low: Sequence[float] | None, high: Sequence[float] | None
    ) -> None:
        super().__init__()
        centre, scale = centre_and_scale(action_dim, low, high)
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)


class DeterministicPolicy(BoundedActions):
    """a = centre + scale · tanh(MLP(s)), always inside the action bounds.

    Args:
        observation_dim: Size o of an observation.
        action_dim: Size a of an action.
        hidden: Widths of the hidden layers.
        low: Lower bounds ``(a,)``; −1 if None.
        high: Upper bounds ``(a,)``; 1 if None.
        **kwargs: Options of the ``network``, an `MLP`: layer_norm and dropout.

    Raises:
        ConfigError: The bounds are not ``action_dim`` finite numbers each, low below high.
    """

    network: type[nn.Module] = MLP
    outputs = 1
    """Numbers that the network gives for each dimension of an action."""

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        hidden: Sequence[int] = (256, 256),
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(action_dim, low, high)
        self.net = self.network(observation_dim, hidden, self.outputs * action_dim, **kwargs)

    def forward(self, observations: Observations) -> Actions:
        """Return the mean action ``(…, a)``, in the environment's units."""
        return self.centre + self.scale * torch.tanh(self.net(observations))


class GaussianPolicy(DeterministicPolicy):
    """N(centre + scale · tanh(MLP(s)), σ²) with a σ that does not depend on the state.

    The squashed mean of Kostrikov et al. 2022 (IQL): the Gaussian itself is not squashed, so any
    action of a dataset has a finite likelihood, also one on the bounds.

    Args:
        observation_dim: Size o of an observation.
        action_dim: Size a of an action.
        log_std_range: Range to which log σ is clamped; σ is in units of the action and begins at 1.
        **kwargs: Options of ``DeterministicPolicy``.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        log_std_range: tuple[float, float] = (-5.0, 2.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, **kwargs)
        self.raw_log_std = nn.Parameter(torch.zeros(action_dim))
        self.log_std_range = log_std_range

    @property
    def log_std(self) -> Float[Tensor, " a"]:
        """Log σ ``(a,)``, inside ``log_std_range``."""
        return self.raw_log_std.clamp(*self.log_std_range)

    def log_prob(self, observations: Observations, actions: Actions) -> Densities:
        """Return the log density ``(…,)`` of given actions ``(…, a)``, in nats."""
        return self.log_density(self(observations), actions)

    def log_density(self, mean: Actions, actions: Actions) -> Densities:
        """Return the log density ``(…,)`` of actions around means that are known already."""
        log_std = self.log_std
        distance = (actions - mean) * torch.exp(-log_std)
        return -(0.5 * distance.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Float[Tensor, " a"]:
        """Return the entropy ``(a,)`` of each action dimension in nats, which no state changes."""
        return self.log_std + 0.5 * math.log(2 * math.pi * math.e)

    def perturb(self, mean: Actions, noise: Actions) -> Actions:
        """Return ``mean + σ · noise``, clipped to the bounds, beyond which no critic has data.

        Actions are differentiable in mean and σ where they are not clipped.
        """
        drawn = mean + self.log_std.exp() * noise
        return drawn.clamp(self.centre - self.scale, self.centre + self.scale)


class TanhGaussianPolicy(DeterministicPolicy):
    """a = centre + scale · tanh(u) with u ~ N(μ(s), σ(s)²), as in soft actor-critics.

    Source: Haarnoja et al. 2018, appendix C. μ and log σ are the halves of a DenseNet MLP's output.

    Args:
        observation_dim: Size o of an observation.
        action_dim: Size a of an action.
        log_std_range: Range to which log σ, before squashing, is clamped.
        **kwargs: Options of ``DeterministicPolicy``: hidden, low and high.
    """

    network = DenseNetMLP
    outputs = 2

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        log_std_range: tuple[float, float] = (-5.0, 2.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, **kwargs)
        self.log_std_range = log_std_range

    def forward(self, observations: Observations) -> Actions:
        """Return the squashed mean ``(…, a)``, in the environment's units, for acting."""
        return self.centre + self.scale * torch.tanh(self.moments(observations)[0])

    def moments(self, observations: Observations) -> tuple[Actions, Actions]:
        """Return μ and log σ of u, ``(…, a)`` each, float32 in any precision."""
        mean, log_std = self.net(observations).float().chunk(2, dim=-1)
        return mean, log_std.clamp(*self.log_std_range)

    def draw(
        self,
        mean: Float[Tensor, "*#B a"],
        log_std: Float[Tensor, "*#B a"],
        noise: Float[Tensor, "*#B a"],
    ) -> tuple[Actions, Densities]:
        """Return actions for standard normal ``noise``, and their log densities in nats.

        Both are differentiable in the moments of u.
        """
        pre = mean + log_std.exp() * noise
        return self.centre + self.scale * torch.tanh(pre), self._log_density(pre, log_std, noise)

    def log_prob(self, observations: Observations, actions: Actions) -> Densities:
        """Return the log density ``(…,)`` of actions ``(…, a)``, moved inside the bounds."""
        mean, log_std = self.moments(observations)
        # Nearer to a bound float32 has too few numbers to tell densities apart.
        inside = ((actions - self.centre) / self.scale).clamp(-1 + 1e-5, 1 - 1e-5)
        pre = torch.atanh(inside)
        return self._log_density(pre, log_std, (pre - mean) * torch.exp(-log_std))

    def _log_density(self, pre: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
        """Return log N(u; μ, σ²) − log |da/du| with da/du = scale · (1 − tanh² u), ``(…,)``."""
        gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        slope = 2.0 * (math.log(2.0) - pre - F.softplus(-2.0 * pre)) + self.scale.log()
        return (gaussian - slope).sum(-1)
