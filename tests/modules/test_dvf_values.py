"""DVF's value formula, with the networks replaced by known functions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lit_offrl.modules import DVFModule
from lit_offrl.modules.occupancy import History
from lit_offrl.nets import symlog

GAMMA = 0.9


class Known(nn.Module):
    """A network that is a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Futures:
    """An occupancy model that draws given states, and remembers what it was asked."""

    def __init__(self, states: torch.Tensor, absorbed: torch.Tensor | None = None) -> None:
        self.states = states
        self.absorbed = torch.zeros(states.shape[:2]) > 0 if absorbed is None else absorbed
        self.conditions: list = []

    def __call__(self, condition, noise):
        self.conditions.append(condition)
        return self.states, self.absorbed


class Constant:
    """Noise whose uniform numbers are all the same one."""

    def __init__(self, number: float) -> None:
        self.number = number

    def uniform(self, shape, dtype=torch.float32):
        return torch.full(shape, self.number, dtype=dtype)


@pytest.fixture
def known(tiny):
    """Build a module with r(s, a) = 10 s_0 + a in raw units, π(s) = s_1, and given futures."""

    def build(states, absorbed=None, **options) -> DVFModule:
        module = tiny(**{"policy_representation": "none", **options}).eval()
        module.normalizer.fit(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))  # raw = normalised
        module.reward = Known(lambda x: symlog(10 * x[..., :1] + x[..., 2:]))
        module.acting = Known(lambda s: s[..., 1:])
        module.occupancy.sample = Futures(states, absorbed)
        return module

    return build


def test_value_is_the_first_reward_and_the_mean_of_the_later_ones(known):
    now = torch.tensor([[0.1, 0.2], [0.3, 0.4]])  # paid 1.2 and 3.4
    later = torch.tensor([[[0.1, 0.0], [0.3, 0.0]], [[0.5, 0.5], [-0.5, 0.5]]])  # 1, 3; 5.5, −4.5
    for copies in (1, 16):  # a sum would grow with n
        module = known(later.repeat(1, copies, 1))
        value = module.value(now, num_samples=2 * copies)
        expected = [1.2 + GAMMA / (1 - GAMMA) * 2.0, 3.4 + GAMMA / (1 - GAMMA) * 0.5]
        torch.testing.assert_close(value, torch.tensor(expected))


def test_the_absorbing_state_pays_nothing_but_counts_in_the_mean(known):
    later = torch.full((1, 4, 2), 0.4)  # 4.4 each, whatever an absorbed one's numbers say
    module = known(later, torch.tensor([[True, False, True, True]]))
    value = module.value(torch.zeros(1, 2), num_samples=4)
    torch.testing.assert_close(value, torch.tensor([GAMMA / (1 - GAMMA) * 4.4 / 4]))


def test_steps_left_cut_the_horizon_and_the_offsets(known):
    steps = torch.tensor([0.0, 1.0, 5.0, math.inf])
    now = torch.tensor([[0.2, 0.0]]).expand(4, 2)  # pays 2, later ones 1
    module = known(torch.tensor([0.1, 0.0]).expand(4, 500, 2))
    value = module.value(now, steps_left=steps, num_samples=500)
    weight = [GAMMA * (1 - GAMMA**h) / (1 - GAMMA) for h in steps.tolist()]
    torch.testing.assert_close(value, 2 + torch.tensor(weight))
    offsets = module.occupancy.sample.conditions[0].offsets
    assert offsets.min() == 1
    assert offsets[:3].amax(1).tolist() == [1, 1, 5] and offsets[3].max() > 20


@pytest.mark.parametrize(("options", "most"), [({}, math.inf), ({"max_offset": 3}, 3)])
def test_offsets_are_geometric_up_to_the_longest(known, options, most):
    module = known(torch.zeros(1, 20_000, 2), **options)
    module.value(torch.zeros(1, 2), num_samples=20_000)
    offsets = module.occupancy.sample.conditions[0].offsets.double()
    whole = (1 - GAMMA**most) if most < math.inf else 1.0
    for k in (1, 2, 3):
        share = (offsets == k).double().mean()
        assert abs(share - (1 - GAMMA) * GAMMA ** (k - 1) / whole) < 0.012
    assert offsets.max() <= most


def test_offsets_are_one_from_each_slice_of_their_distribution_and_never_endless(known):
    """Also at the largest numbers that can be drawn, which must not round up to 1."""
    module, samples = known(torch.zeros(1, 32, 2), gamma=0.99), 32
    edges = 1 - 0.99 ** torch.arange(1, 3000, dtype=torch.float64)  # P(Δt ≤ k)
    for drawn in (0.0, 0.5, 1 - 2**-24):
        module.diffused_value(torch.zeros(1, 2), Constant(drawn), num_samples=samples)
        offsets = module.occupancy.sample.conditions[-1].offsets.squeeze(0)
        slices = (torch.arange(samples, dtype=torch.float64) + drawn) / samples
        expected = torch.searchsorted(edges, slices) + 1
        assert torch.equal(offsets, expected.clamp_min(1).float())


def test_a_discount_of_zero_leaves_the_first_reward(known):
    module = known(torch.full((1, 3, 2), 0.5), gamma=0.0)
    assert module.value(torch.tensor([[0.1, 0.0]])).item() == pytest.approx(1.0)


def test_the_next_value_is_zero_at_a_terminal_and_sees_the_history_advanced(
    known, whole_batch, tiny
):
    batch = whole_batch(tiny(history_actions=True))
    count = len(batch.rows)
    module = known(
        torch.full((count, 3, 2), 0.1), policy_representation="sequential", history_actions=True
    )
    values = module.diffused_value.next_values(batch, module.noise)
    paid = 10 * batch.next_observations[:, 0] + batch.next_observations[:, 1]
    expected = paid + GAMMA / (1 - GAMMA) * 1.1
    assert batch.terminals.any() and (values[batch.terminals] == 0).all()
    ongoing = ~batch.terminals
    torch.testing.assert_close(values[ongoing], expected[ongoing], rtol=1e-4, atol=1e-4)
    condition = module.occupancy.sample.conditions[0]
    torch.testing.assert_close(condition.states[:, :2], batch.next_observations)
    torch.testing.assert_close(condition.history[:, -1, :2], batch.observations)
    torch.testing.assert_close(condition.history[:, 0, :2], batch.history[:, 1])
    torch.testing.assert_close(condition.history_actions[:, -1], batch.actions)
    assert condition.history_mask[:, -1].all()
    assert torch.equal(condition.history_mask[:, 0], batch.history_mask[:, 1])


def test_q_is_regressed_on_the_backup(known, whole_batch, tiny):
    batch = whole_batch(tiny())
    module = known(torch.zeros(len(batch.rows), 3, 2))
    next_paid = 10 * batch.next_observations[:, 0] + batch.next_observations[:, 1]
    backup = batch.rewards + GAMMA * torch.where(batch.terminals, 0.0, next_paid)
    module.q = Known(lambda x: torch.zeros_like(x[..., :1]))
    torch.testing.assert_close(
        module.q_loss(batch), ((1 - GAMMA) * backup).square().mean(), rtol=1e-4, atol=1e-6
    )
    assert module._info["q/target_mean"].item() == pytest.approx(backup.mean().item(), rel=1e-3)

    # cached values take the sampled ones' place in training, by row number, and only there
    module.cache.next_values = torch.arange(100.0)
    module.train()
    backup = batch.rewards + GAMMA * batch.rows
    torch.testing.assert_close(module.q_loss(batch), ((1 - GAMMA) * backup).square().mean())
    assert len(module.occupancy.sample.conditions) == 1


def test_the_same_seed_gives_the_same_value(tiny, awake):
    module = awake(tiny()).eval()
    states = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    history = History(torch.zeros(4, 2, 2), None, torch.zeros(4, 2) > 0)
    one, same, other = (module.value(states, history=history, seed=s) for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("most", [10, 100, 1000])
def test_a_value_costs_as_many_denoiser_calls_however_far_it_looks(tiny, monkeypatch, most):
    module = tiny(gamma=0.999, max_offset=most, policy_representation="none")
    calls = {"encode": 0, "denoise": 0}
    for name in calls:
        method = getattr(module.occupancy.average, name)

        def counted(*args, name=name, method=method, **options):
            calls[name] += 1
            return method(*args, **options)

        monkeypatch.setattr(module.occupancy.average, name, counted)
    module.value(torch.zeros(2, 2), num_samples=32)
    assert calls == {"encode": 1, "denoise": 2}  # two sampling steps, for all samples at once


class Chain:
    """An exact occupancy: maps the first number of the noise to a state of the chain.

    Two states; from 0 the chain goes to 1 with probability 0.2, and from 1 it ends with 0.3. The
    state after Δt steps is the quantile at Φ(z) of its distribution: what a perfect denoiser with a
    deterministic solver is.
    """

    MATRIX = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.7, 0.3], [0.0, 0.0, 1.0]], dtype=torch.float64)
    REWARDS = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)

    def __init__(self, offsets: torch.Tensor, start: int) -> None:
        later = [torch.eye(3, dtype=torch.float64)[start]]
        for _ in range(int(offsets.max())):
            later.append(later[-1] @ self.MATRIX)
        self.edges = torch.stack(later).cumsum(1)[offsets.long(), :2]

    def sample(self, denoise, schedule, shape, *, initial_noise, generator, **_):
        drawn = generator.normal(shape) if initial_noise is None else initial_noise
        share = torch.special.ndtr(drawn[:, :1].double())
        state = (share > self.edges).sum(1)  # 0, 1, or 2: absorbed
        moved = torch.zeros(shape)
        moved[:, 0], moved[:, -1] = state.float(), torch.where(state == 2, 1.0, -1.0)
        return moved


@pytest.mark.parametrize("count", [7, 8])
def test_antithetic_draws_keep_the_exact_value_and_lower_its_variance(tiny, monkeypatch, count):
    chain = torch.linalg.inv(torch.eye(3, dtype=torch.float64) - GAMMA * Chain.MATRIX)
    exact = float((chain @ Chain.REWARDS)[0])
    variances = {}
    for draws in ("independent", "antithetic"):
        module = tiny(policy_representation="none", draws=draws).eval()
        module.normalizer.fit(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
        module.reward = Known(lambda x: symlog(Chain.REWARDS.float()[x[..., :1].long()]))
        module.acting = Known(lambda s: s[..., 1:])
        condition = module.occupancy.condition

        def chained(states, offsets, *rest, module=module, condition=condition):
            module.occupancy.sampler = Chain(offsets.flatten(), start=0)
            return condition(states, offsets, *rest)

        monkeypatch.setattr(module.occupancy, "condition", chained)
        values = module.value(torch.zeros(20_000, 2), num_samples=count).double()
        error = (values.var() / len(values)).sqrt()
        assert abs(values.mean() - exact) < 4 * error < 0.1, (draws, values.mean(), exact)
        variances[draws] = values.var()
    assert variances["antithetic"] < 0.7 * variances["independent"]
