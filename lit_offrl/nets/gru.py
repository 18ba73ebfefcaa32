"""A bidirectional GRU layer for CPUs, differentiated by hand over all of its time steps."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_sigmoid_backward = torch.ops.aten.sigmoid_backward
_tanh_backward = torch.ops.aten.tanh_backward


def run_gru(layer: nn.GRU, x: Float[Tensor, "H B in"]) -> Float[Tensor, "H B two_h"]:
    """Return both directions' states of an `nn.GRU` of one layer, whose inputs are time first.

    PyTorch differentiates its own step by step on a CPU: the gradients of the weights are sums of H
    products of B rows, in bfloat16 rounded H times, and each gate has its own nodes. Here whatever
    needs no earlier step is one product over all of them. The numbers are PyTorch's up to rounding;
    their gradients cannot be differentiated again. Under autocast all is in bfloat16.

    Args:
        layer: The layer, bidirectional, with biases.
        x: Inputs.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    names = [f"{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    weights = [getattr(layer, name + way) for way in ("", "_reverse") for name in names]
    with torch.autocast(kind, enabled=False):
        outputs: Tensor = _BidirectionalGRU.apply(x, dtype, *weights)
    return outputs


class _BidirectionalGRU(torch.autograd.Function):
    """r, u = σ(V x + b + W h + c); n = tanh(V x + b + r (W h + c)); h ← n + u (h − n).

    One direction after the other, since a CPU's cache holds the weights of one. What is kept of
    either has its steps in the order of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, *weights: Tensor) -> Tensor:
        inputs, cast = x.to(dtype), [weight.to(dtype) for weight in weights]
        ways = cast[:4], cast[4:]
        kept = [_forward(inputs, *way, backwards=i == 1) for i, way in enumerate(ways)]
        saved = [part for way, own in zip(ways, kept, strict=True) for part in (*way[:2], *own)]
        ctx.save_for_backward(inputs, *saved)
        return torch.cat([states for *_, states in kept], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, *saved = ctx.saved_tensors
        of_x, found = None, []
        for i, half in enumerate(gradient.to(inputs.dtype).chunk(2, dim=-1)):
            slopes, into, *of_weights = _backward(
                half, inputs, *saved[6 * i : 6 * i + 6], backwards=i == 1
            )
            found += of_weights
            if ctx.needs_input_grad[0]:
                own = torch.mm(slopes, into).view(inputs.shape)
                of_x = own if of_x is None else of_x + own
        return of_x, None, *found


def _order(steps: int, backwards: bool) -> list[int]:
    return list(range(steps))[:: -1 if backwards else 1]


def _forward(
    x: Tensor, into: Tensor, within: Tensor, bias: Tensor, bias_within: Tensor, *, backwards: bool
) -> tuple[Tensor, ...]:
    """Run one direction: gates (r, u), candidates n, W_n h + c and states, each (H, B, …)."""
    (steps, rows, _), width = x.shape, within.shape[1]
    given = torch.addmm(bias, x.flatten(0, 1), into.t()).view(steps, rows, -1)
    gates = given.new_empty(steps, rows, 2 * width)
    news, lasts, states = (given.new_empty(steps, rows, width) for _ in range(3))
    state, recur = given.new_zeros(rows, width), within.t()
    for step in _order(steps, backwards):
        own = torch.addmm(bias_within, state, recur)
        gate, new = gates[step], news[step]
        torch.add(given[step, :, : 2 * width], own[:, : 2 * width], out=gate).sigmoid_()
        last = lasts[step].copy_(own[:, 2 * width :])
        torch.addcmul(given[step, :, 2 * width :], gate[:, :width], last, out=new).tanh_()
        state = torch.lerp(new, state, gate[:, width:], out=states[step])
    return gates, news, lasts, states


def _backward(
    gradient: Tensor,
    x: Tensor,
    into: Tensor,
    within: Tensor,
    gates: Tensor,
    news: Tensor,
    lasts: Tensor,
    states: Tensor,
    *,
    backwards: bool,
) -> tuple[Tensor, ...]:
    """Return gradients of V x + b (H · B, 3 h), then V, then gradients of V, W, b and c."""
    steps, rows, width = states.shape
    slopes = states.new_empty(steps, rows, 3 * width)  # of r and u, and of W_n h + c
    of_news = torch.empty_like(states)
    slope = nothing = states.new_zeros(rows, width)
    order = _order(steps, not backwards)
    for step, earlier in zip(order, [*order[1:], None], strict=True):
        reset, update = gates[step].chunk(2, dim=1)
        new, before = news[step], nothing if earlier is None else states[earlier]
        slope = gradient[step] + slope
        kept = slope * update
        of_new = _tanh_backward(slope - kept, new, grad_input=of_news[step])
        of_reset, of_update, of_last = slopes[step].chunk(3, dim=1)
        _sigmoid_backward((before - new).mul_(slope), update, grad_input=of_update)
        _sigmoid_backward(of_new * lasts[step], reset, grad_input=of_reset)
        torch.mul(of_new, reset, out=of_last)
        slope = torch.addmm(kept, slopes[step], within, out=kept)
    later, sooner = (slice(1, None), slice(0, -1))[:: -1 if backwards else 1]
    flat, exact = slopes.flatten(0, 1), torch.promote_types(x.dtype, torch.float32)
    of_within = torch.mm(slopes[later].flatten(0, 1).t(), states[sooner].flatten(0, 1))
    of_bias_within = flat.sum(0, dtype=exact)
    slopes[..., 2 * width :] = of_news
    of_into = torch.mm(flat.t(), x.flatten(0, 1))
    return flat, into, of_into, of_within, flat.sum(0, dtype=exact), of_bias_within
