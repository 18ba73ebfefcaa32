"""Critics Q(s, z) of states and latents, fast for many latents of a state (LDCQ, A.2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.nets.critics import EnsembleLayerNorm, EnsembleLinear
from lit_offrl.nets.mlp import in_float32, make_activation

_ROWS = 1024  # rows of one pass on a CPU without gradients, whose features stay in its cache
_ALL = slice(None)

States = Float[Tensor, "S o"]
Latents = Float[Tensor, "S n z"]


class _Layers(nn.Module):
    """Linear → LayerNorm → activation, for each of ``size`` members and each of some widths."""

    def __init__(self, size: int, widths: Sequence[int], activation: str) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.linears = nn.ModuleList(EnsembleLinear(size, *pair) for pair in pairs)
        self.norms = nn.ModuleList(EnsembleLayerNorm(size, after) for _, after in pairs)
        self.activation = make_activation(activation)

    def forward(self, x: Tensor, members: slice) -> Tensor:
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = self.activation(norm(linear(x, members), members))
        return x


class LatentCritic(nn.Module):
    """Q_1(s, z), …, Q_size(s, z), two by default, whose minimum is the pessimistic value.

    A state goes through 256-256, a latent through 128-128, both joined through 128-32-1, each
    hidden layer with a LayerNorm before its activation, and the last layer of `in_float32`. What
    depends on the state alone is computed once for all latents of that state.

    Args:
        observation_dim: Size o of an observation.
        latent_dim: Size z of a latent.
        state_hidden: Widths of the state's layers.
        latent_hidden: Widths of the latent's layers.
        joined: Widths of the layers after both.
        size: Number of critics.
        activation: A name of `ACTIVATIONS`.

    Raises:
        ConfigError: A width is below 1, or there is no layer after both.
    """

    def __init__(
        self,
        observation_dim: int,
        latent_dim: int,
        state_hidden: Sequence[int] = (256, 256),
        latent_hidden: Sequence[int] = (128, 128),
        joined: Sequence[int] = (128, 32),
        size: int = 2,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        if not joined or min((*state_hidden, *latent_hidden, *joined)) < 1:
            raise ConfigError(
                f"state_hidden is {list(state_hidden)}, latent_hidden {list(latent_hidden)} and "
                f"joined {list(joined)}: give widths of at least 1, of joined at least one."
            )
        self.size = size
        self.state = _Layers(size, (observation_dim, *state_hidden), activation)
        self.latent = _Layers(size, (latent_dim, *latent_hidden), activation)
        self._cut = (observation_dim, *state_hidden)[-1]
        both = self._cut + (latent_dim, *latent_hidden)[-1]
        self.join = EnsembleLinear(size, both, joined[0])
        self.join_norm = EnsembleLayerNorm(size, joined[0])
        self.rest = _Layers(size, joined, activation)
        self.out = EnsembleLinear(size, joined[-1], 1)
        self.activation = make_activation(activation)

    def forward(
        self, observations: Float[Tensor, "B o"], latents: Float[Tensor, "B z"]
    ) -> Float[Tensor, "size B"]:
        """Return every member's value ``(size, B)`` of one latent per state."""
        return self.many(observations, latents[:, None]).squeeze(-1)

    def many(self, observations: States, latents: Latents) -> Float[Tensor, "size S n"]:
        """Return every member's values ``(size, S, n)`` of n latents per state."""
        return self._score(self._encode(observations), latents, _ALL)

    def minimum(self, observations: States, latents: Latents) -> Float[Tensor, "S n"]:
        """Return the least of the members' values, ``(S, n)``."""
        return self.many(observations, latents).amin(dim=0)

    @torch.no_grad()
    def best(
        self, observations: States, latents: Latents
    ) -> tuple[Float[Tensor, " S"], Int[Tensor, " S"]]:
        """Return max_z min_j Q_j(s, z) ``(S,)`` of n latents per state, and its place ``(S,)``.

        On a CPU the first member scores all latents and the others only those that can still win:
        a minimum is at most the first member's value, so latents are scored in its order until the
        next one's value lies below the best minimum. The result is that of scoring all.
        """
        if latents.device.type != "cpu" or self.size == 1:
            return self.minimum(observations, latents).max(dim=1)
        encoded = self._encode(observations)
        bounds, order = self._score(encoded, latents, slice(0, 1))[0].sort(dim=1, descending=True)
        values = bounds.new_full((len(bounds),), -torch.inf)
        chosen = order[:, 0].clone()
        rows = torch.arange(len(bounds))  # states whose best latent is not certain yet
        begin, number = 0, latents.shape[1]
        while len(rows) and begin < number:
            end = min(number, max(8, number // 16, 2 * begin))
            places = order[rows, begin:end]
            others = self._score(encoded[:, rows], latents[rows[:, None], places], slice(1, None))
            least = torch.minimum(bounds[rows, begin:end], others.amin(dim=0))
            found, at = least.max(dim=1)
            # Written so that a NaN is kept.
            better = ~(found <= values[rows])
            values[rows] = torch.where(better, found, values[rows])
            chosen[rows] = torch.where(better, places.gather(1, at[:, None])[:, 0], chosen[rows])
            if end < number:
                rows = rows[bounds[rows, end] > values[rows]]
            begin = end
        return values, chosen

    def _encode(self, observations: Tensor) -> Tensor:
        """Return the states' part ``(size, S, joined)`` of the layer that joins."""
        dtype = self.join.weight.dtype
        states = self.state(observations.to(dtype).expand(self.size, -1, -1), _ALL)
        return torch.baddbmm(self.join.bias, states, self.join.weight[:, : self._cut])

    def _score(self, encoded: Tensor, latents: Tensor, members: slice) -> Tensor:
        """Return some members' values ``(some, S, n)``; ``encoded`` is of all members."""
        encoded, latents = encoded[members], latents.to(encoded.dtype)
        if latents.device.type != "cpu":
            return self._run(encoded, latents, members)
        # One after another: a CPU's cache holds one member's features, and its LayerNorm is fused.
        first = members.start or 0
        some = len(latents)
        if not torch.is_grad_enabled():
            some = max(1, _ROWS // latents.shape[1])
        values = []
        for i, member in enumerate(encoded.split(1), first):
            parts = zip(member.split(some, dim=1), latents.split(some), strict=True)
            values.append(torch.cat([self._run(*part, slice(i, i + 1)) for part in parts], dim=1))
        return torch.cat(values)

    def _run(self, encoded: Tensor, latents: Tensor, members: slice) -> Tensor:
        flat = latents.flatten(0, 1).expand(len(encoded), -1, -1)
        part = torch.bmm(self.latent(flat, members), self.join.weight[members, self._cut :])
        joined = part.unflatten(1, latents.shape[:2]) + encoded[:, :, None]
        x = self.activation(self.join_norm(joined.flatten(1, 2), members))
        values = in_float32(partial(self.out, members=members), self.rest(x, members))
        return values.view(len(encoded), *latents.shape[:2])
