"""DVF on a chain whose occupancy and value are known exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from lit_offrl.common.randomness import truncated_geometric
from lit_offrl.datasets.sampler import RowOrder
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.diffusion import make_sampler
from lit_offrl.modules import DVFModule
from tests.helpers import unchecked

STATES = 5
GAMMA = 0.8
FORWARD = 0.7
REWARDS = np.array([1.0, 2.0, 1.5, 0.5, 2.5])


def transitions(terminal: bool) -> np.ndarray:
    """P (S, S) under the known policy: forward with probability 0.7, else stay.

    From the last state the chain ends (``terminal``) or goes round.
    """
    matrix = np.eye(STATES) * (1 - FORWARD)
    for state in range(STATES - 1):
        matrix[state, state + 1] = FORWARD
    if not terminal:
        matrix[-1, 0] = FORWARD
    return matrix


def exact(terminal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Occupancy (S, S + 1), the last column absorbed, and V (S,)."""
    matrix = transitions(terminal)
    resolvent = np.linalg.inv(np.eye(STATES) - GAMMA * matrix)
    occupancy = (1 - GAMMA) * matrix @ resolvent
    absorbed = 1 - occupancy.sum(1, keepdims=True)
    return np.concatenate([occupancy, absorbed], axis=1), resolvent @ REWARDS


def chain(terminal: bool, episodes: int = 10_000, length: int = 40) -> OfflineDataset:
    """Roll the chain out; a state is one-hot, the action's sign says forward or stay.

    Its size says nothing, but fills the range in which the actor's mean lies with data.
    """
    rng = np.random.default_rng(0)
    forward = rng.random((episodes, length)) < FORWARD
    walked = rng.integers(STATES, size=(episodes, 1)) * (not terminal)  # so all states come alike
    walked = walked + forward.cumsum(1) - forward
    terminals = np.zeros_like(forward)
    if terminal:  # rows behind the end were never there
        terminals = forward & (walked == STATES - 1)
    there = (walked < STATES) | (not terminal)
    timeouts = np.zeros_like(forward)
    timeouts[:, -1] = True
    states = walked[there] % STATES
    return OfflineDataset.from_columns(
        {
            "observations": np.eye(STATES, dtype=np.float32)[states],
            "actions": (np.where(forward, 1.0, -1.0) * rng.random(forward.shape))[there][:, None],
            "rewards": REWARDS[states],
            "terminals": terminals[there],
            "timeouts": (timeouts & ~terminals)[there],
        }
    )


@pytest.fixture(scope="module", autouse=True)
def unchecked_shapes():
    with unchecked():
        yield


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(False, id="continuing", marks=pytest.mark.slow),
        pytest.param(True, id="terminal"),
    ],
)
def trained(request) -> tuple[DVFModule, bool]:
    """A module trained on the chain: first what Q is made of, then Q."""
    terminal = request.param
    torch.manual_seed(0)
    module = DVFModule(
        STATES,
        1,
        (-1.0,),
        (1.0,),
        gamma=GAMMA,
        policy_representation="none",
        width=32,
        blocks=1,
        latents=2,
        diffusion_steps=64,
        prediction="x0",  # here half the error of "epsilon" after as many steps
        sampling_steps=5,
        num_samples=1,  # Q's regression takes the mean
        hidden=(64, 64),
        extraction="awr",
        ema_rate=0.01,
    )
    dataset = chain(terminal)
    module.normalizer.fit(dataset.columns["observations"])
    view = module.view().bind(dataset)
    optimizer = module.configure_optimizers()

    noise_key = itertools.count()

    def train(steps: int, losses, rows: int, rate: float) -> None:
        order = RowOrder(view.spans, rows, seed=0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=steps, pct_start=0.2
        )
        for step in range(steps):
            module.seed_noise(next(noise_key))
            batch = view.batch(order.rows(step), order.uniforms(step, view.num_uniforms))
            torch.stack([loss(batch) for loss in losses]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            module.after_step()
            schedule.step()

    train(800, [module.occupancy_loss], rows=320, rate=5e-3)
    train(300, [module.reward_loss], rows=320, rate=5e-3)
    train(200, [module.q_loss, module.actor_loss], rows=256, rate=8e-3)
    module.occupancy.sampler = make_sampler("dpm++", num_steps=20, clip=1.0)
    return module.eval(), terminal


def test_samples_follow_the_discounted_occupancy(trained):
    module, terminal = trained
    occupancy, _ = exact(terminal)
    samples = 4000
    even = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples  # no chance in Δt itself
    offsets = truncated_geometric(even, GAMMA, float("inf")).expand(STATES, -1)
    states, absorbed = module.sample_future(torch.eye(STATES), offsets, seed=1)
    nearest = states.argmax(-1)
    nearest[absorbed] = STATES
    for start in range(STATES):
        counted = torch.bincount(nearest[start], minlength=STATES + 1).numpy() / samples
        distance = 0.5 * np.abs(counted - occupancy[start]).sum()
        assert distance <= 0.05, (start, distance, counted, occupancy[start])


def test_values_are_exact(trained):
    module, terminal = trained
    _, values = exact(terminal)
    estimated = module.value(torch.eye(STATES), num_samples=2000, seed=2).numpy()
    assert np.abs(estimated - values).max() <= 0.05 * np.abs(values).max()
    assert np.abs((estimated - values) / values).mean() <= 0.05


def test_q_is_the_bellman_backup(trained):
    module, terminal = trained
    _, values = exact(terminal)
    normalised = module.normalizer.normalize(torch.eye(STATES))
    following = np.append(values[1:], 0.0 if terminal else values[0])
    for move, after in ((0.5, following), (-0.5, values)):
        backup = REWARDS + GAMMA * after
        action = torch.full((STATES, 1), move)
        q = module.q(torch.cat([normalised, action], -1)).squeeze(-1) / (1 - GAMMA)
        assert np.abs(q.detach().numpy() - backup).max() <= 0.08 * np.abs(backup).max()
