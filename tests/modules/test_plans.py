"""Diffuser and Decision Diffuser: plans keep what is known, and cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.views import WindowBatch
from lit_offrl.modules import DecisionDiffuserModule, DiffuserModule
from lit_offrl.modules.plan_policy import PlanPolicy
from lit_offrl.nets import polyak_update_
from tests.helpers import unchecked

HORIZON, ROWS = 4, 48
SMALL = {"horizon": HORIZON, "width": 16, "multipliers": (4,), "diffusion_steps": 6}
SMALL |= {"termination_penalty": 0.0, "learning_rate": 3e-3}


def two_ways(seed: int, rows: int = ROWS) -> WindowBatch:
    """Walks that go up or down from 0 by half of the action; only those that go up earn."""
    random = np.random.default_rng(seed)
    way = np.where(random.uniform(size=rows) < 0.5, 1.0, -1.0)
    actions = np.repeat(way[:, None], HORIZON, axis=1) + random.normal(0, 0.1, (rows, HORIZON))
    states = np.cumsum(np.pad(actions[:, :-1], ((0, 0), (1, 0))), axis=1) / 2
    columns = (states[..., None], actions[..., None], 10.0 * (way > 0))
    states, actions, returns = (torch.as_tensor(column).float() for column in columns)
    return WindowBatch(states, actions, torch.ones(rows, HORIZON, dtype=torch.bool), returns)


@unchecked()
def trained(module, steps: int):
    """Train on walks of two ways; the averages are then the networks themselves."""
    whole = two_ways(1000, 4096)
    module.normalizer.fit(whole.observations.flatten(0, 1))
    module.action_normalizer.fit(whole.actions.flatten(0, 1))
    module.train()
    optimizer = module.configure_optimizers()
    for step in range(steps):
        module.seed_noise(step)
        optimizer.zero_grad()
        sum(module.losses(two_ways(step)).values()).backward()
        optimizer.step()
    for network, average in module.averaged():
        polyak_update_(average, network, 1.0)
    return module


def ends(module, plans):
    """Where plans (…, H, e) end, in raw units (…)."""
    return module.normalizer.denormalize(plans[..., -1, -module.observation_dim :])[..., 0]


@pytest.fixture(scope="module")
def diffuser():
    torch.manual_seed(0)
    module = DiffuserModule(1, 1, (-2.0,), (2.0,), guide_stop=1, **SMALL)
    module.return_mean.fill_(5.0)
    module.return_std.fill_(5.0)
    return trained(module, 150)


@pytest.fixture(scope="module")
def decisions():
    torch.manual_seed(0)
    module = DecisionDiffuserModule(1, 1, (-2.0,), (2.0,), **SMALL)
    module.high_return.fill_(10.0)
    return trained(module, 150)


# ---- what is known stays -----------------------------------------------------------------------


@pytest.mark.parametrize("guide_scale", [0.0, 3.0])
def test_plans_keep_both_ends_to_the_bit(awake, guide_scale):
    torch.manual_seed(0)
    module = DiffuserModule(3, 2, goal_dims=(0, 2), clip=1.0, guide_stop=0, **SMALL)
    for net in (module.average, module.average_value):
        awake(net)
    module.normalizer.fit(torch.randn(50, 3))
    seen, goals = torch.randn(5, 1, 3), 3 * torch.randn(5, 2)
    options = {"number": 4, "guide_scale": guide_scale}
    with torch.no_grad():
        plans = module.plans(seen, torch.ones(5, dtype=torch.int64), goals, **options)
    assert plans.shape == (5, 4, HORIZON, 5) and plans.isfinite().all()
    assert plans.unique(dim=1).shape[1] == 4  # four different ones
    first = module.normalizer.normalize(seen)
    assert torch.equal(plans[:, :, 0, 2:], first.expand(-1, 4, -1))
    whole = torch.zeros(5, 3)
    whole[:, [0, 2]] = goals
    last = module.normalizer.normalize(whole)[:, None, [0, 2]]
    assert torch.equal(plans[:, :, -1, [2, 4]], last.expand(-1, 4, -1))


def test_a_plan_keeps_as_much_of_its_history_as_there_is(awake):
    torch.manual_seed(0)
    module = DecisionDiffuserModule(2, 1, history=3, **SMALL)
    awake(module.average)
    module.normalizer.fit(torch.randn(50, 2))
    seen, counts = torch.randn(3, 3, 2), torch.tensor([1, 2, 3])
    with torch.no_grad():
        plans = module.plans(seen, counts, target_return=0.9, guidance=1.2)
    scaled = module.normalizer.normalize(seen)
    for plan, past, count in zip(plans, scaled, counts.tolist(), strict=True):
        assert torch.equal(plan[:count], past[:count])
        assert not torch.equal(plan[count], past[min(count, 2)])
    raw = module.ahead(plans, counts, 2)  # from the current observation on
    torch.testing.assert_close(raw[:, 0], seen[torch.arange(3), counts - 1])


def test_the_loss_is_of_what_is_not_known(awake):
    """Weights of the error, entry by entry: the first action's, the ends', the discount's."""
    module = DiffuserModule(2, 1, goal_dims=(1,), loss_discount=0.9, action_weight=7.0, **SMALL)
    known = module.known_of(torch.ones(1, dtype=torch.int64))[0]
    weights = module.weights * ~known
    discounts = 0.9 ** np.arange(HORIZON) / np.mean(0.9 ** np.arange(HORIZON))
    expected = np.repeat(discounts[:, None], 3, axis=1)
    expected[0] = (7.0, 0.0, 0.0)
    expected[-1, 2] = 0.0
    np.testing.assert_allclose(weights, expected, rtol=1e-6)

    windows, seen = torch.randn(4, HORIZON, 3), []

    class Net(torch.nn.Module):
        def denoise(self, x, t, encoded):
            seen.append(x)
            return torch.zeros_like(x)

    module.seed_noise(0)
    loss = module.plan_loss(Net(), windows, known[None])
    torch.testing.assert_close(loss, (weights * windows.square()).mean((1, 2)))  # x0-prediction
    fixed = known.expand(4, -1, -1)
    assert torch.equal(seen[0][fixed], windows[fixed]) and (seen[0] != windows)[~fixed].all()


# ---- known answers -----------------------------------------------------------------------------


def test_guided_plans_take_the_way_that_earns(diffuser):
    torch.manual_seed(0)
    start = torch.zeros(1, 1, 1), torch.ones(1, dtype=torch.int64)
    with torch.no_grad():
        free = ends(diffuser, diffuser.plans(*start, number=200, guide_scale=0.0))
        guided = ends(diffuser, diffuser.plans(*start, number=200, guide_scale=2.0))
    assert 0.25 < (free > 0).float().mean() < 0.75
    assert (guided > 0).float().mean() > 0.95
    assert free.abs().median() == pytest.approx(1.5, abs=0.3)  # 3 steps of a half
    assert guided.median() == pytest.approx(1.5, abs=0.5)
    assert free[0, :20].min() > 0  # the value sorts them, the best first
    acted = diffuser.policy(num_samples=8).act(np.zeros((3, 1), np.float32))
    np.testing.assert_allclose(acted, 1.0, atol=0.5)


def test_plans_for_a_return_are_those_that_had_it(decisions):
    torch.manual_seed(0)
    start = torch.zeros(100, 1, 1), torch.ones(100, dtype=torch.int64)
    with torch.no_grad():
        high, low = (
            ends(decisions, decisions.plans(*start, target_return=asked, guidance=1.2))
            for asked in (1.0, 0.0)
        )
    assert (high > 0).float().mean() > 0.95 and (low < 0).float().mean() > 0.95
    assert high.median() == pytest.approx(1.5, abs=0.3)


@unchecked()
def test_inverse_dynamics_recover_a_linear_systems_actions():
    """s' = A s + B a, with two of three states moved by the two actions."""
    torch.manual_seed(0)
    module = DecisionDiffuserModule(3, 2, (-1.0,) * 2, (1.0,) * 2, inverse_hidden=(64,), **SMALL)
    transition = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.8, 0.2], [0.1, 0.0, 0.9]])
    effect = torch.tensor([[1.0, 0.0], [0.3, 0.8], [0.0, 0.0]])
    random = torch.Generator().manual_seed(1)

    def batch() -> WindowBatch:
        actions = 2 * torch.rand(256, HORIZON, 2, generator=random) - 1
        states = [torch.randn(256, 3, generator=random)]
        for step in range(HORIZON - 1):
            states.append(states[-1] @ transition.T + actions[:, step] @ effect.T)
        mask = torch.ones(256, HORIZON, dtype=torch.bool)
        return WindowBatch(torch.stack(states, 1), actions, mask, torch.zeros(256))

    whole = batch()
    module.normalizer.fit(whole.observations.flatten(0, 1))
    module.action_normalizer.fit(whole.actions.flatten(0, 1))
    optimizer = torch.optim.Adam(module.inverse.parameters(), lr=3e-3)
    for _ in range(600):
        data = batch()
        optimizer.zero_grad()
        module.inverse_loss(module.scaled(data), data).backward()
        optimizer.step()
    polyak_update_(module.average_inverse, module.inverse, 1.0)

    data = batch()
    states, actions = data.observations, data.actions
    module.plans = lambda seen, counts, **_: module.scaled(data)[: len(seen)]
    acted = module.policy().act(states[:100, 0].numpy())
    assert np.abs(acted - actions[:100, 0].numpy()).mean() < 0.05


def test_an_episodes_padding_teaches_no_dynamics():
    torch.manual_seed(0)
    module, batch = DecisionDiffuserModule(1, 1, **SMALL), two_ways(0)
    cut = torch.arange(HORIZON).expand(ROWS, -1) < 2
    loss = module.inverse_loss(batch.observations, batch._replace(mask=cut))
    other = torch.where(cut[..., None], batch.observations, 9.0)
    assert torch.equal(module.inverse_loss(other, batch._replace(mask=cut)), loss)


# ---- following plans ---------------------------------------------------------------------------


def test_a_plan_is_followed_and_made_anew_for_each_environment():
    calls = []

    def plan(now, seen, counts):
        calls.append((now[:, 0].tolist(), seen[:, :, 0].tolist(), counts.tolist()))
        return now[:, None] * 100 + torch.arange(3.0)[:, None]

    policy = PlanPolicy(
        plan, lambda now, step, following, ended: step, 2, torch.device("cpu"), history=2
    )
    observe = [np.array([[1.0], [2.0]]) + step / 10 for step in range(4)]
    assert policy.act(observe[0])[:, 0].tolist() == [100, 200]
    assert policy.act(observe[1])[:, 0].tolist() == [101, 201]
    policy.reset(np.array([False, True]))
    np.testing.assert_allclose(policy.act(observe[2])[:, 0], [120, 220])
    policy.reset(np.array([False, True]))
    np.testing.assert_allclose(policy.act(observe[3])[:, 0], [121, 230])
    assert [counts for *_, counts in calls] == [[1, 1], [2, 1], [1]]
    np.testing.assert_allclose(calls[1][1][0], [1.1, 1.2])  # the oldest is forgotten
    np.testing.assert_allclose(calls[2][0], [2.3])


def test_waypoints_lead_from_state_to_state_and_stay_at_the_end():
    options = {"execute_steps": None, "controller": "waypoints", "num_samples": 1}
    module = DiffuserModule(4, 2, (-99.0,) * 2, (99.0,) * 2, guided=False, **options, **SMALL)
    module.normalizer.fit(torch.tensor([[-1.0] * 4, [1.0] * 4]))
    path = torch.arange(HORIZON * 6).float().view(HORIZON, 6) / 10
    whole = torch.cat([path[:, :2], module.normalizer.normalize(path[:, 2:])], dim=1)
    module.plans = lambda *_, **__: whole[None, None]
    policy, here = module.policy(), np.array([[0.5, -0.5, 0.25, 0.0]], np.float32)
    for step in range(HORIZON + 3):
        target = path[min(step + 1, HORIZON - 1), 2:].numpy().copy()
        target[2:] *= step < HORIZON - 1
        difference = target - here[0]
        np.testing.assert_allclose(policy.act(here)[0], difference[:2] + difference[2:], rtol=1e-4)


# ---- what cannot be ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (DiffuserModule, {"horizon": 30}, "horizon is 30: give a multiple of 8, as 4 levels"),
        (DiffuserModule, {"width": 12}, "width is 12 and multipliers"),
        (DiffuserModule, {"multipliers": (1,), "width": 8}, "the last level has 8 channels"),
        (DiffuserModule, {"goal_dims": (3,)}, r"goal_dims is \[3\]; name dimensions"),
        (DiffuserModule, {"controller": "waypoints"}, "controller is 'waypoints', for obs"),
        (DiffuserModule, {"execute_steps": None}, "needs the controller 'waypoints'"),
        (DiffuserModule, {"action_dim": 0}, "DiffuserModule needs a dataset with actions"),
        (DecisionDiffuserModule, {"sampling_steps": 300}, "cannot sample in 300 steps"),
        (DecisionDiffuserModule, {"temperature": -1.0}, "temperature is -1.0"),
        (DecisionDiffuserModule, {"history": 100}, "history is 100: give 1 to 99"),
    ],
)
def test_options_that_cannot_be(kind, options, message):
    options = {"width": 8, "multipliers": (1, 1, 1, 4), **options}
    if kind is DecisionDiffuserModule:
        options |= {"multipliers": (1, 1)}
    with pytest.raises(ConfigError, match=message):
        kind(3, **{"action_dim": 1, **options})


def test_batches_and_plans_that_cannot_be(tiny, whole_batch):
    module = DiffuserModule(1, 1, **SMALL)
    with pytest.raises(ConfigError, match="trains on Windows, but the view gives a FutureStateB"):
        module.losses(whole_batch(tiny()))
    with pytest.raises(ConfigError, match="Windows of horizon 4 with the reward of every row"):
        module.losses(two_ways(0)._replace(returns=None))
    with pytest.raises(ConfigError, match="execute_steps is 4: plans have 4 steps, of which 3"):
        module.policy(execute_steps=4)
