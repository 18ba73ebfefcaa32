"""TD3+BC: both losses against NumPy, the delayed actor, and a bandit whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.modules import TD3BCModule
from tests.helpers import acts_by_tanh, made_up_transitions, unchecked

LOW, HIGH = np.array([-2.0, 0.0]), np.array([1.0, 3.0])
CENTRE, SCALE = (HIGH + LOW) / 2, (HIGH - LOW) / 2
ROWS, GAMMA, ALPHA = 7, 0.9, 2.5


def made_up_batch() -> TransitionBatch:
    return made_up_transitions(LOW, HIGH, ROWS)


# ---- the method again, in NumPy, from weights, batch and noise -----------------------------------


def act(net, states):
    return acts_by_tanh(net, states, LOW, HIGH)


def values(net, states, actions):
    x = np.broadcast_to(np.concatenate([states, actions], -1), (2, len(states), 5))
    layers = [layer for layer in net.members.layers if hasattr(layer, "weight")]
    for i, layer in enumerate(layers):
        x = x @ layer.weight.detach().numpy() + layer.bias.detach().numpy()
        x = np.maximum(x, 0) if i < len(layers) - 1 else x
    return x[..., 0]


def test_both_losses_are_the_papers(awake):
    torch.manual_seed(0)
    module = TD3BCModule(3, 2, LOW.tolist(), HIGH.tolist(), hidden=(5, 4), gamma=GAMMA)
    for net in (module.actor, module.target_actor, module.q, module.target):
        awake(net)
    data = np.random.default_rng(4).normal(2.0, 3.0, size=(50, 3)).astype(np.float32)
    module.normalizer.fit(data)
    batch = made_up_batch()
    states, next_states = (
        (part.numpy() - data.mean(0)) / (data.std(0) + 1e-3)
        for part in (batch.observations, batch.next_observations)
    )
    module.seed_noise(0)
    losses = module.losses(batch)
    module.seed_noise(0)
    noise = np.clip(0.2 * module.noise.normal((ROWS, 2)).numpy(), -0.5, 0.5) * SCALE
    next_actions = np.clip(act(module.target_actor, next_states) + noise, LOW, HIGH)
    next_value = values(module.target, next_states, next_actions).min(0)
    td_target = batch.rewards.numpy() + GAMMA * np.where(batch.terminals, 0, next_value)
    errors = values(module.q, states, batch.actions.numpy()) - td_target
    assert losses["critic"].item() == pytest.approx((errors**2).mean(1).sum(), rel=1e-4)

    acted = act(module.actor, states)
    q = values(module.q, states, acted)[0]
    cloning = ((acted - batch.actions.numpy()) ** 2).mean()
    expected = cloning - ALPHA / np.abs(q).mean() * q.mean()
    assert losses["actor"].item() == pytest.approx(expected, rel=1e-4)

    losses["actor"].backward()  # which moves the actor alone
    assert all(part.grad is None for part in module.q.parameters())
    assert all(part.grad is not None for part in module.actor.parameters())


def test_actor_and_targets_move_in_every_second_step(fit):
    class Watch(Callback):
        """Keeps what the weights are after each step."""

        def __init__(self):
            self.kept = []

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            nets = (module.q, module.actor, module.target, module.target_actor)
            self.kept.append([next(net.parameters()).clone() for net in nets])

    watch = Watch()
    module = TD3BCModule(2, 1, (-1.0,), (1.0,), hidden=(4,), learning_rate=1e-2)
    fit(module, 4, watch)
    for step in (1, 2, 3):  # counted from 0: steps 1 and 3 are the second ones
        moved = [
            not torch.equal(*pair) for pair in zip(*watch.kept[step - 1 : step + 1], strict=True)
        ]
        assert moved == [True] + 3 * [step % 2 == 1]


@pytest.mark.parametrize(("alpha", "answer"), [(0.0, 0.0), (1e3, 0.5)])
@unchecked()
def test_a_bandits_answer_is_the_datas_mean_or_the_best_arm(alpha, answer):
    """The reward is 2 − 4 (a − 0.5)², the data are uniform around 0."""
    torch.manual_seed(0)
    module = TD3BCModule(1, 1, alpha=alpha, hidden=(64,), learning_rate=1e-2)
    optimizer = module.configure_optimizers()
    random, rows = torch.Generator().manual_seed(0), 128
    zeros, terminals = torch.zeros(rows, 1), torch.ones(rows, dtype=torch.bool)
    for step in range(350):
        actions = 2 * torch.rand(rows, 1, generator=random) - 1
        rewards = 2 - 4 * (actions[:, 0] - 0.5).square()
        module.seed_noise(step)
        losses = module.losses(TransitionBatch(zeros, actions, rewards, zeros, terminals))
        optimizer.zero_grad()
        # critics first: by untrained ones the actor runs into a bound, where tanh is flat
        sum(losses.values() if step >= 150 else [losses["critic"]]).backward()
        optimizer.step()
        module.after_step()
    acted = module.policy().act(np.zeros((1, 1), np.float32)).item()
    assert acted == pytest.approx(answer, abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"actor_every": 0}, "actor_every is 0"),
        ({"normalize": "mean_sd"}, "normalize is 'mean_sd'; choose false, true, min_max or"),
        (
            {"action_dim": 0},
            "TD3BCModule needs a dataset with actions and rewards; this one",
        ),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        TD3BCModule(2, **{"action_dim": 1, **options})


def test_batches_of_another_view_are_refused(tiny, whole_batch):
    batch = whole_batch(tiny())  # of FutureStates
    with pytest.raises(ConfigError, match="trains on Transitions with rewards, but the view gi"):
        TD3BCModule(2, 1).losses(batch)
