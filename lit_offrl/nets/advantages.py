"""Encodings of an advantage, or of its absence, for a network (ACD, sections 4.2 and 4.3)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.ranges import require_in
from lit_offrl.nets.embeddings import sinusoidal
from lit_offrl.nets.mlp import MLP

Representation = Literal["raw", "one_hot", "sinusoidal", "learned"]


class AdvantageEncoding(nn.Module):
    """Encodes A as y = [m, m · f(A)], with m = 1 if the advantage is given and 0 if it is not.

    f is the number itself (``raw``), the bin that it lies in (``one_hot``), cosines and sines of it
    (``sinusoidal``) or an MLP's output (``learned``): the four columns of ACD's Table 3.

    Args:
        representation: Name of f.
        scale: Positive number that divides A first, so that the other options have its range.
        bins: Odd number of one-hot bins. The middle one is around 0, and the outer two are open.
        bin_width: Positive width of a bin, in units of A / ``scale``.
        features: Size of the sinusoidal and of the learned representation.

    Attributes:
        dim: Size of y.

    Raises:
        ConfigError: The representation is unknown, ``bins`` even, or ``scale`` or ``bin_width`` not
            positive.
    """

    def __init__(
        self,
        representation: Representation = "raw",
        *,
        scale: float = 1.0,
        bins: int = 41,
        bin_width: float = 0.25,
        features: int = 32,
    ) -> None:
        super().__init__()
        if representation not in ("raw", "one_hot", "sinusoidal", "learned"):
            raise ConfigError(
                f"advantages are raw, one_hot, sinusoidal or learned; got {representation!r}."
            )
        if bins < 1 or bins % 2 == 0:
            raise ConfigError(f"bins is {bins}; give an odd number, whose middle is one of them.")
        require_in("(0, inf)", advantage_scale=scale, bin_width=bin_width)
        self.representation = representation
        self.scale, self.bins, self.bin_width, self.features = scale, bins, bin_width, features
        sizes = {"raw": 1, "one_hot": bins, "sinusoidal": features, "learned": features}
        self.dim = 1 + sizes[representation]
        self.net = MLP(1, (features,), features) if representation == "learned" else None

    def forward(
        self, advantages: Float[Tensor, " B"], given: Bool[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B y"]:
        """Encode advantages (B,); y is all zeros where ``given`` (B,) is False."""
        values = self._represent(advantages / self.scale)
        joined = torch.cat([torch.ones_like(values[:, :1]), values], dim=-1)
        return joined if given is None else joined * given[:, None]

    def absent(self, rows: int, like: Tensor) -> Float[Tensor, "B y"]:
        """Return the encoding (rows, y) of no advantage."""
        return like.new_zeros(rows, self.dim)

    def _represent(self, values: Tensor) -> Tensor:
        if self.representation == "one_hot":
            number = (values / self.bin_width + self.bins / 2).floor().long()
            # F.one_hot looks at the numbers, which a GPU would have to be waited for
            bins = torch.arange(self.bins, device=values.device)
            return (number.clamp(0, self.bins - 1)[:, None] == bins).to(values.dtype)
        if self.representation == "sinusoidal":
            return sinusoidal(values / self.bin_width, self.features).to(values.dtype)
        column = values[:, None]
        return column if self.net is None else self.net(column)
