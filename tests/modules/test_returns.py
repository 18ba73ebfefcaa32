"""λ-returns against their definition, and what they keep of an action's effect."""

from __future__ import annotations

import pytest
import torch

from lit_offrl.modules.returns import lambda_returns

GAMMA = 0.9
# two episodes: three rows that end terminally, two that are cut off; the fourth row is alone
REWARDS = torch.tensor([1.0, 2.0, 3.0, 5.0, -1.0, 4.0])
VALUES = torch.tensor([10.0, 20.0, 99.0, 30.0, 40.0, 50.0])
TERMINALS = torch.tensor([False, False, True, False, False, False])
FOLLOWED = torch.tensor([True, True, False, False, True, False])


def returns(trace: float) -> torch.Tensor:
    return lambda_returns(REWARDS, VALUES, TERMINALS, FOLLOWED, gamma=GAMMA, trace=trace)


def test_without_trace_they_are_the_one_step_targets():
    expected = [1 + 0.9 * 10, 2 + 0.9 * 20, 3.0, 5 + 0.9 * 30, -1 + 0.9 * 40, 4 + 0.9 * 50]
    assert returns(0.0).tolist() == pytest.approx(expected)


def test_with_the_whole_trace_they_are_the_data_s_own_and_bootstrap_where_it_is_cut():
    expected = [1 + 0.9 * 2 + 0.81 * 3, 2 + 0.9 * 3, 3.0, 5 + 27, -1 + 0.9 * 4 + 0.81 * 50, 49.0]
    assert returns(1.0).tolist() == pytest.approx(expected)


def test_in_between_they_are_the_weighted_mean_of_n_step_returns():
    """(1 − λ) Σ λ^(n−1) G^(n), the last with all the weight that is left; row 0 by hand."""
    trace = 0.7
    steps = [1 + 0.9 * 10, 1 + 0.9 * 2 + 0.81 * 20, 1 + 0.9 * 2 + 0.81 * 3]
    expected = 0.3 * steps[0] + 0.3 * trace * steps[1] + trace**2 * steps[2]
    assert returns(trace)[0].item() == pytest.approx(expected)


def test_a_trace_finds_an_action_s_effect_under_noise_of_the_values():
    """An action ±1 moves the next 20 rewards by as much; V sees it, with noise of 20.

    The target r + γ V drowns the effect, whose part in the return is 18; λ = 0.95 keeps it.
    """
    generator = torch.Generator().manual_seed(0)
    episodes, length = 400, 20
    action = torch.randint(0, 2, (episodes,), generator=generator) * 2.0 - 1.0
    rewards = action[:, None].expand(-1, length) + torch.randn(
        episodes, length, generator=generator
    )
    left = torch.arange(length - 1, -1, -1)  # steps after s_{t+1}
    values = action[:, None] * (1 - 0.99**left) / 0.01
    values = values + 20 * torch.randn(values.shape, generator=generator)
    last = (left == 0).expand(episodes, -1).reshape(-1)

    def correlation(trace: float) -> float:
        found = lambda_returns(
            rewards.reshape(-1), values.reshape(-1), last, ~last, gamma=0.99, trace=trace
        )
        first = found.view(episodes, length)[:, 0]
        return float(torch.corrcoef(torch.stack([first, action]))[0, 1])

    assert correlation(0.95) > 0.93 > 0.75 > correlation(0.0)
