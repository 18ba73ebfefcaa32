"""ReBRAC: both losses against NumPy, TD3 where it has no penalty, and the critics' own rate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.modules import ReBRACModule, TD3BCModule
from tests.helpers import acts_by_tanh, made_up_transitions

LOW, HIGH = np.array([-2.0, 0.0]), np.array([1.0, 3.0])
CENTRE, SCALE = (HIGH + LOW) / 2, (HIGH - LOW) / 2
ROWS, GAMMA, ACTOR_BC, CRITIC_BC = 7, 0.9, 0.3, 0.7


def made_up_batch(seed: int = 3) -> TransitionBatch:
    return made_up_transitions(LOW, HIGH, ROWS, seed=seed, next_actions=True)


# ---- the method again, in NumPy, from weights, batch and noise -----------------------------------


def act(net, states):
    return acts_by_tanh(net, states, LOW, HIGH)


def values(net, states, actions):
    """Linear, ReLU, LayerNorm, as the authors' code has them."""
    x = np.broadcast_to(np.concatenate([states, actions], -1), (2, len(states), 5))
    layers = [layer for layer in net.members.layers if hasattr(layer, "weight")]
    for linear, norm in zip(layers[:-1:2], layers[1::2], strict=True):
        x = x @ linear.weight.detach().numpy() + linear.bias.detach().numpy()
        x = np.maximum(x, 0)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        x = x * norm.weight.detach().numpy() + norm.bias.detach().numpy()
    return (x @ layers[-1].weight.detach().numpy() + layers[-1].bias.detach().numpy())[..., 0]


def test_both_losses_are_the_papers(awake):
    torch.manual_seed(0)
    weights = {"actor_bc": ACTOR_BC, "critic_bc": CRITIC_BC}
    options = {"hidden": (5, 4), "gamma": GAMMA, **weights}
    module = ReBRACModule(3, 2, LOW.tolist(), HIGH.tolist(), **options)
    for net in (module.actor, module.target_actor, module.q, module.target):
        awake(net)
    batch = made_up_batch()
    states, actions, rewards, next_states, next_data = (
        getattr(batch, name).numpy()
        for name in ("observations", "actions", "rewards", "next_observations", "next_actions")
    )
    module.seed_noise(0)
    losses = module.losses(batch)
    module.seed_noise(0)
    noise = np.clip(0.2 * module.noise.normal((ROWS, 2)).numpy(), -0.5, 0.5) * SCALE
    next_actions = np.clip(act(module.target_actor, next_states) + noise, LOW, HIGH)
    penalty = (((next_actions - next_data) / SCALE) ** 2).sum(-1)
    next_value = values(module.target, next_states, next_actions).min(0) - CRITIC_BC * penalty
    td_target = rewards + GAMMA * np.where(batch.terminals, 0, next_value)
    errors = values(module.q, states, actions) - td_target
    assert losses["critic"].item() == pytest.approx((errors**2).mean(1).sum(), rel=1e-4)

    acted = act(module.actor, states)
    q = values(module.q, states, acted).min(0)
    penalty = (((acted - actions) / SCALE) ** 2).sum(-1)
    expected = (ACTOR_BC * penalty - q / np.abs(q).mean()).mean()
    assert losses["actor"].item() == pytest.approx(expected, rel=1e-4)

    losses["actor"].backward()  # which moves the actor alone
    assert all(part.grad is None for part in module.q.parameters())
    assert all(part.grad is not None for part in module.actor.parameters())


def test_without_penalties_it_is_td3():
    """As TD3+BC is with a weight of Q beside which cloning vanishes; both critics begin as one.

    So they stay one, and the smaller value, which ReBRAC's actor climbs, is the first, which TD3's
    does.
    """
    trained = []
    for kind, options in (
        (ReBRACModule, {"actor_bc": 0.0, "critic_bc": 0.0}),
        (TD3BCModule, {"alpha": 1e7}),
    ):
        torch.manual_seed(0)
        own = {"hidden": (6, 5), "layer_norm": "after", "normalize": False, "learning_rate": 1e-2}
        module = kind(3, 2, LOW.tolist(), HIGH.tolist(), **own, **options)
        with torch.no_grad():
            for part in (*module.q.parameters(), *module.target.parameters()):
                part[1] = part[0]
        optimizer = module.configure_optimizers()
        for step in range(20):
            module.seed_noise(step)
            losses = module.losses(made_up_batch(step))
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            module.after_step()
        trained.append(module.state_dict())
    rebrac, td3 = trained
    assert rebrac.keys() == td3.keys()
    for name, value in td3.items():
        torch.testing.assert_close(rebrac[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_the_critics_may_have_a_rate_of_their_own():
    rates = {"learning_rate": 3e-4, "critic_learning_rate": 5e-5}
    for options, critic in ((rates, 5e-5), ({"learning_rate": 3e-4}, 3e-4)):
        module = ReBRACModule(2, 1, **options)
        assert module.learning_rate_of("critic", 0) == critic
        assert module.learning_rate_of("actor", 0) == 3e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actor_bc": -1.0}, "actor_bc is -1.0"),
        ({"critic_bc": float("nan")}, "critic_bc is nan"),
        ({"critic_learning_rate": -1.0}, "critic_learning_rate is -1.0"),
        ({"layer_norm": "befor"}, "layer_norm is 'befor'; choose false, true or after"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        ReBRACModule(2, 1, **options)


def test_batches_without_next_actions_are_refused():
    batch = made_up_batch()._replace(next_actions=None)
    with pytest.raises(ConfigError, match="needs the data's next actions, but the view gives a Tr"):
        ReBRACModule(3, 2).losses(batch)
