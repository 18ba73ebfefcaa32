"""Critics Q(s, z) of states and latents, fast for many latents of a state (LDCQ, A.2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.tracing import traced
from lit_offrl.nets.critics import EnsembleLayerNorm, EnsembleLinear
from lit_offrl.nets.mlp import in_float32, make_activation

_ROWS = 512  # rows of one pass on a CPU without gradients, whose features stay in its cache
_PROBED = 64  # share of latents, one in so many, by which a state's lower member is guessed

States = Float[Tensor, "S o"]
Latents = Float[Tensor, "S n z"]


_Weights = tuple[Tensor, ...]
"""Of one member's layer: the linear map's (in, out) and bias (out,), the LayerNorm's two (out,)."""
_Member = tuple[list[_Weights], _Weights, list[_Weights], _Weights]
"""One member's weights after the state's: of the latent's layers, the joining one, the rest, the
last."""


class _Layers(nn.Module):
    """Linear → LayerNorm → activation, for each of ``size`` members and each of some widths."""

    def __init__(self, size: int, widths: Sequence[int], activation: str) -> None:
        super().__init__()
        self.size = size
        pairs = list(pairwise(widths))
        self.linears = nn.ModuleList(EnsembleLinear(size, *pair) for pair in pairs)
        self.norms = nn.ModuleList(EnsembleLayerNorm(size, after) for _, after in pairs)
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = self.activation(norm(linear(x)))
        return x

    def members(self, dtype: torch.dtype) -> list[list[_Weights]]:
        """Return the layers' weights by member; linear maps in ``dtype``."""
        pairs: Any = zip(self.linears, self.norms, strict=True)
        layers = [
            _by_member(linear.weight.to(dtype), linear.bias[:, 0].to(dtype), *_rows(norm))
            for linear, norm in pairs
        ]
        return [[layer[i] for layer in layers] for i in range(self.size)]


def _by_member(*parts: Tensor) -> list[_Weights]:
    return list(zip(*(part.unbind() for part in parts), strict=True))


def _rows(norm: EnsembleLayerNorm) -> tuple[Tensor, Tensor]:
    """Return a LayerNorm's weights (size, dim)."""
    return norm.weight[:, 0], norm.bias[:, 0]


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
        return self._score(self._encode(observations), latents)

    def minimum(self, observations: States, latents: Latents) -> Float[Tensor, "S n"]:
        """Return the least of the members' values, ``(S, n)``."""
        return self.many(observations, latents).amin(dim=0)

    @torch.no_grad()
    def best(
        self, observations: States, latents: Latents
    ) -> tuple[Float[Tensor, " S"], Int[Tensor, " S"]]:
        """Return max_z min_j Q_j(s, z) ``(S,)`` of n latents per state, and its place ``(S,)``.

        On a CPU one member scores all latents of a state and the others only those that can still
        win: a minimum is at most that member's value, so latents are scored in its order until the
        next one's value lies below the best minimum. It is the member that is lowest for some of
        the latents, since its bounds are then the closest. The result is that of scoring all.
        Autocast does not apply there: LayerNorms and activations take longer in bfloat16, and more
        than its products save.
        """
        if traced() or latents.device.type != "cpu" or self.size == 1:
            return self.minimum(observations, latents).max(dim=1)
        with torch.autocast("cpu", enabled=False):
            return self._best(observations, latents)

    def _best(self, observations: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        encoded = self._encode(observations)
        every = -(-latents.shape[1] // max(1, latents.shape[1] // _PROBED))
        lowest = self._score(encoded, latents[:, ::every]).mean(dim=2).argmin(dim=0)
        values = self.out.bias.new_empty(len(latents))
        places = torch.empty(len(latents), dtype=torch.long)
        for member in range(self.size):
            rows = (lowest == member).nonzero()[:, 0]
            if len(rows):
                found = self._best_below(member, encoded[:, rows], latents[rows])
                values[rows], places[rows] = found
        return values, places

    def _best_below(self, member: int, encoded: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return what ``best`` does, of states whose latents a member bounds."""
        others = [i for i in range(self.size) if i != member]
        bounds, order = self._score(encoded, latents, [member])[0].sort(dim=1, descending=True)
        values = bounds.new_full((len(bounds),), -torch.inf)
        chosen = order[:, 0].clone()
        rows = torch.arange(len(bounds))  # states whose best latent is not certain yet
        begin, number = 0, latents.shape[1]
        while len(rows) and begin < number:
            end = min(number, max(8, 2 * begin))
            places = order[rows, begin:end]
            scored = self._score(encoded[:, rows], latents[rows[:, None], places], others)
            least = torch.minimum(bounds[rows, begin:end], scored.amin(dim=0))
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
        states = self.state(observations.to(dtype).expand(self.size, -1, -1))
        return torch.baddbmm(self.join.bias, states, self.join.weight[:, : self._cut])

    def _score(
        self, encoded: Tensor, latents: Tensor, members: Sequence[int] | None = None
    ) -> Tensor:
        """Return values ``(some, S, n)`` of some members, by default all, as ``encoded`` is."""
        if traced() or latents.device.type != "cpu":
            return self._together(encoded, latents.to(encoded.dtype))
        # One after another: a CPU's cache holds one member's features, and its LayerNorm is fused.
        some = len(latents)
        if not torch.is_grad_enabled():
            some = max(1, _ROWS // latents.shape[1])
        layers, own = self._members(encoded.dtype), encoded.unbind()
        values = []
        for i in range(self.size) if members is None else members:
            parts = zip(own[i].split(some), latents.split(some), strict=True)
            values.append(torch.cat([self._each(*part, layers[i]) for part in parts]))
        return torch.stack(values)

    def _together(self, encoded: Tensor, latents: Tensor) -> Tensor:
        """Return the values (size, S, n) by one batched product per layer."""
        flat = latents.flatten(0, 1).expand(self.size, -1, -1)
        part = torch.bmm(self.latent(flat), self.join.weight[:, self._cut :])
        joined = part.unflatten(1, latents.shape[:2]) + encoded[:, :, None]
        x = self.activation(self.join_norm(joined.flatten(1, 2)))
        return in_float32(self.out, self.rest(x)).view(self.size, *latents.shape[:2])

    def _members(self, dtype: torch.dtype) -> list[_Member]:
        """Return each member's weights, of all linear maps but the last in ``dtype``."""
        join = _by_member(self.join.weight[:, self._cut :].to(dtype), *_rows(self.join_norm))
        out = _by_member(self.out.weight, self.out.bias[:, 0])
        parts = self.latent.members(dtype), join, self.rest.members(dtype), out
        return list(zip(*parts, strict=True))

    def _each(self, encoded: Tensor, latents: Tensor, weights: _Member) -> Tensor:
        """Return a member's values (S, n) of states (S, joined) by what ``_members`` gives."""
        latent, (join, gain, shift), rest, (out, bias) = weights
        (states, number, _), dtype = latents.shape, encoded.dtype
        x = self._run(latents.flatten(0, 1).to(dtype), latent)
        if number == 1:
            x = torch.addmm(encoded, x, join)
        else:
            x = x.unflatten(0, (states, number))
            x = torch.baddbmm(encoded[:, None], x, join.expand(states, -1, -1)).flatten(0, 1)
        x = self.activation(F.layer_norm(x, x.shape[-1:], gain, shift))
        x = in_float32(lambda last: torch.addmm(bias, last, out), self._run(x, rest))
        return x.view(states, number)

    def _run(self, x: Tensor, layers: list[_Weights]) -> Tensor:
        for weight, bias, gain, shift in layers:
            x = torch.addmm(bias, x, weight)
            x = self.activation(F.layer_norm(x, x.shape[-1:], gain, shift))
        return x
