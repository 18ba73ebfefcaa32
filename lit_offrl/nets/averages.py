"""Slowly moving copies of networks: target networks and averaged (EMA) weights."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M) -> M:
    """Copy a module, weights and buffers, in eval mode and without gradients."""
    return copy.deepcopy(module).requires_grad_(False).eval()


@torch.no_grad()
def polyak_update_(target: nn.Module, online: nn.Module, tau: float) -> None:
    """Move ``target`` towards ``online`` in place: target ← (1 − τ) · target + τ · online.

    It serves target networks (τ = 0.005) and averages of weights. Buffers, such as statistics or a
    schedule, are no weights and are copied. All parameters move in a few fused calls.

    Args:
        target: The slow module, a `frozen_copy` of ``online``.
        online: The module that is trained.
        tau: Rate τ in [0, 1]; 1 copies exactly, 0 leaves the parameters as they are.

    Raises:
        ValueError: τ is outside [0, 1], or the modules' parameters or buffers differ in number.
    """
    if not 0.0 <= tau <= 1.0:
        raise ValueError(f"tau must lie in [0, 1]; got {tau}")
    slow: list[Tensor] = list(target.parameters())
    fast: list[Tensor] = list(online.parameters())
    if len(slow) != len(fast):
        raise ValueError(f"target has {len(slow)} parameters, online {len(fast)}")
    if slow:
        torch._foreach_lerp_(slow, fast, tau)
    for kept, current in zip(target.buffers(), online.buffers(), strict=True):
        kept.copy_(current)
