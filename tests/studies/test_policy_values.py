"""Fitted Q evaluation of acting policies on a chain whose values are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.modules import BCModule
from lit_offrl.modules.skill_policy import SkillPolicy
from lit_offrl.studies.candidates import acting
from lit_offrl.studies.fqe_settings import FQESettings
from lit_offrl.studies.policy_values import Value, first_states, fitted_values
from tests.helpers import unchecked

STATES, GAMMA, BONUS = 4, 0.8, 0.5
REWARDS = np.array([1.0, 2.0, 0.0, 5.0])


@pytest.fixture(scope="module", autouse=True)
def unchecked_shapes():
    with unchecked():
        yield


def logged(episodes=300, length=40) -> OfflineDataset:
    """Uniform actions: a positive one goes forward, from the last state to the end."""
    random = np.random.default_rng(0)
    actions = random.uniform(-1, 1, (episodes, length))
    forward = actions > 0
    states = forward.cumsum(1) - forward
    there = states < STATES
    terminals = forward & (states == STATES - 1)
    timeouts = np.zeros_like(there)
    timeouts[:, -1] = True
    columns = {
        "observations": np.eye(STATES, dtype=np.float32)[states[there]],
        "actions": actions[there][:, None],
        "rewards": REWARDS[states[there]] + BONUS * forward[there],
        "terminals": terminals[there],
        "timeouts": (timeouts & ~terminals)[there],
    }
    return OfflineDataset.from_columns(columns, action_low=(-1.0,), action_high=(1.0,))


def exact(forward: float) -> float:
    """V of the first state of a policy that goes forward so often."""
    matrix = np.eye(STATES) * (1 - forward)
    matrix[np.arange(STATES - 1), np.arange(1, STATES)] = forward
    return float(np.linalg.solve(np.eye(STATES) - GAMMA * matrix, REWARDS + BONUS * forward)[0])


def test_values_of_policies_that_the_data_are_not_of():
    generator = torch.Generator().manual_seed(0)

    def uniform(rows):
        return 2 * torch.rand((*rows.shape[:-1], 1), generator=generator) - 1

    def always(number):
        return lambda rows: torch.full((*rows.shape[:-1], 1), number)

    data = logged()
    starts = data.columns["observations"][data.episodes[first_states(data, most=9, seed=1), 0]]
    settings = FQESettings(1500, 256, (32, 32), 1e-3, 0.05)
    values, trace = fitted_values(
        data,
        [always(0.5), always(-0.5), uniform],
        starts,
        gamma=GAMMA,
        settings=settings,
        seed=0,
        device=torch.device("cpu"),
    )
    expected = [exact(1.0), exact(0.0), exact(0.5)]
    assert expected[1] == pytest.approx(REWARDS[0] / (1 - GAMMA))  # it stays where it is
    np.testing.assert_allclose(values.mean(1), expected, rtol=0.05)
    assert values.shape == (3, 9) and trace.shape == (3, 10)
    np.testing.assert_array_equal(trace[:, -1], values.mean(1))


def test_what_acts_is_clipped_and_begins_anew_in_each_state():
    spec = logged().spec
    module = BCModule(STATES, 1, (-3.0,), (3.0,), hidden=(8,))
    module.spec = spec
    module.actor.net[-1].bias.data.fill_(9.0)
    act, remark = acting(module, spec, "a.ckpt")
    assert (act(torch.zeros(2, 5, STATES)) == 1.0).all() and remark is None

    chosen = []

    def choose(rows):
        chosen.append(len(rows))
        return rows[:, :1]

    module.policy = lambda: SkillPolicy(choose, lambda rows, latents: latents, 5, module.device)
    act, remark = acting(module, spec, "a.ckpt")
    assert act(torch.eye(STATES)).tolist() == [[1.0], [0.0], [0.0], [0.0]]
    assert act(torch.eye(STATES).flip(0)).tolist() == [[0.0], [0.0], [0.0], [1.0]]
    assert chosen == [4, 4] and "as if it began anew in each state" in remark


def test_what_cannot_act_on_the_data_is_one_line():
    spec = logged().spec
    with pytest.raises(ConfigError, match=r"a\.ckpt: acts on other observations or actions"):
        acting(BCModule(STATES, 1, (-1.0,), (1.0,), hidden=(8,)), spec, "a.ckpt")
    module = BCModule(STATES, 1, (-1.0,), (1.0,), hidden=(8,))
    module.spec = spec
    module.actor.net[-1].bias.data.fill_(np.nan)
    act, _ = acting(module, spec, "a.ckpt")
    with pytest.raises(EvaluationError, match=r"a\.ckpt: its policy's actions are not finite"):
        act(torch.eye(STATES))


def test_a_value_has_an_interval_where_there_are_enough_states():
    few = Value.of(np.array([1.0, 2.0]))
    assert (few.mean, few.low, few.high) == (1.5, None, None)
    many = Value.of(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]))
    assert many.low == 0.0 and 1 / 7 < many.high < 1 and many.error is not None
    assert Value.of(np.array([3.0])).error is None
