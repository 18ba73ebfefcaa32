"""λ-returns: rewards of the data, mixed with values of the states that follow."""

from __future__ import annotations

import torch
from torch import Tensor


def lambda_returns(
    rewards: Tensor,
    next_values: Tensor,
    terminals: Tensor,
    followed: Tensor,
    *,
    gamma: float,
    trace: float,
) -> Tensor:
    """λ-returns G_t = r_t + γ [(1 − λ) V(s_{t+1}) + λ G_{t+1}] of rows in the data's order.

    λ = 0 is the one-step target r + γ V(s'), λ = 1 the discounted return of the data, bootstrapped
    with V only where an episode is cut off. In between, the variance of V's estimates is averaged
    over the steps ahead, and so is that of the returns (Sutton and Barto 2018, section 12.1).

    Args:
        rewards: Rewards r_t (N,).
        next_values: Values V(s_{t+1}) (N,).
        terminals: Whether s_{t+1} is terminal (N,), after which no reward follows.
        followed: Whether the next row continues the same episode (N,).
        gamma: Discount γ in [0, 1).
        trace: Parameter λ in [0, 1].

    Returns:
        (N,), float32, on the device of ``rewards``.
    """
    alive = gamma * (~terminals).double()
    onward = trace * (followed & ~terminals).double()
    first = rewards.double() + alive * (1.0 - onward) * next_values.double()
    factors, returns = (alive * onward).tolist(), first.tolist()
    following = 0.0
    for row in range(len(returns) - 1, -1, -1):
        following = returns[row] = returns[row] + factors[row] * following
    return torch.tensor(returns, dtype=torch.float32, device=rewards.device)
