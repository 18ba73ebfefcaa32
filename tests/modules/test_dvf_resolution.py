"""How well ρ resolves states that lie close together: eight on a line, and a grid of 25."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch

from lit_offrl.common.randomness import truncated_geometric
from lit_offrl.datasets.sampler import RowOrder
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.diffusion import make_sampler
from lit_offrl.modules import DVFModule
from tests.helpers import unchecked

GAMMA = 0.8


class Walk(NamedTuple):
    """A Markov chain: what is missing to 1 in a row of P is the probability that it ends there."""

    states: np.ndarray
    matrix: np.ndarray
    rewards: np.ndarray

    def exact(self) -> tuple[np.ndarray, np.ndarray]:
        """Occupancy (S, S + 1), the last column absorbed, and V (S,)."""
        resolvent = np.linalg.inv(np.eye(len(self.matrix)) - GAMMA * self.matrix)
        occupancy = (1 - GAMMA) * self.matrix @ resolvent
        absorbed = 1 - occupancy.sum(1, keepdims=True)
        return np.concatenate([occupancy, absorbed], axis=1), resolvent @ self.rewards

    def rolled(self, episodes: int = 6000, length: int = 40) -> OfflineDataset:
        """Episodes from every state, cut off after ``length`` steps."""
        rng, count = np.random.default_rng(0), len(self.matrix)
        edges = self.matrix.cumsum(1)
        at = rng.integers(count, size=episodes)
        visited = np.full((episodes, length), count)
        for step in range(length):
            going = at < count
            visited[going, step] = at[going]
            drawn = rng.random(going.sum())[:, None]
            at[going] = (drawn > edges[at[going]]).sum(1)
        there = visited < count
        following = np.concatenate([visited[:, 1:], at[:, None]], axis=1)
        terminals, timeouts = following == count, np.zeros_like(there)
        timeouts[:, -1] = True
        seen = visited[there]
        return OfflineDataset.from_columns(
            {
                "observations": self.states[seen].astype(np.float32),
                "actions": rng.uniform(-1, 1, (len(seen), 1)).astype(np.float32),
                "rewards": self.rewards[seen],
                "terminals": terminals[there],
                "timeouts": (timeouts & ~terminals)[there],
            }
        )


def line() -> Walk:
    """Eight states on a line: forward with 0.7, else stay; the last one ends with 0.7."""
    matrix = 0.3 * np.eye(8) + 0.7 * np.eye(8, k=1)
    rewards = np.array([-0.3, 0.2, -0.5, 0.4, 0.1, -0.4, 0.6, 1.5])
    return Walk(np.linspace(-1, 1, 8)[:, None], matrix, rewards)


def grid() -> Walk:
    """A grid of 5 × 5, a step in each direction alike, none through the walls; one corner ends."""
    cells = [(x, y) for x in range(5) for y in range(5)]
    matrix = np.zeros((25, 25))
    for number, (x, y) in enumerate(cells[:-1]):
        for sideways, up in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            after = min(4, max(0, x + sideways)), min(4, max(0, y + up))
            matrix[number, cells.index(after)] += 0.25
    return Walk(np.array(cells) / 2 - 1, matrix, np.random.default_rng(0).normal(size=25))


def sampled(walk: Walk, steps: int, prediction: str, draws: int = 1500) -> np.ndarray:
    """Train ρ and return the shares of its samples in each state (S, S + 1), the nearest each."""
    torch.manual_seed(0)
    module = DVFModule(
        walk.states.shape[1], 1, (-1.0,), (1.0,),
        gamma=GAMMA, policy_representation="none", width=32, blocks=1, latents=2,
        diffusion_steps=64, prediction=prediction, sampling_steps=5, hidden=(8,), ema_rate=0.01,
    )  # fmt: skip
    dataset = walk.rolled()
    module.normalizer.fit(dataset.columns["observations"])
    view, optimizer = module.view().bind(dataset), module.configure_optimizers()
    order = RowOrder(view.spans, 320, seed=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 5e-3, total_steps=steps, pct_start=0.2
    )
    for step in range(steps):
        module.seed_noise(step)
        batch = view.batch(order.rows(step), order.uniforms(step, view.num_uniforms))
        module.occupancy_loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        module.after_step()
        schedule.step()
    module.eval().occupancy.sampler = make_sampler("dpm++", num_steps=10, clip=1.0)
    even = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws  # no chance in Δt itself
    count, states = len(walk.states), torch.from_numpy(walk.states).float()
    offsets = truncated_geometric(even, GAMMA, float("inf")).expand(count, -1)
    drawn, absorbed = module.sample_future(states, offsets, seed=1)
    nearest = torch.cdist(drawn.flatten(0, 1), states).argmin(1).view(count, draws)
    nearest[absorbed] = count
    one_hot = torch.nn.functional.one_hot(nearest, count + 1).double()
    return one_hot.mean(1).numpy()


def errors(walk: Walk, shares: np.ndarray) -> tuple[float, float, float]:
    """Total variation and V's error, means over the states, and the absorbed share's bias."""
    occupancy, values = walk.exact()
    estimated = walk.rewards + GAMMA / (1 - GAMMA) * shares[:, :-1] @ walk.rewards
    return (
        0.5 * float(np.abs(shares - occupancy).sum(1).mean()),
        float(np.abs(estimated - values).mean()),
        float((shares - occupancy)[:, -1].mean()),
    )


@unchecked()
def test_the_absorbed_share_has_no_bias_after_a_short_training():
    made = line()
    apart, _, bias = errors(made, sampled(made, 200, "v"))
    assert abs(bias) <= 0.03
    assert apart <= 0.25


@pytest.mark.slow
@pytest.mark.parametrize(("walk", "apart", "amiss"), [(line, 0.06, 0.11), (grid, 0.12, 0.22)])
@unchecked()
def test_close_states_are_resolved(walk: Callable[[], Walk], apart: float, amiss: float):
    """Eight states on a line and 25 in a grid; neither near the end nor elsewhere is V far off."""
    made = walk()
    distance, error, bias = errors(made, sampled(made, 800, "v"))
    assert distance <= apart and error <= amiss and abs(bias) <= 0.015


@pytest.mark.slow
@unchecked()
def test_close_states_are_blurred_by_x0_prediction_and_not_by_absorption():
    """Its loss hardly counts at small noise, where neighbours are told apart; v's and ε's does."""
    made = line()
    blurred, error, bias = errors(made, sampled(made, 800, "x0"))
    assert blurred >= 0.09 and error >= 0.15 and abs(bias) <= 0.015
