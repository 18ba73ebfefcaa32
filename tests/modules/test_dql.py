"""Diffusion Q-learning's losses by hand, its coin, its averages and its rates."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.modules import DQLModule

ROWS, OBS, A, T = 6, 3, 2, 5
GAMMA, ETA, BACKUP = 0.9, 0.7, 3
BETAS = 1 - np.exp(-0.1 / T - 0.5 * 9.9 * (2 * np.arange(1, T + 1) - 1) / T**2)
ALPHA_BAR = np.cumprod(1 - BETAS)


@pytest.fixture
def module():
    torch.manual_seed(0)
    options = {"hidden": (8, 8), "width": 8, "blocks": 3, "diffusion_steps": T}
    module = DQLModule(OBS, A, gamma=GAMMA, eta=ETA, backup_samples=BACKUP, **options).double()
    with torch.no_grad():  # the targets and the average are others
        for net in (module.target, module.actor.average):
            for parameter in net.parameters():
                parameter.mul_(1.3)
    return module


def made_up_batch():
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return TransitionBatch(
        draw(ROWS, OBS),
        draw(ROWS, A).clamp(-1, 1),
        draw(ROWS),
        draw(ROWS, OBS),
        torch.arange(ROWS) % 3 == 0,
    )


def mish(x):
    return x * np.tanh(np.log1p(np.exp(x)))


def critics(net, s, a):
    """Q_1 and Q_2, (2, B)."""
    x = np.concatenate([s, a], axis=-1)[None]
    weights = [p.detach().numpy() for p in net.parameters()]
    for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = mish(x @ weight + bias)
    return (x @ weights[-2] + weights[-1])[..., 0]


def epsilon(net, x, t, s):
    """The authors' network on [x, time, s], with time counted from 0."""
    w = {name: p.detach().numpy() for name, p in net.named_parameters()}
    linear = lambda name, x: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731
    angles = (t[:, None] - 1) * np.exp(np.arange(8) * -np.log(10000) / 7)
    time = linear("time.2", mish(linear("time.0", np.c_[np.cos(angles), np.sin(angles)])))
    parts = {"event": x, "condition": s, "time": time}
    first = sum(part @ w[f"from_{name}.weight"].T for name, part in parts.items())
    h = mish(first + w["from_event.bias"])
    h = mish(linear("rest.2", mish(linear("rest.0", h))))
    return linear("rest.4", h)


def sample(net, s, noise):
    """DDPM that clips the estimate, with the posterior's variance."""
    x = noise.normal((len(s), A)).numpy().astype(float)
    for t in range(T, 0, -1):
        bar, before = ALPHA_BAR[t - 1], ALPHA_BAR[t - 2] if t > 1 else 1.0
        beta, times = BETAS[t - 1], np.full(len(s), t)
        x0 = (x - np.sqrt(1 - bar) * epsilon(net, x, times, s)) / np.sqrt(bar)
        mean = beta * np.sqrt(before) * np.clip(x0, -1, 1) + (1 - before) * np.sqrt(1 - beta) * x
        x = mean / (1 - bar)
        if t > 1:
            variance = beta * (1 - before) / (1 - bar)
            x = x + np.sqrt(variance) * noise.normal((len(s), A)).numpy()
    return x


def test_the_losses_are_those_of_the_paper_by_hand(module):
    batch = made_up_batch()
    s, a, r, following = (part.numpy() for part in batch[:4])
    seen = []
    for step in range(4):
        module.noise, noise = ShardedGenerator(0, step), ShardedGenerator(0, step)
        losses = module.losses(batch)

        repeated = following.repeat(BACKUP, axis=0)
        drawn = sample(module.actor.average, repeated, noise)
        best = critics(module.target, repeated, drawn).reshape(2, ROWS, BACKUP).max(2).min(0)
        target = r + GAMMA * np.where(batch.terminals.numpy(), 0.0, best)
        critic = ((critics(module.q, s, a) - target) ** 2).mean(1).sum()
        assert losses["critic"].item() == pytest.approx(critic, rel=1e-5)

        times = noise.integers(1, T + 1, (ROWS,)).numpy()
        eps = noise.normal((ROWS, A), torch.float64).numpy()
        bar = ALPHA_BAR[times - 1][:, None]
        x_t = np.sqrt(bar) * a.clip(-1 + 1e-5, 1 - 1e-5) + np.sqrt(1 - bar) * eps
        denoising = ((epsilon(module.actor.denoiser, x_t, times, s) - eps) ** 2).mean()
        q = critics(module.q, s, sample(module.actor.denoiser, s, noise))
        coin = int(noise.common((1,)) >= 0.5)
        seen.append(coin)
        actor = denoising - ETA * q[coin].mean() / np.abs(q[1 - coin]).mean()
        assert losses["actor"].item() == pytest.approx(actor, rel=1e-5)
    assert {*seen} == {0, 1}


def test_the_coin_is_one_for_all_rows_and_processes(module):
    for step in range(8):
        turns = []
        for rank, world_size in ((0, 1), (0, 2), (1, 2)):
            module.noise = ShardedGenerator(0, step, rank=rank, world_size=world_size)
            module.noise.uniform((4 // world_size,))  # what is drawn before is all rows' alike
            turns.append(module._turn(3))
        assert all(torch.equal(turn, turns[0]) for turn in turns)
        assert len({*turns[0].tolist()}) == 1
    module.climbed = "rows"
    assert module._turn(5).tolist() == [0, 1, 0, 1, 0]


def test_the_average_moves_in_every_fifth_step_from_the_thousandth(module, monkeypatch):
    moved = []
    monkeypatch.setattr(module.actor, "update_ema", lambda: moved.append(step))
    for step in [*range(12), *range(995, 1013)]:
        monkeypatch.setattr(DQLModule, "global_step", step)
        module.after_step()
    assert moved == [1000, 1005, 1010] == [step for step in range(1013) if module.graph_key(step)]


def test_the_critics_rate_decays_with_the_actors(monkeypatch):
    trainer = SimpleNamespace(max_steps=100)
    monkeypatch.setattr(DQLModule, "trainer", trainer)
    rates = {}
    for both in (True, False):
        module = DQLModule(OBS, A, decay="cosine", learning_rate=1.0, critic_decay=both)
        rates[both] = [module.learning_rate_of(name, 50) for name in ("actor", "critic")]
    assert rates == {True: pytest.approx([0.5, 0.5]), False: pytest.approx([0.5, 1.0])}


def test_it_acts_by_the_trained_denoiser_or_by_its_average(module):
    module = module.float()
    states = np.zeros((400, OBS), np.float32)
    with torch.no_grad():
        for net, bias in ((module.actor.denoiser, -9.0), (module.actor.average, 9.0)):
            [*net.parameters()][-1].fill_(bias)
    assert (module.policy().act(states) > 0.9).all()
    assert (module.policy(acts="average").act(states) < -0.9).all()
    module.acts = "average"
    assert (module.policy(num_samples=1).act(states) < -0.9).all()
