"""FQL and IFQL: their losses against NumPy, a flow of two modes, and bandits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.diffusion import make_flow_sampler
from lit_offrl.modules import FQLModule, IFQLModule
from tests.helpers import made_up_transitions, unchecked

LOW, HIGH = np.array([-2.0, 0.0]), np.array([1.0, 3.0])
CENTRE, SCALE = (HIGH + LOW) / 2, (HIGH - LOW) / 2
ROWS, GAMMA, ALPHA, STEPS = 7, 0.9, 1.5, 3
SIZES = {"hidden": (5, 4), "sampling_steps": STEPS, "gamma": GAMMA}


def made_up_batch() -> TransitionBatch:
    return made_up_transitions(LOW, HIGH, ROWS)


def made(kind, awake, **options):
    torch.manual_seed(0)
    module = awake(kind(3, 2, LOW.tolist(), HIGH.tolist(), **SIZES, **options))
    with torch.no_grad():
        for parameter in module.actor.parameters():
            parameter *= 2.0  # beyond the bounds, where it matters what is clipped
    return module


# ---- the methods again, in NumPy, from weights, batch and noise ----------------------------------


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def mlp(net, x, norms=False):
    """Linear layers, each but the last with GELU and, then, a LayerNorm: of one net, or of two."""
    layers = [part for part in net.modules() if "weight" in part._parameters]
    linears = layers[:: 1 + norms]
    for i, layer in enumerate(linears):
        single = isinstance(layer, torch.nn.Linear)
        weight, bias = (part.detach().double().numpy() for part in (layer.weight, layer.bias))
        x = x @ (weight.T if single else weight) + bias
        if i == len(linears) - 1:
            break
        x = gelu(x)
        if norms:
            norm = layers[2 * i + 1]
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
            x = x * norm.weight.detach().numpy() + norm.bias.detach().numpy()
    return x


def values(net, states, actions):
    return mlp(net, np.concatenate([states, actions], -1), norms=True)[..., 0]


def velocity(flow, states, x, t):
    return mlp(flow.net, np.concatenate([states, x, t[:, None]], -1))


def flow_loss(flow, states, actions, t, start):
    unit = (actions - CENTRE) / SCALE
    x = (1 - t[:, None]) * start + t[:, None] * unit
    return ((velocity(flow, states, x, t) - (unit - start)) ** 2).mean()


def euler(flow, states, x):
    for i in range(STEPS):
        x = x + velocity(flow, states, x, np.full(len(x), i / STEPS)) / STEPS
    return np.clip(x, -1, 1)


@pytest.mark.parametrize(("q_agg", "normalize_q"), [("mean", False), ("min", True)])
def test_fqls_losses_are_the_papers(awake, q_agg, normalize_q):
    module = made(FQLModule, awake, alpha=ALPHA, q_agg=q_agg, normalize_q=normalize_q)
    batch = made_up_batch()
    states, next_states = batch.observations.numpy(), batch.next_observations.numpy()
    actions = batch.actions.numpy()
    module.seed_noise(0)
    losses = module.losses(batch)
    module.seed_noise(0)
    t = module.noise.uniform((ROWS,)).numpy()
    start, z, next_z = (module.noise.normal((ROWS, 2)).numpy() for _ in range(3))

    expected = flow_loss(module.flow, states, actions, t, start)
    assert losses["flow"].item() == pytest.approx(expected, rel=1e-4)

    unit = mlp(module.actor, np.concatenate([states, z], -1))
    assert np.abs(unit).max() > 1
    distance = ((unit - euler(module.flow, states, z)) ** 2).mean()
    q = values(module.q, states, CENTRE + SCALE * np.clip(unit, -1, 1)).mean(0)
    scale = np.abs(q).mean() if normalize_q else 1.0
    assert losses["actor"].item() == pytest.approx(ALPHA * distance - q.mean() / scale, rel=1e-4)

    unit = mlp(module.actor, np.concatenate([next_states, next_z], -1))
    both = values(module.target, next_states, CENTRE + SCALE * np.clip(unit, -1, 1))
    next_value = both.mean(0) if q_agg == "mean" else both.min(0)
    td_target = batch.rewards.numpy() + GAMMA * np.where(batch.terminals, 0, next_value)
    errors = values(module.q, states, actions) - td_target
    assert losses["critic"].item() == pytest.approx((errors**2).mean(1).sum(), rel=1e-4)

    moves_its_own_alone(
        module, losses, {"flow": module.flow, "actor": module.actor, "critic": module.q}
    )


def test_ifqls_losses_are_the_papers(awake):
    module = made(IFQLModule, awake)
    batch, critics = made_up_batch(), module.critics
    states, actions = batch.observations.numpy(), batch.actions.numpy()
    module.seed_noise(0)
    losses = module.losses(batch)
    module.seed_noise(0)
    t = module.noise.uniform((ROWS,)).numpy()
    start = module.noise.normal((ROWS, 2)).numpy()

    expected = flow_loss(module.actor, states, actions, t, start)
    assert losses["actor"].item() == pytest.approx(expected, rel=1e-4)
    value = mlp(critics.v, states, norms=True)[:, 0]
    above = values(critics.target, states, actions).min(0) - value
    expected = np.where(above < 0, 0.1, 0.9) * above**2
    assert losses["value"].item() == pytest.approx(expected.mean(), rel=1e-4)
    next_value = mlp(critics.v, batch.next_observations.numpy(), norms=True)[:, 0]
    td_target = batch.rewards.numpy() + GAMMA * np.where(batch.terminals, 0, next_value)
    errors = values(critics.q, states, actions) - td_target
    assert losses["critic"].item() == pytest.approx((errors**2).mean(1).sum(), rel=1e-4)
    moves_its_own_alone(
        module, losses, {"actor": module.actor, "value": critics.v, "critic": critics.q}
    )


def moves_its_own_alone(module, losses, nets):
    for name, loss in losses.items():
        module.zero_grad()
        loss.backward(retain_graph=True)
        moving = {key for key, net in nets.items() for p in net.parameters() if p.grad is not None}
        assert moving == {name}


@pytest.mark.parametrize("kind", [FQLModule, IFQLModule])
def test_gradients_in_bfloat16_are_those_of_float32_but_for_rounding(kind, awake):
    """No weight's gradient is lost where the same weights run without gradients, too."""
    module, batch = made(kind, awake), made_up_batch()
    found = []
    for half in (False, True):
        module.zero_grad()
        module.seed_noise(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses = module.losses(batch)
        sum(losses.values()).backward()
        groups = module.parameter_groups()
        found.append({name: [p.grad for p in parts] for name, parts in groups.items()})
    for name, exact in found[0].items():
        full, half = (torch.cat([g.flatten() for g in each]) for each in (exact, found[1][name]))
        assert torch.cosine_similarity(full, half, dim=0) > 0.98, name


def test_targets_begin_as_copies_and_follow_slowly():
    for module in (FQLModule(3, 2, **SIZES), IFQLModule(3, 2, **SIZES)):
        online = module.q if isinstance(module, FQLModule) else module.critics.q
        target = module.target if isinstance(module, FQLModule) else module.critics.target
        pairs = list(zip(target.parameters(), online.parameters(), strict=True))
        assert all(torch.equal(slow, fast) for slow, fast in pairs)
        with torch.no_grad():
            for _, fast in pairs:
                fast += 1.0
        before = [slow.clone() for slow, _ in pairs]
        module.after_step()
        for (slow, _), was in zip(pairs, before, strict=True):
            torch.testing.assert_close(slow, was + 0.005)


# ---- two modes -----------------------------------------------------------------------------------

BANDIT = {"hidden": (32, 32), "learning_rate": 1e-2, "layer_norm": False, "sampling_steps": 5}
STATES, ENDS = torch.zeros(128, 1), torch.ones(128, dtype=torch.bool)


@unchecked()
def trained(module, steps, losses):
    """Train on a bandit's arms −0.6, and 0.6 in three cases of ten, which alone earn 1."""
    optimizer, random = module.configure_optimizers(), torch.Generator().manual_seed(0)
    for step in range(steps):
        actions = 1.2 * (torch.rand(128, 1, generator=random) < 0.3) - 0.6
        actions = actions + 0.1 * torch.randn(128, 1, generator=random)
        module.seed_noise(step)
        batch = TransitionBatch(STATES, actions, (actions[:, 0] > 0).float(), STATES, ENDS)
        optimizer.zero_grad()
        losses(batch).backward()
        optimizer.step()
        module.after_step()
    return module


def acts(module, **options):
    torch.manual_seed(0)
    return module.policy(**options).act(np.zeros((600, 1), np.float32))[:, 0]


def are_both_arms(actions):
    near = np.abs(np.abs(actions) - 0.6) < 0.3
    return near.mean() > 0.75 and (actions > 0).mean() == pytest.approx(0.3, abs=0.1)


@pytest.fixture
def flow_of_both():
    """A module whose flow alone is trained."""
    torch.manual_seed(0)
    module = FQLModule(1, 1, **BANDIT)
    loss = lambda batch: module.flow.loss(STATES, batch.actions, module.noise).mean()  # noqa: E731
    return trained(module, 250, loss)


def test_fqls_flow_has_both_modes(flow_of_both):
    torch.manual_seed(0)
    flow_of_both.flow.sampler = make_flow_sampler("heun")
    with torch.no_grad():
        drawn = flow_of_both.flow.sample(torch.zeros(1, 1), number=600).numpy().ravel()
    assert are_both_arms(drawn)
    assert np.abs(np.median(drawn[drawn > 0]) - 0.6) < 0.1
    assert np.abs(np.median(drawn[drawn < 0]) + 0.6) < 0.1
    assert not are_both_arms(acts(flow_of_both))  # the one-step policy has not learnt yet


@pytest.mark.slow
def test_fql_imitates_or_picks_the_better_arm(flow_of_both):
    for alpha in (100.0, 0.3):
        module = FQLModule(1, 1, **BANDIT, alpha=alpha)
        module.load_state_dict(flow_of_both.state_dict())
        acted = acts(trained(module, 150, lambda batch, it=module: sum(it.losses(batch).values())))
        if alpha == 100.0:
            assert are_both_arms(acted)
        else:
            assert (acted > 0.2).mean() > 0.97


def test_ifql_acts_by_the_best_of_its_samples():
    torch.manual_seed(0)
    module = IFQLModule(1, 1, **BANDIT)
    trained(module, 150, lambda batch: sum(module.losses(batch).values()))
    assert (acts(module) > 0.2).mean() > 0.97
    assert are_both_arms(acts(module, num_samples=1))  # which needs no critic


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"q_agg": "max"}, "q_agg is 'max'; choose mean or min"),
        ({"sampling_steps": 0}, "sampling_steps is 0"),
        ({"hidden": ()}, r"hidden is \[\]"),
        ({"sampler": "ddpm"}, "sampler is 'ddpm'; choose euler or heun"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        FQLModule(2, 1, **options)
