"""The Decision Transformer: what a token sees, the loss, how it acts, and a toy of two returns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.policy import RewardPolicy
from lit_offrl.datasets.views import ContextBatch
from lit_offrl.modules import DecisionTransformerModule
from tests.helpers import unchecked

TINY = {"width": 8, "heads": 2, "blocks": 2, "context": 4, "return_scale": 10.0}
LOW, HIGH = (-2.0, 0.0), (1.0, 3.0)


@pytest.fixture
def module(awake) -> DecisionTransformerModule:
    torch.manual_seed(0)
    made = DecisionTransformerModule(3, 2, LOW, HIGH, **TINY, max_timesteps=20)
    awake(made.actor)
    made.normalizer.fit(torch.randn(40, 3) * 2 + 1)
    return made


def made_up_batch(rows: int = 5, steps: int = 4) -> ContextBatch:
    random = torch.Generator().manual_seed(1)
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    return ContextBatch(
        observations=torch.randn(rows, steps, 3, generator=random),
        actions=low + (high - low) * torch.rand(rows, steps, 2, generator=random),
        returns_to_go=20 * torch.randn(rows, steps, generator=random),
        timesteps=torch.arange(rows)[:, None] + torch.arange(steps),
        mask=torch.arange(steps) < torch.randint(1, steps + 1, (rows, 1), generator=random),
    )


@pytest.mark.parametrize("training", [True, False])
def test_no_action_depends_on_its_own_or_on_anything_later(module, training):
    """To the bit; and each action depends on everything before it."""
    module.train(training)
    parts = made_up_batch()[:-1]

    def predicted(*inputs):
        module.seed_noise(0)  # the same units are dropped
        return module.predict(*inputs)

    before = predicted(*parts)
    for which, part in enumerate(parts):
        for step in range(4):
            other = part.clone()
            other[:, step] += 1
            after = predicted(*parts[:which], other, *parts[which + 1 :])
            first = step + (which == 1)  # an action is seen by the next step
            assert torch.equal(after[:, :first], before[:, :first])
            changed = (after != before).any(dim=-1)
            assert changed[:, first:].all()


def test_attention_in_training_is_the_same_but_for_what_is_dropped(module):
    parts = made_up_batch()[:-1]
    module.eval()
    expected = module.predict(*parts)
    module.train()
    for part in module.modules():
        if hasattr(part, "probability"):
            part.probability = 1e-12
    module.seed_noise(0)
    torch.testing.assert_close(module.predict(*parts), expected)


def test_the_loss_is_the_mean_error_of_the_real_steps(module):
    module.eval()
    batch = made_up_batch()
    half = (torch.tensor(HIGH) - torch.tensor(LOW)) / 2
    error = ((module.predict(*batch[:-1]) - batch.actions) / half)[batch.mask]
    assert module.losses(batch)["actor"].item() == pytest.approx(error.square().mean().item())
    padded = batch._replace(
        observations=torch.where(batch.mask[..., None], batch.observations, 7.0),
        actions=torch.where(batch.mask[..., None], batch.actions, -1.0),
    )
    assert torch.equal(module.losses(padded)["actor"], module.losses(batch)["actor"])


def test_the_rate_rises_over_the_warm_up():
    module = DecisionTransformerModule(3, 2, **TINY, learning_rate=1.0, warmup_steps=4)
    rates = [module.learning_rate_of("actor", step) for step in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    plain = DecisionTransformerModule(3, 2, **TINY, learning_rate=1.0, warmup_steps=0)
    assert plain.learning_rate_of("actor", 0) == 1.0
    assert plain.weight_decay_of("actor") == 1e-4


def test_acts_by_the_last_steps_of_each_episode_and_what_is_left_to_earn(module):
    """Two environments, one of which begins anew after 6 steps of 9; contexts have 4."""
    module.eval()
    random = np.random.default_rng(5)
    seen = random.normal(size=(9, 2, 3)).astype(np.float32)
    earned = random.normal(size=(9, 2)).astype(np.float32)
    policy = module.policy(target_return=12)  # as a command line has it
    assert isinstance(policy, RewardPolicy)
    policy.reset(np.ones(2, bool))
    acted = []
    for step in range(9):
        if step == 6:
            policy.reset(np.array([False, True]))
        acted.append(policy.act(seen[step]))
        policy.earn(earned[step])

    for env, begun in ((0, 0), (1, 0), (1, 6)):
        for step in range(begun, 6 if (env, begun) == (1, 0) else 9):
            rows = slice(max(begun, step - 3), step + 1)
            times = np.arange(9)[rows] - begun
            left = [12.0 - earned[begun:at, env].sum() for at in range(rows.start, rows.stop)]
            own = np.array([action[env] for action in acted])[rows]
            own[-1] = 0.5  # not known yet, and not seen
            parts = (seen[rows, env], own, np.array(left, np.float32), times)
            expected = module.predict(*(torch.from_numpy(part)[None] for part in parts))[0, -1]
            np.testing.assert_allclose(
                acted[step][env], expected.detach().numpy(), rtol=1e-4, atol=1e-5
            )


@unchecked()
def test_a_toy_of_returns_gets_the_return_that_is_asked_for():
    """Three steps with two arms: the arm 1.5 earns 1, the arm 0.5 nothing; the data draw evenly."""
    torch.manual_seed(0)
    random, rows = torch.Generator().manual_seed(0), 64
    sizes = {"width": 16, "blocks": 1, "context": 3, "return_scale": 1.0, "max_timesteps": 3}
    options = {"dropout": 0.0, "warmup_steps": 0, "learning_rate": 1e-2, "normalize": False}
    module = DecisionTransformerModule(1, 1, (0.0,), (2.0,), **sizes, **options)
    optimizer = module.configure_optimizers()
    zeros, times = torch.zeros(rows, 3, 1), torch.arange(3).expand(rows, 3)
    for _ in range(150):
        rewards = torch.randint(2, (rows, 3), generator=random).float()
        left = rewards.flip(1).cumsum(1).flip(1)
        batch = ContextBatch(zeros, rewards[..., None] + 0.5, left, times, times >= 0)
        optimizer.zero_grad()
        module.losses(batch)["actor"].backward()
        optimizer.step()

    def arms(target, *rewards):
        """The arms of the steps, for two environments that pay these rewards; the last step's."""
        policy, found = module.policy(target_return=target), []
        policy.reset(np.ones(2, bool))
        for step in range(3):
            found.append(policy.act(np.zeros((2, 1), np.float32))[:, 0])
            paid = [each[step] if step < len(each) else 0.0 for each in rewards]
            policy.earn(np.array(paid or found[-1] > 1, np.float32))
        return np.array(found)

    assert arms(3.0) == pytest.approx(1.5, abs=0.2)
    assert arms(0.0) == pytest.approx(0.5, abs=0.2)
    # asked for 2: what is left in the last step is 0 where both steps before it paid, else 1
    assert arms(2.0, (1.0, 1.0), (1.0, 0.0))[2] == pytest.approx([0.5, 1.5], abs=0.2)


def test_asks_for_the_best_return_of_the_data_unless_told(fit):
    module = DecisionTransformerModule(2, 1, (-1.0,), (1.0,), **TINY)
    with pytest.raises(ConfigError, match="has seen no data that say which return to ask for"):
        module.policy()
    trainer = fit(module, 2)
    returns = trainer.datamodule.train_column("rewards").reshape(8, 9).sum(1)
    assert module.best_return.item() == pytest.approx(returns.max(), rel=1e-6)
    rows = np.random.default_rng(0).normal(size=(3, 2))

    def first(**target):
        return module.eval().policy(**target).act(rows)

    np.testing.assert_array_equal(first(), first(target_return=module.best_return.item()))
    assert not np.array_equal(first(), first(target_return=0.0))
    module.target_return = 0.0
    np.testing.assert_array_equal(first(), first(target_return=0.0))
    # weights that come from elsewhere, as those of a checkpoint do, ask for what these data have
    module.best_return.fill_(-100.0)
    fit(module, 1)
    assert module.best_return.item() == pytest.approx(returns.max(), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "heads is 3: give a number that divides the width, 8"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"return_scale": 0.0}, "return_scale is 0.0"),
        ({"action_dim": 0}, "DecisionTransformerModule needs a dataset with actions and rewards"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        DecisionTransformerModule(2, **{"action_dim": 1, **TINY, **options})


def test_batches_of_another_view_or_length_are_refused(module, tiny, whole_batch):
    for batch in (whole_batch(tiny()), made_up_batch(steps=3)):
        with pytest.raises(ConfigError, match="trains on Contexts of length 4: leave"):
            module.losses(batch)
