"""Symmetric logarithm: squeezes large numbers of either sign (Hafner et al. 2023, Eq. 1)."""

import torch
from jaxtyping import Float
from torch import Tensor


def symlog(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``sign(x) * log(1 + |x|)``: close to x near 0, logarithmic far from it."""
    return torch.sign(x) * torch.log1p(x.abs())


def symexp(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``sign(x) * (exp(|x|) - 1)``, the inverse of `symlog`; overflows float32 above 88."""
    return torch.sign(x) * torch.expm1(x.abs())
