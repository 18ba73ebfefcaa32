"""CQL: every loss against NumPy, the bootstrap, and a bandit whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import FutureStates, TransitionBatch, Transitions
from lit_offrl.modules import CQLModule
from tests.helpers import unchecked

LOW, HIGH = np.array([-2.0, 0.0]), np.array([1.0, 3.0])
CENTRE, SCALE = (HIGH + LOW) / 2, (HIGH - LOW) / 2
UNIT = np.log(SCALE).sum()  # densities are those of actions scaled to [−1, 1]
ROWS, N, GAMMA = 6, 3, 0.9


@pytest.fixture
def build(awake):
    def make(**options) -> CQLModule:
        options = {
            "hidden": (5, 4),
            "num_actions": N,
            "gamma": GAMMA,
            "learning_rate": 1e-2,
        } | options
        torch.manual_seed(0)
        module = CQLModule(2, 2, LOW.tolist(), HIGH.tolist(), **options)
        module.normalizer.fit(np.array([[-1.0, -1.0], [1.0, 1.0]]))  # leaves states as they are
        for net in (module.actor, module.q, module.target_q):
            awake(net)
        with torch.no_grad():
            module.target_q.members.linears[-1].joined.bias += 1.0  # tells it from the online one
        return module

    return make


def made_up_batch() -> TransitionBatch:
    random = np.random.default_rng(3)
    return TransitionBatch(
        observations=tensor(random.uniform(-1, 1, (ROWS, 2))),
        actions=tensor(random.uniform(LOW, HIGH, (ROWS, 2))),
        rewards=tensor(random.normal(size=ROWS)),
        next_observations=tensor(random.uniform(-1, 1, (ROWS, 2))),
        terminals=torch.arange(ROWS) % 3 == 0,
    )


def tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


# ---- the method again, in NumPy, from weights, batch and noise -----------------------------------


def dense(x: np.ndarray, layers: list, last: tuple) -> np.ndarray:
    """A DenseNet MLP with LayerNorm of rows (…, in)."""
    for weight, bias, scale, shift in layers:
        h = x @ weight + bias
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
        x = np.concatenate([x, np.maximum(h * scale + shift, 0.0)], axis=-1)
    return x @ last[0] + last[1]


def numbers(part: Tensor) -> np.ndarray:
    return part.detach().double().numpy()


def critic(net, i: int, s: np.ndarray, a: np.ndarray) -> np.ndarray:
    linears = [
        (numbers(m.joined.weight)[i], numbers(m.joined.bias)[i, 0]) for m in net.members.linears
    ]
    norms = [(numbers(m.weight)[i, 0], numbers(m.bias)[i, 0]) for m in net.members.norms]
    layers = [(*one, *other) for one, other in zip(linears[:-1], norms, strict=True)]
    s = np.broadcast_to(s, (*a.shape[:-1], s.shape[-1]))
    return dense(np.concatenate([s, a], -1), layers, linears[-1])[..., 0]


def draw(actor, s: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    layers = [
        (numbers(linear.weight).T, numbers(linear.bias), numbers(norm.weight), numbers(norm.bias))
        for linear, norm, _ in actor.net.hidden
    ]
    out = dense(s, layers, (numbers(actor.net.out.weight).T, numbers(actor.net.out.bias)))
    mean, std = out[..., :2], np.exp(np.clip(out[..., 2:], -5, 2))
    u = mean + std * noise
    density = np.exp(-((u - mean) ** 2) / (2 * std**2)) / (std * np.sqrt(2 * np.pi))
    density /= 1 - np.tanh(u) ** 2
    return CENTRE + SCALE * np.tanh(u), np.log(density).sum(-1)


def by_hand(module: CQLModule, batch: TransitionBatch) -> dict[str, float]:
    module.seed_noise(0)
    noise = numbers(module.noise.normal((ROWS, 2 * (N + 1), 2)))
    uniforms = numbers(module.noise.uniform((ROWS, N, 2)))
    s, a, r, s2 = (numbers(part)[:, None] for part in batch[:4])
    alpha = math.exp(module.log_temperature.item())
    drawn, density = draw(module.actor, s, noise[:, : N + 1])
    drawn2, density2 = draw(module.actor, s2, noise[:, N + 1 :])
    value = np.minimum(*(critic(module.target_q, i, s2, drawn2[:, :1]) for i in (0, 1)))
    if module.backup_entropy:
        value = value - alpha * density2[:, :1]
    target = r + GAMMA * np.where(batch.terminals.numpy()[:, None], 0.0, value)
    losses = {"critic": 0.0, "conservative": 0.0}
    gaps, policy, heat = [], [], module.min_q_temperature
    for i in (0, 1):
        seen = critic(module.q, i, s, a)
        losses["critic"] += ((seen - target) ** 2).mean()
        terms = [
            np.exp(critic(module.q, i, s, some) / heat) / dense
            for some, dense in (
                (LOW + (HIGH - LOW) * uniforms, 0.5**2),
                (drawn[:, 1:], np.exp(density[:, 1:])),
                (drawn2[:, 1:], np.exp(density2[:, 1:])),
            )
        ]
        integral = np.concatenate(terms, 1).mean(1, keepdims=True)
        gaps.append((heat * np.log(integral) - seen).mean())
        policy.append(critic(module.q, i, s, drawn[:, :1]))
    losses["conservative"] = module.cql_weight * sum(gaps)
    losses["actor"] = (alpha * density[:, :1] - np.minimum(*policy)).mean()
    losses["temperature"] = -math.log(alpha) * (density[:, :1].mean() + module.target_entropy)
    if module.lagrange is not None:
        multiplier = math.exp(module.log_multiplier.item())
        excess = module.cql_weight * (sum(gaps) - 2 * module.lagrange)
        losses |= {"conservative": multiplier * excess, "lagrange": -multiplier * excess}
    return losses


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"backup_entropy": True, "target_entropy": 0.5, "cql_weight": 3.0},
        {"min_q_temperature": 2.0, "lagrange": 1.5},
    ],
    ids=["default", "entropy", "lagrange"],
)
def test_all_losses_equal_numpys(build, options):
    module, batch = build(**options), made_up_batch()
    with torch.no_grad():
        module.log_temperature.fill_(math.log(0.3))
        if module.log_multiplier is not None:
            module.log_multiplier.fill_(0.7)
    expected = by_hand(module, batch)
    module.seed_noise(0)
    losses = module.losses(batch)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name], rel=1e-4, abs=1e-4), name


def test_a_fixed_temperature_is_neither_tuned_nor_a_loss(build):
    module = build(temperature=0.3)
    module.seed_noise(0)
    assert "temperature" not in module.losses(made_up_batch()).keys() | module.parameter_groups()
    assert module.log_temperature.exp().item() == pytest.approx(0.3)


def test_gradient_of_the_conservative_term(build):
    """By finite differences, and by hand: a softmax of weighted values, less one at the data's."""
    module = build(cql_weight=2.0, min_q_temperature=0.5)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, ROWS, 3 * N, dtype=torch.float64, generator=generator)
    seen = torch.randn(2, ROWS, dtype=torch.float64, generator=generator)
    densities = torch.randn(ROWS, 3 * N, dtype=torch.float64, generator=generator)
    values.requires_grad_(), seen.requires_grad_()

    def term(values: Tensor, seen: Tensor) -> Tensor:
        return module.conservative_losses(values, densities, seen)["conservative"]

    assert torch.autograd.gradcheck(term, (values, seen))
    term(values, seen).backward()
    share = torch.softmax(values.detach() / 0.5 - densities, dim=-1)
    torch.testing.assert_close(values.grad, 2.0 * share / ROWS)
    torch.testing.assert_close(seen.grad, torch.full_like(seen, -2.0 / ROWS))


def test_each_loss_moves_its_own_network_alone(build):
    module = build(lagrange=1.0)
    names = {"critic": "q", "conservative": "q"}
    module.seed_noise(0)
    for name, loss in module.losses(made_up_batch()).items():
        module.zero_grad()
        loss.backward(retain_graph=True)
        for group, parameters in module.parameter_groups().items():
            moved = any(p.grad is not None and bool(p.grad.any()) for p in parameters)
            assert moved == (group == names.get(name, name)), (name, group)
        assert all(p.grad is None for p in module.target_q.parameters())


def test_temperature_and_multiplier_move_towards_what_they_hold(build):
    module, batch = build(target_entropy=50.0, lagrange=-50.0), made_up_batch()
    module.seed_noise(0)
    sum(module.losses(batch).values()).backward()
    assert module.log_temperature.grad < 0  # too little entropy: a descent step raises α
    assert module.log_multiplier.grad < 0  # too wide a gap: it raises the conservative term


# ---- bootstrap and targets -----------------------------------------------------------------------


def test_a_time_limit_bootstraps_and_a_terminal_does_not(build):
    module = build()
    with torch.no_grad():
        last = module.target_q.members.linears[-1].joined
        last.weight.zero_(), last.bias.fill_(10.0)
    ends = np.array([False, True, False, True])
    dataset = OfflineDataset.from_columns(
        {
            "observations": np.zeros((4, 2)),
            "next_observations": np.ones((4, 2)),
            "actions": np.zeros((4, 2)) + CENTRE,
            "rewards": np.array([1.0, 2.0, 3.0, 4.0]),
            "terminals": ends & (np.arange(4) < 2),
            "timeouts": ends & (np.arange(4) >= 2),
        }
    )
    view = Transitions().bind(dataset)
    assert view.rows.tolist() == [0, 1, 2, 3]
    targets = []
    for row in view.rows:
        module.losses(view.batch(row[None]))
        targets.append(module._info["q/target_mean"].item())
    assert targets == pytest.approx([1 + GAMMA * 10, 2.0, 3 + GAMMA * 10, 4 + GAMMA * 10])


def test_targets_follow_the_online_critics(build):
    module = build(tau=0.1)
    before = [p.clone() for p in module.target_q.parameters()]
    module.after_step()
    for slow, old, fast in zip(
        module.target_q.parameters(), before, module.q.parameters(), strict=True
    ):
        assert not slow.requires_grad
        torch.testing.assert_close(slow, 0.9 * old + 0.1 * fast)


# ---- learning ------------------------------------------------------------------------------------


@unchecked()
def bandit(cql_weight: float, steps: int = 200) -> CQLModule:
    """Reward 1 − 4 (a − 0.3)², one step an episode, actions of the data within ±0.5."""
    torch.manual_seed(0)
    module = CQLModule(
        *(1, 1, (-1.0,), (1.0,)),
        **{"cql_weight": cql_weight, "hidden": (32,), "num_actions": 4},
        **{"temperature": 0.02, "learning_rate": 1e-2},
    )
    module.normalizer.fit(np.array([[-1.0], [1.0]]))
    optimizer = module.configure_optimizers()
    random = np.random.default_rng(0)
    for step in range(steps):
        actions = random.uniform(-0.5, 0.5, (64, 1))
        states = tensor(random.uniform(-1, 1, (64, 1)))
        rewards = tensor(1 - 4 * (actions[:, 0] - 0.3) ** 2)
        batch = TransitionBatch(
            states, tensor(actions), rewards, states, torch.ones(64, dtype=torch.bool)
        )
        module.seed_noise(step)
        optimizer.zero_grad()
        sum(module.losses(batch).values()).backward()
        optimizer.step()
        module.after_step()
    return module.eval()


def test_a_bandit_is_solved_and_actions_off_the_data_are_worth_less():
    states = torch.linspace(-0.9, 0.9, 7)[:, None]
    outside = torch.tensor([-0.95, -0.8, 0.8, 0.95]).view(1, 4, 1).expand(7, 4, 1)
    careful, plain = bandit(0.3), bandit(0.0)
    with torch.no_grad():
        away = [module.q.many(states, outside).mean().item() for module in (careful, plain)]
        inside = plain.q(states, torch.full((7, 1), 0.3))
    torch.testing.assert_close(inside, torch.ones(2, 7), atol=0.15, rtol=0)
    assert away[0] < away[1] - 0.5
    for module in (careful, plain):
        acted = module.policy().act(states.numpy())
        assert acted.dtype == np.float32
        np.testing.assert_allclose(acted, 0.3, atol=0.2)


def test_the_actor_clones_in_the_warm_up_and_then_ascends_q(fit):
    options = {"hidden": (8,), "num_actions": 2, "warmup_steps": 2}
    for steps, cloned in ((2, True), (3, False)):
        module = CQLModule(2, 1, (-1.0,), (1.0,), **options)
        fit(module, steps)
        assert ("train/q/policy" in module.latest_metrics) != cloned


def test_rows_without_a_reward_are_refused(fit):
    module = CQLModule(2, 1, (-1.0,), (1.0,), hidden=(8,))
    with pytest.raises(DatasetError, match="has no column 'rewards', which CQLModule needs"):
        fit(module, 1, without=("rewards",))


# ---- what is refused -----------------------------------------------------------------------------


def test_a_view_of_something_else_is_refused(build, columns):
    view = FutureStates().bind(OfflineDataset.from_columns(columns()))
    batch = view.batch(view.rows[:4], torch.rand(4, 1))
    with pytest.raises(ConfigError, match="view gives a FutureStateBatch: set data"):
        build().losses(batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action_dim": 0}, "has no actions"),
        ({"gamma": 1.0}, "gamma is 1.0"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"cql_weight": -1.0}, "cql_weight is -1.0"),
        ({"num_actions": 0}, "num_actions is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"min_q_temperature": 0.0}, "min_q_temperature is 0.0"),
        ({"cql_weight": 0.0, "lagrange": 5.0}, "lagrange multiplies cql_weight"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        CQLModule(2, **{"action_dim": 1, **options})
