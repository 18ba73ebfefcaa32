"""How an advantage, or its absence, is given to a network (ACD, sections 4.2 and 4.3)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.ranges import require_in
from lit_offrl.nets.embeddings import sinusoidal
from lit_offrl.nets.mlp import MLP

Representation = Literal["raw", "one_hot", "sinusoidal", "learned"]


class AdvantageEncoding(nn.Module):
    """y = [m, m · f(A)], where m = 1 says that the advantage is given and 0 that it is not.

    f is the number itself (``raw``), the bin that it lies in (``one_hot``), cosines and sines of it
    (``sinusoidal``) or an MLP's output (``learned``): the four columns of ACD's Table 3.

    Args:
        representation: f.
        scale: divides A first, so that the other representations know their range.
        bins: number of one-hot bins, odd, the middle one around 0; the outer two have no outer end.
        bin_width: of A / scale.
        features: size of the sinusoidal and of the learned representation.

    Attributes:
        dim: size of y.

    Raises:
        ConfigError: unknown representation, ``bins`` even, or ``scale`` or ``bin_width`` not
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
        """Encode advantages (B,); where ``given`` (B,) is False, y is all zeros."""
        values = self._represent(advantages / self.scale)
        joined = torch.cat([torch.ones_like(values[:, :1]), values], dim=-1)
        return joined if given is None else joined * given[:, None]

    def absent(self, rows: int, like: Tensor) -> Float[Tensor, "B y"]:
        """y of no advantage, (rows, y)."""
        return like.new_zeros(rows, self.dim)

    def _represent(self, values: Tensor) -> Tensor:
        if self.representation == "one_hot":
            number = (values / self.bin_width + self.bins / 2).floor().long()
            return F.one_hot(number.clamp(0, self.bins - 1), self.bins).to(values.dtype)
        if self.representation == "sinusoidal":
            return sinusoidal(values / self.bin_width, self.features).to(values.dtype)
        column = values[:, None]
        return column if self.net is None else self.net(column)
