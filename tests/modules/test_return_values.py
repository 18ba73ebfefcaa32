"""A value model of returns: a chain whose returns are known, NumPy, and its range."""

import itertools

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset
from lit_offrl.datasets.views import OutcomeBatch, Outcomes
from lit_offrl.modules import ACDModule
from lit_offrl.modules.return_values import ReturnValues
from tests.helpers import unchecked


def chain():
    """All equally likely runs of a chain of three states, each of which is solved at a toss.

    A step earns −1, that which solves 0, and a run that is never solved −4 more.
    """
    observations, actions, terminals, timeouts = [], [], [], []
    for tosses in itertools.product((0, 1), repeat=3):
        length = tosses.index(1) + 1 if 1 in tosses else 3
        observations += [np.eye(3)[step] for step in range(length)]
        actions += [[toss] for toss in tosses[:length]]
        terminals += [toss == 1 for toss in tosses[:length]]
        timeouts += [step == 2 and toss == 0 for step, toss in enumerate(tosses[:length])]
    columns = {
        "observations": np.array(observations, np.float32),
        "actions": np.array(actions, np.float32),
        "rewards": np.array(terminals, np.float32) - 1.0,
        "terminals": np.array(terminals),
        "timeouts": np.array(timeouts),
    }
    return OfflineDataset(columns, DatasetSpec("chain", observation_dim=3, action_dim=1))


@unchecked()
def test_it_learns_the_distribution_of_a_chains_returns():
    view = Outcomes(returns=1.0, failure=-4.0)
    bound = view.bind(chain())
    batch = bound.batch(bound.rows)
    values = ReturnValues(3, bins=15, ends=(-7.0, 0.0), hidden=())
    optimizer = torch.optim.LBFGS(values.parameters(), lr=1.0, max_iter=200)

    def loss():
        optimizer.zero_grad()
        (total,) = values.losses(batch.observations, batch.returns).values()
        total.backward()
        return total

    optimizer.step(loss)
    expected = {  # of each state, the returns and their probabilities
        0: {0: 1 / 2, -1: 1 / 4, -2: 1 / 8, -7: 1 / 8},
        1: {0: 1 / 2, -1: 1 / 4, -6: 1 / 4},
        2: {0: 1 / 2, -5: 1 / 2},
    }
    found = values.probabilities(torch.eye(3)).detach()
    for state, known in expected.items():
        wanted = torch.zeros(15)
        for outcome, probability in known.items():
            wanted[2 * (outcome + 7)] = probability  # bins are 1/2 apart
        torch.testing.assert_close(found[state], wanted, atol=5e-3, rtol=0)
        mean = sum(outcome * probability for outcome, probability in known.items())
        assert values.value(torch.eye(3))[state].item() == pytest.approx(mean, abs=0.02)


def test_targets_entropy_and_value_are_those_of_numpy():
    torch.manual_seed(0)
    values = ReturnValues(2, bins=5, ends=(-3.0, 1.0), hidden=(4,))
    states = torch.randn(6, 2)
    returns = torch.tensor([-3.0, -2.75, 0.2, 1.0, 4.0, -9.0])
    logits = values.v(states).detach().double().numpy()
    centres = np.linspace(-3.0, 1.0, 5)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = np.zeros((6, 5))
    for row, outcome in enumerate(np.clip(returns.numpy(), -3.0, 1.0).astype(np.float64)):
        lower = min(int(np.floor(outcome + 3.0)), 3)
        targets[row, lower + 1] = outcome + 3.0 - lower
        targets[row, lower] = 1.0 - targets[row, lower + 1]
    np.testing.assert_allclose(values.targets(returns), targets, atol=1e-6)
    np.testing.assert_allclose(targets @ centres, np.clip(returns, -3.0, 1.0), atol=1e-6)
    entropy = -(targets * np.log(shares)).sum(1).mean()
    assert values.losses(states, returns)["value"].item() == pytest.approx(entropy, rel=1e-5)
    np.testing.assert_allclose(values.value(states).detach(), shares @ centres, rtol=1e-5)


@pytest.mark.parametrize("lookahead", ["episode", "n_step"])
def test_advantages_are_returns_or_n_steps_less_the_value(lookahead):
    torch.manual_seed(1)
    module = ACDModule(
        2, 1, values="returns", lookahead=lookahead, n_step=2, gamma=0.5, hidden=(4,),
        return_bins=7, return_range=(-4.0, 0.0), width=8, blocks=1, normalize="mean_std",
    )  # fmt: skip
    module.normalizer.fit(torch.randn(50, 2) * 3.0 + 1.0)
    random = np.random.default_rng(0)
    states, following = (torch.from_numpy(random.normal(size=(4, 2))).float() for _ in range(2))
    rewards, returns = (torch.from_numpy(random.normal(size=4)).float() for _ in range(2))
    terminals = torch.tensor([False, True, False, True])
    batch = OutcomeBatch(
        states, torch.zeros(4, 1), rewards, following, terminals, returns,
        torch.full((4,), 0.25), torch.zeros(4, dtype=torch.bool),
    )  # fmt: skip

    def value(rows):
        logits = module.critics.v(module.normalize_observations(rows)).detach().numpy()
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return shares @ np.linspace(-4.0, 0.0, 7)

    wanted = returns.numpy() - value(states)
    if lookahead == "n_step":
        wanted = rewards.numpy() + 0.25 * ~terminals.numpy() * value(following) - value(states)
    np.testing.assert_allclose(module.batch_advantages(batch), wanted, rtol=1e-4, atol=1e-5)


def test_the_range_is_the_datas_unless_it_is_given_or_known():
    values = ReturnValues(1, bins=3, ends=None, hidden=(2,))
    values.fit(torch.tensor([-2.0, 5.0, 1.0]))
    assert values.ends.tolist() == [-2.0, 5.0]
    values.fit(torch.tensor([-20.0, 50.0]))  # a run that goes on has its own
    assert values.ends.tolist() == [-2.0, 5.0]
    given = ReturnValues(1, bins=3, ends=(0.0, 1.0), hidden=(2,))
    given.fit(torch.tensor([-2.0, 5.0]))
    assert given.ends.tolist() == [0.0, 1.0]
    successes = ReturnValues(1, bins=3, ends=None, hidden=(2,))
    successes.fit(torch.tensor([-2.0, 0.0]), failure=-9.0)  # as own episodes may end
    assert successes.ends.tolist() == [-9.0, 0.0]
    with pytest.raises(ConfigError, match="every return of the data is 1, so there is nothing"):
        ReturnValues(1, bins=3, ends=None, hidden=(2,)).fit(torch.ones(4))
    with pytest.raises(ConfigError, match=r"return_range is \[1.0, 1.0\]: give two rising"):
        ReturnValues(1, bins=3, ends=(1.0, 1.0), hidden=(2,))
