"""Both estimators on a chain whose values are known for each of several policies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lit_offrl.common.errors import ConfigError, DatasetError, TrainingError
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.modules import DVFModule
from lit_offrl.modules.occupancy import History
from lit_offrl.nets import symlog
from lit_offrl.studies import ope
from lit_offrl.studies.candidates import Candidate, make_candidates, parse_policies
from lit_offrl.studies.fqe_settings import FQESettings
from lit_offrl.studies.ope_truth import discounted_returns, true_returns
from tests.helpers import unchecked

STATES, GAMMA, BONUS = 4, 0.8, 0.5
REWARDS = np.array([0.0, 2.0, 1.0, 5.0])
FORWARD = {0.0: 0.1, 1.0: 0.4, 2.0: 0.7, 3.0: 0.95}  # probability of going forward, by φ


@pytest.fixture(scope="module", autouse=True)
def unchecked_shapes():
    with unchecked():
        yield


def transitions(forward: float) -> np.ndarray:
    """P (S, S): forward, else stay; from the last state forward is the end."""
    matrix = np.eye(STATES) * (1 - forward)
    matrix[np.arange(STATES - 1), np.arange(1, STATES)] = forward
    return matrix


def exact(forward: float) -> float:
    """V of the first state; r = REWARDS[s] + BONUS if the action goes forward."""
    paid = REWARDS + BONUS * forward
    return float(np.linalg.solve(np.eye(STATES) - GAMMA * transitions(forward), paid)[0])


def logged(policies=tuple(FORWARD), episodes=150, length=60, **changes) -> OfflineDataset:
    """Episodes of the policies in turn; the action's sign says forward or stay."""
    random = np.random.default_rng(0)
    policy = np.tile(policies, episodes)
    forward = random.random((len(policy), length)) < np.vectorize(FORWARD.get)(policy)[:, None]
    walked = forward.cumsum(1) - forward
    there = walked < STATES
    states, forward_there = walked[there], forward[there]
    timeouts = np.zeros_like(there)
    timeouts[:, -1] = True
    terminals = forward & (walked == STATES - 1)
    size = random.uniform(0.4, 0.6, len(states))
    columns = {
        "observations": np.eye(STATES, dtype=np.float32)[states],
        "actions": (np.where(forward_there, size, -size))[:, None],
        "rewards": REWARDS[states] + BONUS * forward_there,
        "terminals": terminals[there],
        "timeouts": (timeouts & ~terminals)[there],
        "policy": np.repeat(policy, length).reshape(there.shape)[there],
    }
    return OfflineDataset.from_columns(
        {**columns, **changes}, action_low=(-1.0,), action_high=(1.0,)
    )


def candidates() -> list[Candidate]:
    def of(forward):
        def draw(observations, noise):
            luck = noise.uniform((2, *observations.shape[:-1], 1))
            return torch.where(luck[0] < forward, 1.0, -1.0) * (0.4 + 0.2 * luck[1])

        return draw

    return [Candidate(policy, None, of(forward)) for policy, forward in FORWARD.items()]


class Known(nn.Module):
    """A network that is a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def known_dvf(representation="scalar") -> DVFModule:
    """A module whose ρ and r are the chain's own, by φ, and whose actor only stays."""
    torch.manual_seed(0)
    sizes = {"width": 8, "blocks": 1, "heads": 2, "latents": 2, "hidden": (8,), "history": 2}
    module = DVFModule(
        STATES, 1, (-1.0,), (1.0,), gamma=GAMMA, policy_representation=representation, **sizes
    ).eval()
    data = logged()
    module.spec = data.spec
    module.normalizer.fit(data.columns["observations"])
    paid = torch.tensor(REWARDS, dtype=torch.float32)

    def reward(x):
        state = x[..., :STATES].argmax(-1, keepdim=True)  # scaled to ±1
        return symlog(paid[state] + BONUS * (x[..., -1:] > 0))

    powers = {}
    for policy, forward in FORWARD.items():
        steps = [np.linalg.matrix_power(transitions(forward), k) for k in range(100)]
        powers[policy] = torch.tensor(np.stack(steps), dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)

    def sample(condition, noise):
        begun = condition.states[:, :STATES].argmax(-1)
        ahead = condition.offsets.long().clamp(max=99)
        drawn = []
        for state, offsets, policy in zip(begun, ahead, condition.policy, strict=True):
            there = powers[float(policy)][offsets, state]  # (n, S); what is missing is absorbed
            with_end = torch.cat([there, 1 - there.sum(1, keepdim=True)], 1).clamp(min=0)
            drawn.append(torch.multinomial(with_end, 1, generator=generator).squeeze(1))
        where = torch.stack(drawn)
        states = torch.eye(STATES)[where.clamp(max=STATES - 1)]
        return module.normalizer.normalize(states), where == STATES

    module.reward = Known(reward)
    module.acting = Known(lambda states: -torch.ones_like(states[..., :1]))
    module.occupancy.sample = sample
    return module


def test_fitted_q_finds_the_values_of_policies_that_the_data_are_not_of():
    """Trained on two policies, asked for four."""
    module, data = known_dvf(), logged((0.0, 2.0))
    settings = FQESettings(1500, 256, (32, 32), 1e-3, 0.05)
    starts = ope.initial_states(module, data, candidates(), most=200, seed=0)
    found, trace = ope.fqe_values(module, data, candidates(), starts, settings=settings, seed=0)
    expected = np.array([exact(forward) for forward in FORWARD.values()])
    np.testing.assert_allclose(found.values, expected, rtol=0.05)
    assert trace.shape == (10, 4) and (trace[-1] == found.values).all() and found.seconds > 0


def test_diffused_values_are_of_the_policy_asked_for():
    module, data = known_dvf(), logged()
    starts = ope.initial_states(module, data, candidates(), most=10, seed=0)
    assert (starts.observations == torch.eye(STATES)[0]).all()
    found = ope.dvf_values(module, candidates(), starts, samples=2000, seed=0)
    expected = np.array([exact(forward) for forward in FORWARD.values()])
    np.testing.assert_allclose(found.values, expected, rtol=0.03)
    # the module's own actor never goes forward: its bonus, and only that, is missing
    own = [module.value(torch.eye(STATES)[:1].expand(10, -1), policy=torch.full((10,), p),
                        num_samples=2000).mean().item() for p in FORWARD]  # fmt: skip
    steps = [
        np.linalg.inv(np.eye(STATES) - GAMMA * transitions(f))[0].sum() for f in FORWARD.values()
    ]
    missing = BONUS * np.array(list(FORWARD.values())) * np.array(steps)
    np.testing.assert_allclose(own, expected - missing, rtol=0.03)


def test_actions_are_asked_for_in_raw_states():
    module = known_dvf()
    module.normalizer.fit(torch.stack([torch.zeros(STATES), torch.full((STATES,), 4.0)]))
    asked = []

    def actions(states):
        asked.append(states)
        return torch.zeros_like(states[..., :1])

    module.occupancy.sample = lambda condition, noise: (
        torch.zeros(3, 5, STATES),
        torch.zeros(3, 5) > 0,
    )
    module.value(
        torch.full((3, STATES), 4.0), policy=torch.zeros(3), num_samples=5, actions=actions
    )
    assert (asked[0][:, 0] == 4.0).all() and (asked[0][:, 1:] == 2.0).all()
    assert asked[0].shape == (3, 6, STATES)


def test_clones_act_as_their_own_policy_does():
    module, data = known_dvf(), logged()
    made = make_candidates(parse_policies("0,3"), data, module, seed=1)
    shares = []
    for one in made:
        states = torch.eye(STATES).repeat(500, 1)
        drawn = one.actions(5, device=torch.device("cpu"))(states)
        assert torch.equal(drawn, one.actions(5, device=torch.device("cpu"))(states))
        assert drawn.abs().max() <= 1 and drawn.std() > 0.05
        shares.append(drawn.mean().item())
    np.testing.assert_allclose(shares, [0.5 * (2 * f - 1) for f in (0.1, 0.95)], atol=0.06)
    again = make_candidates(parse_policies("3"), data, module, seed=1)[0]  # whoever else is asked
    state = torch.eye(STATES)
    first, second = (
        each.actions(0, device=torch.device("cpu"))(state) for each in (made[1], again)
    )
    assert torch.equal(first, second)


def test_the_truth_is_of_the_policys_own_whole_episodes():
    module, data = known_dvf(), logged(episodes=400)
    found = true_returns(module, data, candidates(), truth="data", episodes=1, seed=0)
    expected = np.array([exact(forward) for forward in FORWARD.values()])
    assert (np.abs(found.values - expected) < 4 * found.errors).all()
    assert found.episodes.tolist() == [400] * 4 and found.unseen == pytest.approx(GAMMA**60)
    rewards = np.array([1.0, 2.0, 4.0, 8.0, 16.0], np.float32)
    ends = np.array([False, False, True, False, True])
    columns = {"observations": np.zeros((5, 1)), "rewards": rewards, "terminals": ends}
    small = OfflineDataset.from_columns(columns)
    np.testing.assert_allclose(discounted_returns(small, 0.5), [3.0, 16.0])
    np.testing.assert_allclose(discounted_returns(small, 0.5, skip=1), [4.0, 16.0])
    with pytest.raises(DatasetError, match="row 1 has no reward"):
        masked = {**columns, "reward_mask": np.array([True, False, True, True, True])}
        discounted_returns(OfflineDataset.from_columns(masked), 0.5)


def test_a_sequential_representation_begins_where_its_history_is_known():
    module, data = known_dvf("sequential"), logged()
    starts = ope.initial_states(module, data, candidates(), most=7, seed=0)
    assert starts.observations.shape == (4, 7, STATES)
    assert [one.states.shape for one in starts.histories] == [(7, 2, STATES)] * 4
    for history in starts.histories:
        assert isinstance(history, History) and history.mask.all()
        assert (history.states[:, 0] == torch.eye(STATES)[0]).all()  # each episode's first state
    truth = true_returns(module, data, candidates(), truth="data", episodes=1, seed=0)
    own = np.repeat(data.columns["policy"][data.episodes[:, 0]] == 3, data.episode_lengths)
    later = discounted_returns(data, GAMMA, 2)[data.columns["policy"][data.episodes[:, 0]] == 3]
    assert own.any() and truth.values[3] == pytest.approx(later.mean())
    module.occupancy.sample = lambda c, noise: (torch.zeros(7, 5, STATES), torch.zeros(7, 5) > 0)
    assert len(ope.dvf_values(module, candidates(), starts, samples=5, seed=0).values) == 4


def test_what_cannot_be_sound_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="policy_representation 'none'"):
        ope.require_evaluable(known_dvf("none"), [(1.0, None)])
    with pytest.raises(ConfigError, match=r"walker\.ckpt: with policy_representation 'sequential'"):
        ope.require_evaluable(known_dvf("sequential"), parse_policies("1,2=walker.ckpt"))
    for text, said in (
        ("", "''"),
        ("2,x", "'x'"),
        ("1=", "'1='"),
        ("nan", "'nan'"),
        ("1,1", "twice"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse_policies(text)
    with pytest.raises(DatasetError, match="never has the value 9"):
        make_candidates(parse_policies("9"), logged(), known_dvf(), seed=0)
    for wrong in ({"steps": 0}, {"batch_size": 0}, {"tau": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            FQESettings(**wrong)
    data, module = logged(), known_dvf()
    starts = ope.initial_states(module, data, candidates(), most=2, seed=0)
    with pytest.raises(TrainingError, match="not finite"):
        wild = FQESettings(20, 8, (8,), learning_rate=1e30)
        ope.fqe_values(module, data, candidates(), starts, settings=wild, seed=0)
