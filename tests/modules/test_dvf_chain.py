"""DVF on a chain whose occupancy and value are known exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_offrl.datasets.sampler import RowOrder
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset
from lit_offrl.modules import DVFModule
from lit_offrl.randomness import ShardedGenerator, truncated_geometric

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


def chain(terminal: bool, rows: int = 30_000) -> OfflineDataset:
    """Roll the chain out; the action (N, 1) says forward (1) or stay (−1)."""
    rng = np.random.default_rng(0)
    states, moves, terminals, timeouts = [], [], [], []
    state, age = int(rng.integers(STATES)), 0
    for _ in range(rows):
        forward = rng.random() < FORWARD
        last = state == STATES - 1
        ends = bool(forward and last and terminal)
        age += 1
        timeout = not ends and age == 60
        states.append(state)
        moves.append(1.0 if forward else -1.0)
        terminals.append(ends)
        timeouts.append(timeout)
        state = (state + forward) % STATES
        if ends or timeout:
            state, age = int(rng.integers(STATES)), 0
    states = np.array(states)
    columns = {
        "observations": states[:, None].astype(np.float32),
        "actions": np.array(moves, dtype=np.float32)[:, None],
        "rewards": REWARDS[states].astype(np.float32),
        "terminals": np.array(terminals),
        "timeouts": np.array(timeouts),
    }
    spec = DatasetSpec(
        name="chain",
        observation_dim=1,
        action_dim=1,
        action_low=(-1.0,),
        action_high=(1.0,),
        origin="made here",
        columns=tuple(columns),
    )
    return OfflineDataset(columns, spec)


OCCUPANCY_STEPS = 900
VALUE_STEPS = 300


@pytest.fixture(scope="module", params=[False, True], ids=["continuing", "terminal"])
def trained(request) -> tuple[DVFModule, bool]:
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
        latents=4,
        diffusion_steps=64,
        sampling_steps=10,
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

    def train(steps: range, losses, rate: float) -> None:
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=len(steps))
        for step in steps:
            module.seed_noise(step)
            batch = view.batch(view.rows[order.rows(step)], order.uniforms(step, view.num_uniforms))
            torch.stack([loss(batch) for loss in losses]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            module.after_step()
            schedule.step()

    train(range(OCCUPANCY_STEPS), [module.occupancy_loss, module.reward_loss], 4e-3)
    both = range(OCCUPANCY_STEPS, OCCUPANCY_STEPS + VALUE_STEPS)
    train(both, [module.q_loss, module.actor_loss], 4e-3)
    return module.eval(), terminal


def test_samples_follow_the_discounted_occupancy(trained):
    module, terminal = trained
    occupancy, _ = exact(terminal)
    samples = 2000
    uniforms = ShardedGenerator(7).uniform((STATES, samples), torch.float64)
    offsets = truncated_geometric(uniforms, GAMMA, float("inf"))
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
    estimated = module.value(
        torch.arange(STATES)[:, None].float(), num_samples=4000, seed=2
    ).numpy()
    assert np.abs(estimated - values).max() <= 0.05 * np.abs(values).max()
    assert np.abs((estimated - values) / values).mean() <= 0.05


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
