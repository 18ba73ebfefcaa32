"""Behaviour cloning recovers a linear policy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import Transitions
from lit_offrl.modules import BCModule
from tests.helpers import unchecked

SIGMA = 0.1
MAP = np.array([[0.6, -0.2], [0.3, 0.5]])


def expert(states: np.ndarray) -> np.ndarray:
    """A linear policy well inside the bounds of (−3, 1) and (−1, 3)."""
    return states @ MAP.T * 0.5 + np.array([-1.0, 1.0])


@unchecked()
def imitated(head: str, steps: int = 500) -> BCModule:
    random = np.random.default_rng(0)
    states = random.uniform(-1, 1, (4096, 2)) * 50 + 20  # of a scale that must be normalised
    actions = expert((states - 20) / 50) + SIGMA * random.normal(size=(4096, 2))
    dataset = OfflineDataset.from_columns(
        {"observations": states, "actions": actions, "timeouts": np.arange(4096) % 64 == 63}
    )
    torch.manual_seed(0)
    module = BCModule(2, 2, (-3.0, -1.0), (1.0, 3.0), head=head, hidden=(32,), learning_rate=2e-2)
    module.normalizer.fit(dataset.columns["observations"])
    view = Transitions().bind(dataset)
    optimizer = module.configure_optimizers()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = view.batch(view.rows[torch.randint(len(view.rows), (256,), generator=generator)])
        assert batch.rewards is None  # they are not needed
        optimizer.zero_grad()
        sum(module.losses(batch).values()).backward()
        optimizer.step()
        schedule.step()
    return module.eval()


@pytest.mark.parametrize("head", ["gaussian", "deterministic"])
def test_recovers_a_linear_policy_and_acts_by_its_mean(head):
    module = imitated(head)
    states = np.random.default_rng(1).uniform(-0.9, 0.9, (200, 2))
    acted = module.policy().act(states * 50 + 20)
    assert acted.dtype == np.float32 and acted.shape == (200, 2)
    assert np.abs(acted - expert(states)).max() < 0.08
    np.testing.assert_array_equal(acted, module.policy().act(states * 50 + 20))
    if head == "gaussian":
        np.testing.assert_allclose(module.actor.log_std.detach(), math.log(SIGMA), atol=0.05)


def test_losses_are_the_likelihood_and_the_squared_error():
    states, actions = np.array([[0.5, 0.5], [-0.5, 0.0]]), np.array([[0.1], [0.4]])
    dataset = OfflineDataset.from_columns(
        {"observations": states, "actions": actions, "terminals": np.array([False, True])}
    )
    view = Transitions().bind(dataset)
    batch = view.batch(view.rows)
    for head in ("gaussian", "deterministic"):
        module = BCModule(2, 1, head=head, hidden=())
        torch.nn.init.zeros_(module.actor.net[0].weight)
        torch.nn.init.zeros_(module.actor.net[0].bias)
        squared = (0.1**2 + 0.4**2) / 2
        expected = squared  # the mean action is 0, σ begins at 1
        if head == "gaussian":
            expected = 0.5 * squared + 0.5 * math.log(2 * math.pi)
        assert module.losses(batch)["actor"].item() == pytest.approx(expected, rel=1e-5)
        assert module._info["actor/squared_error"].item() == pytest.approx(squared, rel=1e-5)


def test_needs_actions_and_nothing_else():
    assert BCModule(2, 1).required_columns == ("actions",)
    with pytest.raises(ConfigError, match="needs a dataset with actions"):
        BCModule(2, 0)


def test_trains_on_a_file_without_rewards(fit):
    module = BCModule(2, 1, (-1.0,), (1.0,), hidden=(4,), learning_rate=1e-2)
    before = module.actor.net[0].weight.clone()
    trainer = fit(module, 3, validate=True, without=("rewards", "policy"))
    assert not torch.equal(before, module.actor.net[0].weight)
    assert trainer.callback_metrics["val/loss/actor"].isfinite()


@pytest.mark.parametrize(("normalize", "low", "high"), [(True, -1, 1), (False, 10, 30)])
def test_observations_are_scaled_or_left(normalize, low, high, monkeypatch):
    module = BCModule(2, 1, hidden=(), normalize=normalize)
    module.normalizer.fit(np.array([[10.0, 10.0], [30.0, 30.0]], np.float32))
    seen = []
    monkeypatch.setattr(module.actor, "forward", lambda rows: seen.append(rows) or rows[:, :1])
    module.policy().act(np.array([[10.0, 30.0]], np.float32))
    assert seen[0].tolist() == [[low, high]]
