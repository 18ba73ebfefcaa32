"""What a denoiser is: a function of (x_t, t), made of one that takes an encoded condition too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

Rows = Float[Tensor, " B *event"]
"""B rows (B, …) of any event shape."""

Times = Int[Tensor, " B"]
"""Diffusion times (B,), int64."""

Denoise = Callable[[Tensor, Tensor], Tensor]
"""x_t (B, …) and t (B,) int64 to a prediction (B, …): all that samplers and the loss know."""

Encoded = Any
"""An encoded condition: a tensor, or a tuple, NamedTuple or mapping of tensors (or None), each
with one row a condition in its first dimension. Networks make it by ``encode`` once a sampling
call; for n samples a state, encode each state once and `repeat_encoded` what comes out."""

ConditionalDenoise = Callable[[Tensor, Tensor, Encoded], Tensor]
"""x_t (B, …), t (B,) and an encoded condition of B rows to a prediction (B, …)."""


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
