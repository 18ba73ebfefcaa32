"""IQL's critics against exact expectiles, a small MDP's optimal values and a NumPy computation."""

import numpy as np
import pytest
import torch
from scipy import stats

from lit_offrl.common.errors import ConfigError
from lit_offrl.modules import IQLModule
from lit_offrl.modules.expectile import ExpectileCritics, best_of, expectile_loss
from lit_offrl.nets import EnsembleCritic
from tests.helpers import unchecked


def critics(**options):
    options = {"gamma": 0.9, "expectile": 0.7, "tau": 0.005, "hidden": (), **options}
    torch.manual_seed(0)
    return ExpectileCritics(3, 2, **options)


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.7, 0.99])
def test_the_loss_is_least_at_the_exact_expectile(expectile):
    samples = np.random.default_rng(0).gamma(2.0, size=500)
    exact = torch.tensor(stats.expectile(samples, expectile), requires_grad=True)
    expectile_loss(torch.from_numpy(samples) - exact, expectile).mean().backward()
    assert abs(exact.grad.item()) < 1e-6


def test_losses_and_gradients_equal_a_numpy_computation():
    net = critics()
    rng = np.random.default_rng(1)
    s, s2 = rng.normal(size=(2, 6, 3))
    a, r = rng.normal(size=(6, 2)), rng.normal(size=6)
    done = np.array([0, 0, 1, 0, 0, 1], bool)
    as32 = [torch.tensor(x, dtype=torch.float32) for x in (s, a, r, s2)]
    losses, advantages = net.losses(*as32, torch.tensor(done))
    sum(losses.values()).backward()

    weights = {k: v.detach().double().numpy() for k, v in net.named_parameters()}
    sa = np.concatenate([s, a], axis=1)

    def q(name):
        weight, bias = (weights[f"{name}.members.layers.0.{k}"] for k in ("weight", "bias"))
        return (sa @ weight + bias)[..., 0]  # (2, 6)

    def v(x):
        return (x @ weights["v.0.weight"].T + weights["v.0.bias"])[:, 0]

    error = q("target").min(0) - v(s)
    slope = np.where(error < 0, 0.3, 0.7)
    goal = r + 0.9 * np.where(done, 0.0, v(s2))
    np.testing.assert_allclose(losses["value"].item(), (slope * error**2).mean(), rtol=1e-4)
    np.testing.assert_allclose(
        losses["critic"].item(), ((q("q") - goal) ** 2).mean(1).sum(), rtol=1e-4
    )
    np.testing.assert_allclose(advantages, error, rtol=1e-4, atol=1e-6)
    # derivatives by hand: the nets are linear
    dv = -(2 * slope * error)[:, None] * s
    dq = 2 * (q("q") - goal)[..., None] * sa
    np.testing.assert_allclose(net.v[0].weight.grad[0], dv.mean(0), rtol=1e-3, atol=1e-5)
    found = net.q.members.layers[0].weight.grad[..., 0]
    np.testing.assert_allclose(found, dq.mean(1), rtol=1e-3, atol=1e-5)
    assert all(p.grad is None for p in net.target.parameters())


def test_a_terminal_cuts_the_bootstrap_and_nothing_else_does():
    net = critics()
    s, a, s2 = torch.randn(2, 3), torch.randn(2, 2), torch.randn(2, 3)
    rewards = torch.ones(2)

    def loss(*done):
        return net.losses(s, a, rewards, s2, torch.tensor(done))[0]["critic"]

    with torch.no_grad():
        later = rewards + 0.9 * net.v(s2).squeeze(-1)
        expected = (net.q(s, a) - later).square().mean(1).sum()
        cut = (net.q(s, a) - rewards).square().mean(1).sum()
    torch.testing.assert_close(loss(False, False), expected)
    torch.testing.assert_close(loss(True, True), cut)


def test_targets_follow_the_online_critics():
    net = critics(tau=0.25)
    before = net.target.members.layers[0].weight.clone()
    with torch.no_grad():
        net.q.members.layers[0].weight.add_(1.0)
    net.update_ema()
    torch.testing.assert_close(net.target.members.layers[0].weight, before + 0.25)


def test_small_advantages_of_large_values_survive_mixed_precision():
    net = critics(hidden=(16,))
    with torch.no_grad():
        net.v[-1].bias.fill_(-100.0)
        for critic in (net.q, net.target):
            critic.members.layers[-1].bias.fill_(-100.0)
    s, a, r = torch.randn(50, 3), torch.randn(50, 2), torch.randn(50)
    batch = (s, a, r, torch.randn(50, 3), torch.zeros(50, dtype=torch.bool))
    losses, advantages = net.losses(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, found = net.losses(*batch)
        assert torch.equal(net.advantages(s, a), found)
    assert 0.1 < advantages.std() < 0.5  # around −100 bfloat16 has steps of 0.5
    torch.testing.assert_close(found, advantages, rtol=0, atol=0.02)
    for name, loss in losses.items():
        assert mixed[name].dtype == torch.float32
        torch.testing.assert_close(mixed[name], loss, rtol=0.02, atol=0)


@unchecked()
def test_near_tau_one_values_are_optimal_on_a_deterministic_chain():
    """Three cells, left or right; stepping right from the last pays 1 and ends."""
    gamma, cells = 0.9, 3
    state, right = np.divmod(np.arange(2 * cells), 2)
    following = np.clip(state + 2 * right - 1, 0, cells - 1)
    done = (state == cells - 1) & (right == 1)
    optimal_v = gamma ** np.arange(cells - 1, -1, -1)
    optimal_q = np.where(done, 1.0, gamma * optimal_v[following])
    torch.manual_seed(0)
    net = ExpectileCritics(
        cells, 2, gamma=gamma, expectile=0.99, tau=0.1, hidden=(32,), layer_norm=False
    )
    s, s2 = (torch.eye(cells)[torch.from_numpy(x)] for x in (state, following))
    a = torch.eye(2)[torch.from_numpy(right)]
    batch = (s, a, torch.from_numpy(done).float(), s2, torch.from_numpy(done))
    groups = [p for group in net.parameter_groups().values() for p in group]
    optimizer = torch.optim.Adam(groups, lr=1e-2)
    for _ in range(1500):
        optimizer.zero_grad()
        sum(net.losses(*batch)[0].values()).backward()
        optimizer.step()
        net.update_ema()
    with torch.no_grad():
        found_v = net.v(torch.eye(cells)).squeeze(-1).numpy()
        found_q = net.target.minimum(s, a).numpy()
        advantages = net.advantages(s, a).numpy()
    np.testing.assert_allclose(found_v, optimal_v, atol=0.03)
    np.testing.assert_allclose(found_q, optimal_q, atol=0.03)
    np.testing.assert_allclose(advantages[right == 1], 0.0, atol=0.03)
    assert (advantages[right == 0] < -0.03).all()


def test_the_best_candidate_is_the_arg_max_of_the_minimum():
    torch.manual_seed(0)
    critic = EnsembleCritic(3, 2, (8,))
    states, candidates = torch.randn(5, 3), torch.randn(5, 7, 2)
    values = torch.stack([critic.minimum(states, candidates[:, i]) for i in range(7)], dim=1)
    expected = candidates[torch.arange(5), values.argmax(1)]
    assert torch.equal(best_of(critic, states, candidates), expected)
    cold = best_of(critic, states, candidates, "softmax", temperature=1e-4)
    assert torch.equal(cold, expected)
    many = torch.stack([best_of(critic, states, candidates, "softmax") for _ in range(4000)])
    share = (many == candidates[:, 0]).all(-1).float().mean(0)
    torch.testing.assert_close(share, torch.softmax(values, 1)[:, 0].detach(), atol=0.03, rtol=0)


@pytest.mark.parametrize("bad", [{"gamma": 1.0}, {"expectile": 1.0}, {"tau": 0.0}])
def test_numbers_out_of_range_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        IQLModule(3, 2, **bad)
