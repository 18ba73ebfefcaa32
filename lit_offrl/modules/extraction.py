"""Policy extraction: a policy from a critic, through losses that move the actor alone.

Each function returns the loss and scalars to log. Observations are normalised, (B, o).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lit_offrl.nets import GaussianPolicy, symexp

_LOG_WEIGHT_LIMIT = math.log(100.0)

Loss = tuple[Tensor, dict[str, Tensor]]


def frozen(net: nn.Module, observations: Tensor, actions: Tensor) -> Tensor:
    """``net(s, a)`` (B,), through which gradients reach the actions but not the net."""
    parameters = {name: value.detach() for name, value in net.named_parameters()}
    joined = torch.cat([observations, actions], dim=-1)
    return torch.func.functional_call(net, parameters, (joined,)).squeeze(-1)


def mean_over_processes(values: Tensor) -> Tensor:
    """Mean of a batch's values (B,) over the batches of all processes, without gradient.

    A loss divided by its own process' mean would not average to that of one process with all rows.
    """
    mean = values.detach().mean()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(mean)
        mean = mean / torch.distributed.get_world_size()
    return mean


def rows_of_processes(values: Tensor) -> Tensor:
    """Values (B,) of the batches of all processes (n · B,), equally many each, without gradient."""
    values = values.detach()
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    parts = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def by_turns(q_values: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    """Mean Q to climb and mean |Q| to scale it by, of the values (2, B) of two critics.

    In a row one critic's value is climbed and the other one's size scales, so that no unit of
    reward is preferred.

    Args:
        q_values: Values of both critics.
        turn: Number of the critic that is maximised in each row, int64 (B,) of 0 and 1.
    """
    turn = turn[None]
    scale = mean_over_processes(q_values.gather(0, 1 - turn).abs()).clamp_min(1e-6)
    return q_values.gather(0, turn).mean(), scale


def q_loss(
    actor: GaussianPolicy,
    observations: Tensor,
    actions: Tensor,
    q: nn.Module,
    noise: Tensor,
    bc_coefficient: float,
    unit: float = 1.0,
    cloned: Tensor | None = None,
) -> Loss:
    """KL(π ‖ exp Q / Z) of Eq. 10, divided by the batch's mean |Q|, plus behaviour cloning.

    The KL is E[log π − Q] up to a constant, and E[log π] of this Gaussian is minus its entropy.

    Args:
        actor: Policy π.
        observations: Normalised observations (B, o).
        actions: Actions of the data (B, a).
        q: Maps (s, a) to Q / ``unit``.
        noise: Standard normal numbers (B, a), for one sampled action a row.
        bc_coefficient: Weight of the squared distance to the data's actions.
        unit: Unit of the critic's output. It is needed because only a Q in the reward's units can
            be weighed against log π.
        cloned: Rows (B,) whose distance counts; in the mean the others count as zero. None for all.
    """
    mean = actor(observations)
    squared = (mean - actions).square().sum(-1)
    distance = (squared if cloned is None else torch.where(cloned, squared, 0.0)).mean()
    values = frozen(q, observations, actor.perturb(mean, noise)) * unit
    entropy = actor.entropy().sum()
    scale = mean_over_processes(values.abs()).clamp_min(1e-6)
    loss = bc_coefficient * distance - (values.mean() + entropy) / scale
    return loss, {"squared_error": distance, "entropy": entropy, "q_mean": values.mean()}


def awr_loss(
    actor: GaussianPolicy,
    observations: Tensor,
    actions: Tensor,
    q: nn.Module,
    temperature: float,
) -> Loss:
    """:func:`weighted_loss` with the advantage A = Q(s, a) − Q(s, π(s))."""
    with torch.no_grad():
        mean = actor(observations)
        advantage = frozen(q, observations, actions) - frozen(q, observations, mean)
    return weighted_loss(actor, observations, actions, advantage, temperature)


def weighted_loss(
    actor: GaussianPolicy,
    observations: Tensor,
    actions: Tensor,
    advantage: Tensor,
    temperature: float,
) -> Loss:
    """Likelihood weighted by exp(β · A / mean |A|), cut at 100, for given advantages A (B,).

    With a large β nearly every weight is cut or vanishes: the policy then imitates the actions
    whose advantage is clearly positive, all alike.
    """
    exponent = temperature * advantage / mean_over_processes(advantage.abs()).clamp_min(1e-6)
    weight = exponent.clamp_max(_LOG_WEIGHT_LIMIT).exp().detach()
    loss = -(weight * actor.log_prob(observations, actions)).mean()
    return loss, {"weight_max": weight.max()}


def reward_gradient_loss(
    actor: GaussianPolicy,
    observations: Tensor,
    actions: Tensor,
    reward: nn.Module,
    bc_coefficient: float,
) -> Loss:
    """Ascent on r(s, π(s)) alone: Eq. 12 taken literally, where ∇_a Q = ∇_a r.

    The diffusion model cannot move a policy that is extracted so.
    """
    mean = actor(observations)
    distance = (mean - actions).square().sum(-1).mean()
    rewards = symexp(frozen(reward, observations, mean))
    return bc_coefficient * distance - rewards.mean(), {"squared_error": distance}
