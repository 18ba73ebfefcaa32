"""DVF on data of two policies whose values are known exactly, and whose value is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.datasets.sampler import RowOrder
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.modules import DVFModule
from lit_offrl.nets import symlog
from tests.helpers import unchecked

GAMMA = 0.7
FORWARD = (0.1, 0.9)  # how probably policies 0 and 1 move on in a ring of states
REWARDS = np.array([0.5, 1.0, 4.0])
STATES = len(REWARDS)


def exact(forward: float) -> np.ndarray:
    """V (S,) of a policy."""
    matrix = (1 - forward) * np.eye(STATES) + forward * np.roll(np.eye(STATES), 1, axis=1)
    return np.linalg.solve(np.eye(STATES) - GAMMA * matrix, REWARDS)


def ring(episodes: int = 4000, length: int = 24) -> OfflineDataset:
    """Roll both policies out, an episode each in turn; a state is one-hot."""
    random = np.random.default_rng(0)
    policy = np.arange(episodes) % 2
    moves = random.random((episodes, length)) < np.array(FORWARD)[policy][:, None]
    states = (random.integers(STATES, size=(episodes, 1)) + moves.cumsum(1) - moves) % STATES
    timeouts = np.zeros(moves.shape, bool)
    timeouts[:, -1] = True
    return OfflineDataset.from_columns(
        {
            "observations": np.eye(STATES, dtype=np.float32)[states.ravel()],
            "actions": np.where(moves, 1.0, -1.0).reshape(-1, 1),
            "rewards": REWARDS[states.ravel()],
            "terminals": np.zeros(timeouts.size, bool),
            "timeouts": timeouts.ravel(),
            "policy": np.repeat(policy, length),
        }
    )


class Paid(nn.Module):
    """The true reward of the nearest state, whatever the action."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return symlog(torch.from_numpy(REWARDS).float())[x[..., :STATES].argmax(-1)][..., None]


@pytest.fixture(scope="module")
def unchecked_shapes():
    with unchecked():
        yield


@pytest.fixture(scope="module")
def trained(unchecked_shapes):
    """An occupancy of both policies, with the true reward, and the data."""
    torch.manual_seed(0)
    module = DVFModule(
        STATES,
        1,
        gamma=GAMMA,
        policy_representation="scalar",
        value_policy="latest",
        width=32,
        blocks=1,
        latents=2,
        diffusion_steps=32,
        prediction="x0",
        sampling_steps=8,
        hidden=(8,),
        ema_rate=0.02,
    )
    dataset = ring()
    module.normalizer.fit(dataset.columns["observations"])
    view = module.view().bind(dataset)
    optimizer = torch.optim.Adam(module.occupancy.denoiser.parameters())
    steps = 400
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    order = RowOrder(view.spans, 256, seed=0)
    for step in range(steps):
        module.seed_noise(step)
        batch = view.batch(order.rows(step), order.uniforms(step, 1))
        module.occupancy_loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        module.occupancy.update_ema()
    module.reward = Paid()
    yield module.eval(), view


@pytest.mark.parametrize("asked", [0, 1])
def test_the_value_is_that_of_the_policy_asked_for(trained, asked):
    module, _ = trained
    phi = torch.full((STATES,), float(asked))
    value = module.value(torch.eye(STATES), policy=phi, num_samples=2000).numpy()
    expected, other = exact(FORWARD[asked]), exact(FORWARD[1 - asked])
    assert np.abs(value - expected).max() <= 0.1 * expected.max(), (value, expected)
    assert np.abs(value / expected - 1).mean() <= 0.1, (value, expected)
    assert np.abs(other / expected - 1).mean() > 0.3  # so the other's would not have passed


@pytest.mark.parametrize("latest", [None, 0.0, 1.0])
def test_next_values_are_of_each_rows_policy_or_of_the_latest_for_all_rows(trained, latest):
    module, view = trained
    module.latest_policy = latest
    rows = view.rows[:: len(view.rows) // 64 + 1]
    batch = view.batch(rows, torch.zeros(len(rows), 1))
    module.num_samples = 200
    module.seed_noise(7)
    with torch.no_grad():
        values = module.diffused_value.next_values(batch, module.noise).numpy()
    asked = batch.policy.long().numpy() if latest is None else np.full(len(values), int(latest))
    assert set(batch.policy.tolist()) == {0.0, 1.0}
    table = np.stack([exact(forward) for forward in FORWARD])
    expected = table[asked, batch.next_observations.argmax(-1).numpy()]
    assert np.abs(values / expected - 1).mean() <= 0.1


def test_the_actor_begins_as_the_latest_policy(tiny, whole_batch):
    module = tiny(policy_representation="scalar", value_policy="latest")
    batch = whole_batch(module)
    likelihood = module.actor.log_prob(
        module.normalizer.normalize(batch.observations), batch.actions
    )
    torch.testing.assert_close(module.cloning_loss(batch), -likelihood.mean())
    module.latest_policy = 1.0
    newest = batch.policy == 1.0
    assert newest.any() and not newest.all()
    expected = -likelihood[newest].sum() / len(newest)
    torch.testing.assert_close(module.cloning_loss(batch), expected)


def test_behaviour_cloning_pulls_to_the_latest_policy_alone(tiny, whole_batch):
    module = tiny(policy_representation="scalar", value_policy="latest", bc_coefficient=0.5)
    batch = whole_batch(module)
    squared = (module.actor(module.normalizer.normalize(batch.observations)) - batch.actions) ** 2
    newest = batch.policy == 1.0
    losses = {}
    for latest in (None, 1.0):
        module.latest_policy = latest
        module.noise = ShardedGenerator(7)
        losses[latest] = module.actor_loss(batch)
    older = 0.5 * squared[~newest].sum() / len(newest)
    assert older > 0.01
    torch.testing.assert_close(losses[None] - losses[1.0], older)


def test_a_fit_finds_the_latest_policy_in_its_data(tiny, fit):
    options = {"policy_representation": "scalar"}
    own, latest = tiny(**options), tiny(**options, value_policy="latest")
    for module in (own, latest):
        fit(module, 1)
    assert own.latest_policy is None and latest.latest_policy == 1.0


@pytest.mark.parametrize("representation", ["sequential", "none"])
def test_only_scalar_policies_have_a_latest(tiny, representation):
    with pytest.raises(ConfigError, match=r"value_policy is 'latest'.*set policy_representation"):
        tiny(policy_representation=representation, value_policy="latest")
