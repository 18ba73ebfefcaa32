"""DVF on a chain whose occupancy and value are known exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_offrl.datasets.sampler import RowOrder
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.diffusion import make_sampler
from lit_offrl.modules import DVFModule
from lit_offrl.randomness import truncated_geometric

STATES = 6
GAMMA = 0.8
FORWARD = 0.7
REWARDS = np.array([0.5, 0.0, 1.0, 2.0, -1.0, 3.0])


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
    """Roll the chain out; the action (N, 1) says forward (1) or stay (−1)."""
    rng = np.random.default_rng(0)
    forward = rng.random((episodes, length)) < FORWARD
    walked = rng.integers(STATES, size=(episodes, 1)) + forward.cumsum(1) - forward
    terminals = np.zeros_like(forward)
    if terminal:  # rows behind the end were never there
        terminals = forward & (walked == STATES - 1)
    there = (walked < STATES) | (not terminal)
    timeouts = np.zeros_like(forward)
    timeouts[:, -1] = True
    states = walked[there] % STATES
    return OfflineDataset.from_columns(
        {
            "observations": states[:, None].astype(np.float32),
            "actions": np.where(forward[there], 1.0, -1.0)[:, None],
            "rewards": REWARDS[states],
            "terminals": terminals[there],
            "timeouts": (timeouts & ~terminals)[there],
        }
    )


OCCUPANCY_STEPS = 800
VALUE_STEPS = 300


@pytest.fixture(scope="module", params=[False, True], ids=["continuing", "terminal"])
def trained(request) -> tuple[DVFModule, bool]:
    """A module trained on the chain: first what Q is made of, then Q."""
    terminal = request.param
    torch.manual_seed(0)
    module = DVFModule(
        1,
        1,
        (-1.0,),
        (1.0,),
        gamma=GAMMA,
        policy_representation="none",
        width=32,
        blocks=1,
        latents=2,
        diffusion_steps=64,
        prediction="v",  # here half the error of "epsilon" after as many steps
        sampling_steps=5,
        num_samples=2,
        hidden=(64, 64),
        extraction="awr",
        ema_rate=0.01,
    )
    dataset = chain(terminal)
    module.normalizer.fit(dataset.columns["observations"])
    view = module.view().bind(dataset)
    order = RowOrder(len(view.rows), 256, seed=0)
    optimizer = module.configure_optimizers()

    def train(steps: range, losses, rate: float = 4e-3) -> None:
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=len(steps), pct_start=0.2
        )
        for step in steps:
            module.seed_noise(step)
            batch = view.batch(view.rows[order.rows(step)], order.uniforms(step, view.num_uniforms))
            torch.stack([loss(batch) for loss in losses]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            module.after_step()
            schedule.step()

    train(range(OCCUPANCY_STEPS), [module.occupancy_loss, module.reward_loss])
    both = range(OCCUPANCY_STEPS, OCCUPANCY_STEPS + VALUE_STEPS)
    train(both, [module.q_loss, module.actor_loss])
    module.occupancy.sampler = make_sampler("dpm++", num_steps=10, clip=1.0)
    return module.eval(), terminal


def test_samples_follow_the_discounted_occupancy(trained):
    module, terminal = trained
    occupancy, _ = exact(terminal)
    samples = 6000
    even = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples  # no chance in Δt itself
    offsets = truncated_geometric(even, GAMMA, float("inf")).expand(STATES, -1)
    starts = torch.arange(STATES)[:, None].float()
    states, absorbed = module.sample_future(starts, offsets, seed=1)
    nearest = states.squeeze(-1).round().clamp(0, STATES - 1).long()
    nearest[absorbed] = STATES
    for start in range(STATES):
        counted = torch.bincount(nearest[start], minlength=STATES + 1).numpy() / samples
        distance = 0.5 * np.abs(counted - occupancy[start]).sum()
        assert distance <= 0.05, (start, distance, counted, occupancy[start])


def test_values_are_exact(trained):
    module, terminal = trained
    _, values = exact(terminal)
    starts = torch.arange(STATES)[:, None].float()
    estimated = module.value(starts, num_samples=4000, seed=2).numpy()
    assert np.abs((estimated - values) / values).max() <= 0.05


def test_q_is_the_bellman_backup(trained):
    module, terminal = trained
    _, values = exact(terminal)
    states = torch.arange(STATES)[:, None].float()
    normalised = module.normalizer.normalize(states)
    following = np.append(values[1:], 0.0 if terminal else values[0])
    for move, after in ((1.0, following), (-1.0, values)):
        backup = REWARDS + GAMMA * after
        action = torch.full((STATES, 1), move)
        q = module.q(torch.cat([normalised, action], -1)).squeeze(-1) / (1 - GAMMA)
        assert np.abs(q.detach().numpy() - backup).max() <= 0.08 * np.abs(backup).max()
