"""Policy extraction against critics whose best policy is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lit_offrl.modules.extraction import (
    awr_loss,
    frozen,
    mean_over_processes,
    q_loss,
    reward_gradient_loss,
    weighted_loss,
)
from lit_offrl.nets import GaussianPolicy, symlog
from tests.helpers import unchecked

ROWS = 512
GENERATOR = torch.Generator()


class Quadratic(nn.Module):
    """Q(s, a) = level − ½ k (a − a*(s))², a* = s/2 (one dimension each)."""

    def __init__(self, curvature: float = 1.0, level: float = 0.0, squeezed: bool = False) -> None:
        super().__init__()
        self.curvature = nn.Parameter(torch.tensor(curvature))
        self.level, self.squeezed = level, squeezed

    def forward(self, joined):
        best = joined[..., :1] / 2
        q = self.level - 0.5 * self.curvature * (joined[..., 1:] - best).square()
        return symlog(q) if self.squeezed else q


def new_actor(bound: float = 1.0, **options) -> GaussianPolicy:
    torch.manual_seed(0)
    return GaussianPolicy(1, 1, hidden=(32,), low=[-bound], high=[bound], **options)


@unchecked()
def optimise(actor, loss, steps: int = 400, rate: float = 1e-2) -> None:
    """Minimise ``loss(observations, noise)`` on fresh states in [−1, 1]."""
    optimizer = torch.optim.Adam(actor.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    GENERATOR.manual_seed(1)
    for _ in range(steps):
        states = 2 * torch.rand(ROWS, 1, generator=GENERATOR) - 1
        noise = torch.randn(ROWS, 1, generator=GENERATOR)
        optimizer.zero_grad()
        loss(states, noise)[0].backward()
        optimizer.step()
        schedule.step()


def distance_to_best(actor) -> float:
    states = torch.linspace(-1, 1, 21)[:, None]
    return (actor(states) - states / 2).abs().max().item()


# ---- Eq. 10 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("curvature", "unit"), [(16.0, 1.0), (4.0, 1.0), (0.4, 10.0)])
def test_the_policy_becomes_exp_q(curvature, unit):
    """exp Q is N(a*, 1/k): the mean finds the arg max, and σ the width, whatever Q's unit."""
    actor = new_actor(bound=4.0)
    critic = Quadratic(curvature)
    optimise(actor, lambda s, noise: q_loss(actor, s, s, critic, noise, 0.0, unit))
    assert distance_to_best(actor) < 0.06
    sigma = actor.log_std.exp().item()
    assert sigma == pytest.approx((curvature * unit) ** -0.5, rel=0.05)


def test_the_weight_of_behaviour_cloning_pulls_the_mean_by_the_closed_form():
    """Minimum over μ of b (μ − d)² + ½ k (μ − a*)² / mean |Q|, with the level fixing mean |Q|."""
    actor, critic = new_actor(), Quadratic(2.0, level=1000.0)
    data, weight = 0.8, 1e-3
    optimise(
        actor,
        lambda s, noise: q_loss(actor, 0 * s, 0 * s + data, critic, 0 * noise, weight),
    )
    expected = 2 * weight * data / (2 * weight + 2.0 / 1000)
    assert actor(torch.zeros(1, 1)).item() == pytest.approx(expected, abs=0.01)


def test_the_loss_is_eq_10_to_the_number():
    actor, critic = new_actor(), Quadratic(2.0, level=-3.0)
    states, data, noise = torch.randn(3, 8, 1, generator=GENERATOR.manual_seed(0)).unbind()
    loss, seen = q_loss(actor, states, data, critic, noise, 0.3, 5.0)
    sampled = (actor(states) + actor.log_std.exp() * noise).clamp(-1, 1)
    values = 5.0 * critic(torch.cat([states, sampled], -1)).squeeze(-1)
    entropy = 0.5 * math.log(2 * math.pi * math.e)  # σ begins at 1
    squared = (actor(states) - data).square().mean()
    expected = 0.3 * squared - (values.mean() + entropy) / values.abs().mean()
    torch.testing.assert_close(loss, expected)
    assert seen["q_mean"].item() == pytest.approx(values.mean().item(), rel=1e-5)


# ---- advantage weights -------------------------------------------------------------------------


def weights_of(loss_of, actor, states, data) -> torch.Tensor:
    """The weight of each row, from the gradient of the loss by that row's log-likelihood."""
    log_probs = actor.log_prob(states, data).detach().requires_grad_()
    actor.log_prob = lambda *_: log_probs
    loss_of().backward()
    return -log_probs.grad * len(states)


class HandMade(nn.Module):
    """Q(s, a) = s · a: with π(s) = 0 the advantage of action 1 is s itself."""

    def forward(self, joined):
        return joined[..., :1] * joined[..., 1:]


def idle_actor() -> GaussianPolicy:
    actor = new_actor()
    nn.init.zeros_(actor.net[-1].weight)
    nn.init.zeros_(actor.net[-1].bias)
    return actor


def test_weights_are_exp_of_the_advantage_in_units_of_its_mean():
    advantage = torch.tensor([[-2.0], [0.0], [1.0], [3.0]])  # mean |A| is 1.5
    actor, data = idle_actor(), torch.ones(4, 1)
    found = weights_of(
        lambda: awr_loss(actor, advantage, data, HandMade(), 2.0)[0], actor, advantage, data
    )
    torch.testing.assert_close(found, torch.exp(2.0 * advantage.squeeze(1) / 1.5))


def test_weights_are_cut_at_100():
    advantage = torch.cat([torch.full((99, 1), -0.01), torch.tensor([[30.0]])])
    actor, data = idle_actor(), torch.ones(100, 1)
    _, seen = awr_loss(actor, advantage, data, HandMade(), 1.0)
    assert seen["weight_max"].item() == pytest.approx(100.0, rel=1e-5)  # exp(96.8) before
    found = weights_of(
        lambda: awr_loss(actor, advantage, data, HandMade(), 1.0)[0], actor, advantage, data
    )
    assert found[-1].item() == pytest.approx(100.0, rel=1e-5)
    assert found[:-1].max() < 1.0


def test_weighted_likelihood_prefers_the_better_of_two_actions():
    """Data take ±0.5 evenly: weighted by exp(±β), their mean is 0.5 tanh β."""
    actor, beta = idle_actor(), 0.5
    signs = torch.tensor([1.0, -1.0]).repeat(ROWS // 2)[:, None]

    def loss(states, noise):
        return awr_loss(actor, torch.ones_like(states), 0.5 * signs, HandMade(), beta)

    optimise(actor, loss, steps=300)
    # A is ±0.5 − π(s), of mean size 0.5 while |π(s)| ≤ 0.5: the weights differ by exp(2 β)
    assert actor(torch.ones(1, 1)).item() == pytest.approx(0.5 * math.tanh(beta), abs=0.02)


# ---- Eq. 12 ------------------------------------------------------------------------------------


def test_the_rewards_gradient_finds_the_best_paid_action():
    actor, reward = new_actor(), Quadratic(4.0, squeezed=True)  # a model in symlog space
    optimise(actor, lambda s, noise: reward_gradient_loss(actor, s, 0 * s, reward, 0.0))
    assert distance_to_best(actor) < 0.06
    loss, _ = reward_gradient_loss(actor, torch.ones(4, 1), torch.ones(4, 1), reward, 0.0)
    mean = actor(torch.ones(4, 1))
    expected = 2.0 * (mean - 0.5).square().mean()  # minus the reward in its own units
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("kind", ["q", "awr", "reward"])
def test_no_gradient_reaches_the_critic(kind):
    actor, critic = new_actor(), Quadratic()
    states = torch.randn(8, 1, generator=GENERATOR.manual_seed(0))
    loss = {
        "q": lambda: q_loss(actor, states, states, critic, states, 0.1),
        "awr": lambda: awr_loss(actor, states, states, critic, 1.0),
        "reward": lambda: reward_gradient_loss(actor, states, states, critic, 0.1),
    }[kind]()[0]
    loss.backward()
    assert critic.curvature.grad is None
    assert any(bool(p.grad.any()) for p in actor.parameters() if p.grad is not None)


def test_a_frozen_critic_passes_gradients_to_actions_and_a_mean_passes_none():
    actions = torch.zeros(4, 1, requires_grad=True)
    frozen(Quadratic(3.0), torch.ones(4, 1), actions).sum().backward()
    torch.testing.assert_close(actions.grad, torch.full((4, 1), 1.5))  # k (a* − a)
    mean = mean_over_processes(actions + 2.0)
    assert mean.item() == 2.0 and not mean.requires_grad


def test_advantages_over_a_baseline_pick_the_best_arm_whatever_most_rows_do():
    """A bandit whose better arm, +0.5, is one row in five: cloning acts at −0.3, this at +0.5.

    It pays 1 more, under noise of 0.3, and both arms pay 20 more in one state than in another:
    weights by what was paid would follow the state, weights above a baseline follow the arm.
    """
    better = torch.rand(ROWS, 1, generator=GENERATOR.manual_seed(0)) < 0.2
    states = 2 * torch.rand(ROWS, 1, generator=GENERATOR) - 1
    paid = 10 * states + better + 0.3 * torch.randn(ROWS, 1, generator=GENERATOR)
    actions = torch.where(better, 0.5, -0.5)
    inputs = torch.cat([states, torch.ones_like(states)], dim=-1)
    baseline = inputs @ torch.linalg.lstsq(inputs, paid).solution
    for advantage, temperature, acts in ((paid - baseline, 0.0, -0.3), (paid - baseline, 3.0, 0.5)):
        actor = new_actor()
        optimise(
            actor,
            lambda *_: weighted_loss(actor, states, actions, advantage.squeeze(-1), temperature),
        )
        assert actor(torch.zeros(1, 1)).item() == pytest.approx(acts, abs=0.1)
