"""BCQ: its losses against NumPy, the bound of its perturbation, and a bandit of two arms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.modules import BCQModule
from tests.helpers import made_up_transitions, unchecked

LOW, HIGH = np.array([-2.0, 0.0]), np.array([1.0, 3.0])
CENTRE, SCALE = (HIGH + LOW) / 2, (HIGH - LOW) / 2
ROWS, LATENT, DRAWN, GAMMA, PHI, SHARE = 7, 3, 4, 0.9, 0.2, 0.6


def made_up_batch() -> TransitionBatch:
    return made_up_transitions(LOW, HIGH, ROWS)


@pytest.fixture
def module(awake) -> BCQModule:
    torch.manual_seed(0)
    sizes = {"hidden": (5, 4), "vae_hidden": (6, 5), "latent_dim": LATENT, "backup_samples": DRAWN}
    options = {"phi": PHI, "soft_minimum": SHARE, "gamma": GAMMA, "kl_weight": 0.7}
    made = BCQModule(3, 2, LOW.tolist(), HIGH.tolist(), **sizes, **options)
    for net in (made.vae, made.actor, made.target_actor, made.q, made.target):
        awake(net)
    return made


# ---- the method again, in NumPy, from weights, batch and noise -----------------------------------


def mlp(net, x):
    layers = [layer for layer in net if isinstance(layer, torch.nn.Linear)]
    for i, layer in enumerate(layers):
        x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        x = np.maximum(x, 0) if i < len(layers) - 1 else x
    return x


def decode(vae, states, latents):
    return CENTRE + SCALE * np.tanh(mlp(vae.decoder, np.concatenate([states, latents], -1)))


def moved(actor, states, actions):
    change = np.tanh(mlp(actor.net, np.concatenate([states, actions], -1)))
    return np.clip(actions + PHI * SCALE * change, LOW, HIGH)


def values(net, states, actions):
    x = np.broadcast_to(np.concatenate([states, actions], -1), (2, len(states), 5))
    layers = [layer for layer in net.members.layers if hasattr(layer, "weight")]
    for i, layer in enumerate(layers):
        x = x @ layer.weight.detach().numpy() + layer.bias.detach().numpy()
        x = np.maximum(x, 0) if i < len(layers) - 1 else x
    return x[..., 0]


def test_the_losses_are_the_papers(module):
    batch = made_up_batch()
    states, next_states = batch.observations.numpy(), batch.next_observations.numpy()
    actions = batch.actions.numpy()
    module.seed_noise(0)
    losses = module.losses(batch)
    module.seed_noise(0)
    shapes = ((ROWS, LATENT), (ROWS, DRAWN, LATENT), (ROWS, 1, LATENT))
    of_vae, of_next, of_actor = (module.noise.normal(shape).numpy() for shape in shapes)

    joined = np.concatenate([states, (actions - CENTRE) / SCALE], -1)
    mean, log_std = np.split(mlp(module.vae.encoder, joined), 2, axis=-1)
    std = np.exp(np.clip(log_std, -4, 15))
    error = (decode(module.vae, states, mean + std * of_vae) - actions) / SCALE
    kl = -0.5 * (1 + np.log(std**2) - mean**2 - std**2)
    expected = (error**2).mean() + 0.7 * kl.mean()
    assert losses["vae"].item() == pytest.approx(expected, rel=1e-4)

    best = np.full(ROWS, -np.inf)
    for i in range(DRAWN):
        drawn = decode(module.vae, next_states, np.clip(of_next[:, i], -0.5, 0.5))
        q = values(module.target, next_states, moved(module.target_actor, next_states, drawn))
        best = np.maximum(best, SHARE * q.min(0) + (1 - SHARE) * q.max(0))
    td_target = batch.rewards.numpy() + GAMMA * np.where(batch.terminals, 0, best)
    errors = values(module.q, states, actions) - td_target
    assert losses["critic"].item() == pytest.approx((errors**2).mean(1).sum(), rel=1e-4)

    drawn = decode(module.vae, states, np.clip(of_actor[:, 0], -0.5, 0.5))
    q = values(module.q, states, moved(module.actor, states, drawn))[0]
    assert losses["actor"].item() == pytest.approx(-q.mean(), rel=1e-4)

    nets = {"vae": module.vae, "critic": module.q, "actor": module.actor}
    for name, loss in losses.items():  # each moves its own network alone
        module.zero_grad()
        loss.backward()
        moving = {key for key, net in nets.items() for p in net.parameters() if p.grad is not None}
        assert moving == {name}


def test_no_action_is_moved_by_more_than_the_bound(module):
    low, high, scale = (torch.tensor(each).float() for each in (LOW, HIGH, SCALE))
    states, actions = 1e3 * torch.randn(500, 3), low + 2 * scale * torch.rand(500, 2)
    found = module.actor(states, actions)
    least, most = actions - PHI * scale, actions + PHI * scale
    assert ((found >= least.maximum(low)) & (found <= most.minimum(high))).all()
    assert (found == most).any() and (found == least).any()  # large inputs go all the way

    module.actor.reach = 0.0
    latents = torch.randn(500, 1, LATENT)
    imitated = module.vae.decode(states, latents[:, 0].clamp(-0.5, 0.5))
    assert torch.equal(module.propose(states, latents, module.actor)[:, 0], imitated)


def test_targets_follow_slowly(module):
    before = [net.net[0].weight.clone() for net in (module.target_actor, module.actor)]
    critics = [next(net.parameters()).clone() for net in (module.target, module.q)]
    module.after_step()
    tau = module.tau
    torch.testing.assert_close(
        module.target_actor.net[0].weight, (1 - tau) * before[0] + tau * before[1]
    )
    torch.testing.assert_close(
        next(module.target.parameters()), (1 - tau) * critics[0] + tau * critics[1]
    )


@unchecked()
def test_a_bandits_best_arm_among_the_datas_actions():
    """The data have the arms ±0.8, the reward is −a: the critic prefers −1, which they lack."""
    torch.manual_seed(0)
    sizes = {"hidden": (32,), "vae_hidden": (32, 32), "learning_rate": 1e-2}
    module = BCQModule(1, 1, **sizes, num_samples=30)
    optimizer = module.configure_optimizers()
    random, rows = torch.Generator().manual_seed(0), 128
    zeros, terminals = torch.zeros(rows, 1), torch.ones(rows, dtype=torch.bool)
    for step in range(200):
        actions = 1.6 * torch.randint(2, (rows, 1), generator=random) - 0.8
        module.seed_noise(step)
        losses = module.losses(TransitionBatch(zeros, actions, -actions[:, 0], zeros, terminals))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        module.after_step()
    outside, arm = module.q.minimum(torch.zeros(2, 1), torch.tensor([[-1.0], [-0.8]]))
    assert outside > arm
    acted = module.policy().act(np.zeros((20, 1), np.float32))
    assert acted == pytest.approx(-0.8, abs=0.06)
    few = module.policy(num_samples=1).act(np.zeros((20, 1), np.float32))
    assert (few > 0).any()  # a single candidate is an imitation


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phi": -1.0}, "phi is -1.0"),
        ({"soft_minimum": 1.5}, "soft_minimum is 1.5"),
        ({"latent_dim": 0}, "latent_dim is 0"),
        ({"vae_hidden": (0,)}, r"vae_hidden is \[0\]: give widths of at least 1"),
        ({"action_dim": 0}, "BCQModule needs a dataset with actions and rewards; this one"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        BCQModule(2, **{"action_dim": 1, **options})
