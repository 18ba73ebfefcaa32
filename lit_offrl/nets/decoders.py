"""Decoders π(a | s, z) of latents into actions, continuous or discrete."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lit_offrl.nets.critics import EnsembleLinear
from lit_offrl.nets.mlp import MLP

States = Float[Tensor, "*#B o"]
Latents = Float[Tensor, "*#B z"]
Actions = Float[Tensor, "*B a"]
Densities = Float[Tensor, "*B"]


class AutoregressiveDecoder(nn.Module):
    """π(a | s, z) = Π_i N(a_i; μ_i, σ_i²), μ_i and σ_i of (s, z, a_1 … a_{i−1}).

    Each dimension has its own MLP, of 2 layers and 2 more in each of its heads (LDCQ, appendix
    A.2.1, after EMAQ). Densities of given actions take one pass, in which later dimensions are
    masked and, on a GPU, all MLPs run as one batched product per layer; only sampling is
    sequential.

    Args:
        observation_dim: Size o of an observation.
        latent_dim: Size z of a latent.
        action_dim: Size a of an action.
        width: Width of all layers.
        low: Lower bounds ``(a,)`` to which drawn actions are clipped, dimension by dimension, so
            that the next dimension depends on what will be executed; none if None.
        high: Upper bounds ``(a,)``, as ``low``.
        min_std: Number added to σ, so that no density is infinite.
    """

    mask: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        observation_dim: int,
        latent_dim: int,
        action_dim: int,
        *,
        width: int = 256,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
        min_std: float = 1e-4,
    ) -> None:
        super().__init__()
        self.given_dim, self.action_dim = observation_dim + latent_dim, action_dim
        self.min_std = min_std
        self.first = EnsembleLinear(action_dim, self.given_dim + action_dim, width)
        self.second = EnsembleLinear(action_dim, width, width)
        self.heads = EnsembleLinear(action_dim, width, 2 * width)  # hidden layers of both heads
        self.mean = EnsembleLinear(action_dim, width, 1)
        self.std = EnsembleLinear(action_dim, width, 1)
        with torch.no_grad():  # as an nn.Linear of the inputs that a dimension has
            for i in range(action_dim):
                bound = (self.given_dim + i) ** -0.5
                self.first.weight[i].uniform_(-bound, bound)
                self.first.bias[i].uniform_(-bound, bound)
        earlier = torch.ones(action_dim, action_dim).tril(-1)
        used = torch.cat([torch.ones(action_dim, self.given_dim), earlier], dim=1)
        self.register_buffer("mask", used[..., None], persistent=False)
        unbounded = torch.full((action_dim,), math.inf)
        self.register_buffer("low", -unbounded if low is None else torch.tensor(low).float())
        self.register_buffer("high", unbounded if high is None else torch.tensor(high).float())

    def encode(self, actions: Actions) -> Actions:
        """Return actions as an encoder takes them: unchanged."""
        return actions

    def moments(
        self, observations: States, latents: Latents, actions: Actions
    ) -> tuple[Actions, Actions]:
        """Return μ and σ of each dimension given the earlier ones of ``actions``, in one pass."""
        lead = actions.shape[:-1]
        parts = [part.expand(*lead, part.shape[-1]) for part in (observations, latents, actions)]
        x = torch.cat(parts, dim=-1).flatten(0, -2)
        # One after another on a CPU, whose cache holds one MLP's features.
        mean, std = self._each(x) if x.device.type == "cpu" else self._together(x)
        return mean.T.unflatten(0, lead), std.T.unflatten(0, lead)

    def log_prob(self, observations: States, latents: Latents, actions: Actions) -> Densities:
        """Return the log density ``(…,)`` of actions ``(…, a)``, in nats."""
        mean, std = self.moments(observations, latents, actions)
        distance = (actions - mean) / std
        return -(0.5 * distance.square() + std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

    def act(
        self, observations: States, latents: Latents, noise: Actions | None = None
    ) -> Float[Tensor, "N a"]:
        """Return N actions inside the bounds, from standard normal ``noise``; the means if None."""
        given = torch.cat([observations, latents], dim=-1).expand(self.action_dim, -1, -1)
        of_given, of_earlier = self.first.weight.split([self.given_dim, self.action_dim], dim=1)
        shared = torch.baddbmm(self.first.bias, given, of_given)
        chosen: list[Tensor] = []
        for i, rest in enumerate(self._members()):
            x = shared[i : i + 1]
            if i > 0:
                x = torch.baddbmm(x, torch.stack(chosen, dim=-1)[None], of_earlier[i : i + 1, :i])
            mean, std = (part.squeeze(0) for part in self._rest(x, rest))
            drawn = mean if noise is None else mean + std * noise[:, i]
            chosen.append(drawn.clamp(self.low[i], self.high[i]))
        return torch.stack(chosen, dim=-1)

    def _together(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ and σ (a, N) of inputs (N, o + z + a), by one batched product per layer."""
        weight = self.first.weight * self.mask
        x = torch.baddbmm(self.first.bias, x.expand(self.action_dim, -1, -1), weight)
        return self._rest(x, self._weights())

    def _each(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what ``_together`` does, by one MLP after the other."""
        first = ((self.first.weight * self.mask).split(1), self.first.bias.split(1))
        both = [
            self._rest(torch.baddbmm(bias, x[None], weight), rest)
            for weight, bias, rest in zip(*first, self._members(), strict=True)
        ]
        mean, std = (torch.cat(part) for part in zip(*both, strict=True))
        return mean, std

    def _weights(self) -> list[tuple[Tensor, Tensor]]:
        """Return biases and weights of the layers after the first, of all dimensions."""
        layers = (self.second, self.heads, self.mean, self.std)
        return [(layer.bias, layer.weight) for layer in layers]

    def _members(self) -> list[list[tuple[Tensor, Tensor]]]:
        """Return the ``_weights`` of each dimension."""
        layers = [list(zip(b.split(1), w.split(1), strict=True)) for b, w in self._weights()]
        return [list(member) for member in zip(*layers, strict=True)]

    def _rest(self, x: Tensor, weights: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return μ and σ (n, N) of n dimensions from their first layer's output (n, N, width)."""
        for bias, weight in weights[:2]:
            x = torch.baddbmm(bias, F.relu(x), weight)
        halves = F.relu(x).chunk(2, dim=-1)
        mean, std = (
            torch.baddbmm(bias, half, weight).squeeze(-1).float()
            for (bias, weight), half in zip(weights[2:], halves, strict=True)
        )
        return mean, F.softplus(std) + self.min_std


class CategoricalDecoder(nn.Module):
    """π(a | s, z) over n discrete actions, which are columns ``(…, 1)`` of whole numbers 0 … n − 1.

    Args:
        observation_dim: Size o of an observation.
        latent_dim: Size z of a latent.
        num_actions: Number n of actions.
        width: Width of the 3 hidden layers, as many as a continuous dimension has.
    """

    action_dim = 1

    def __init__(
        self, observation_dim: int, latent_dim: int, num_actions: int, *, width: int = 256
    ) -> None:
        super().__init__()
        self.num_actions = num_actions
        self.logits = MLP(observation_dim + latent_dim, [width] * 3, num_actions)

    def encode(self, actions: Float[Tensor, "*B 1"]) -> Float[Tensor, "*B n"]:
        """Return actions as an encoder takes them: one-hot."""
        return F.one_hot(actions.squeeze(-1).long(), self.num_actions).to(actions.dtype)

    def log_prob(self, observations: States, latents: Latents, actions: Actions) -> Densities:
        """Return the log probability ``(…,)`` of actions ``(…, 1)``, in nats."""
        lead = actions.shape[:-1]
        given = (part.expand(*lead, part.shape[-1]) for part in (observations, latents))
        log_probs = self._log_probs(*given)
        return log_probs.gather(-1, actions.long()).squeeze(-1)

    def act(
        self, observations: States, latents: Latents, noise: Actions | None = None
    ) -> Float[Tensor, "N 1"]:
        """Return actions from standard normal ``noise``, by the inverse distribution function.

        Without noise they are the likeliest ones.
        """
        log_probs = self._log_probs(observations, latents)
        if noise is None:
            return log_probs.argmax(-1, keepdim=True).float()
        below = log_probs.exp().cumsum(-1)[..., :-1] < torch.special.ndtr(noise)
        return below.sum(-1, keepdim=True).float()

    def _log_probs(self, observations: Tensor, latents: Tensor) -> Tensor:
        return self.logits(torch.cat([observations, latents], dim=-1)).float().log_softmax(-1)
