"""The face of a denoiser: what depends on the condition apart from what depends on (x_t, t)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

Denoise = Callable[[Tensor, Tensor], Tensor]
"""x_t (B, …) and t (B,) int64 to a prediction (B, …): all that samplers and the loss know."""

Encoded = Any
"""An encoded condition: a tensor, or a tuple, NamedTuple or mapping of tensors (or None), each
with one row a condition in its first dimension."""

ConditionalDenoise = Callable[[Tensor, Tensor, Encoded], Tensor]
"""x_t (B, …), t (B,) and an encoded condition of B rows to a prediction (B, …)."""


class Denoiser(nn.Module, ABC):
    """A network that predicts ε, x_0 or v, in two halves.

    `encode` runs once a sampling call, `denoise` once a step. For n samples a state, encode each
    state once and `repeat_encoded` what comes out.
    """

    @abstractmethod
    def encode(self, condition: Any) -> Encoded:
        """Encode a condition of B rows."""

    @abstractmethod
    def denoise(
        self, x_t: Float[Tensor, " B *event"], t: Int[Tensor, " B"], encoded: Encoded
    ) -> Float[Tensor, " B *event"]:
        """Predict (B, …) from x_t (B, …), times t (B,) int64 and B encoded conditions."""

    def forward(
        self, x_t: Float[Tensor, " B *event"], t: Int[Tensor, " B"], condition: Any
    ) -> Float[Tensor, " B *event"]:
        """Both halves at once."""
        return self.denoise(x_t, t, self.encode(condition))

    def bind(self, encoded: Encoded) -> Denoise:
        """What samplers take: this denoiser under one encoded condition."""
        return partial(self.denoise, encoded=encoded)


def map_encoded(function: Callable[..., Tensor], *encoded: Encoded) -> Encoded:
    """Apply ``function`` to the corresponding tensors of encodings of one structure."""
    first = encoded[0]
    if isinstance(first, Tensor):
        return function(*encoded)
    if first is None:
        return None
    if isinstance(first, Mapping):
        return {key: map_encoded(function, *(e[key] for e in encoded)) for key in first}
    if isinstance(first, tuple):
        parts = [map_encoded(function, *part) for part in zip(*encoded, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    raise TypeError(f"an encoded condition cannot hold a {type(first).__name__}")


def repeat_encoded(encoded: Encoded, repeats: int) -> Encoded:
    """Repeat each row ``repeats`` times in place: (S, …) to (S · repeats, …), state-major."""
    return map_encoded(lambda part: part.repeat_interleave(repeats, dim=0), encoded)
