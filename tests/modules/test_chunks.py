"""Chunks of actions and n-step targets: values of a chain, a dance, and every method."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import AdvantageLabelled, TransitionBatch, Transitions
from lit_offrl.modules import (
    ACDModule,
    ACGModule,
    AWRModule,
    BCModule,
    BCQModule,
    CQLModule,
    DiffusionBCModule,
    DQLModule,
    FQLModule,
    IDQLModule,
    IFQLModule,
    IQLModule,
    ReBRACModule,
    TD3BCModule,
)

GAMMA, CELLS = 0.8, 5
DANCE = np.array([0.8, -0.8, 0.5, -0.5])
MLP = {"hidden": (8,)}
FLOW = {**MLP, "sampling_steps": 2}
DENOISER = {"width": 8, "blocks": 1, "diffusion_steps": 2}
METHODS = {
    BCModule: MLP,
    TD3BCModule: MLP,
    ReBRACModule: MLP,
    CQLModule: {**MLP, "num_actions": 2},
    BCQModule: {**MLP, "vae_hidden": (8,), "num_samples": 3},
    IQLModule: MLP,
    AWRModule: MLP,
    ACGModule: MLP,
    DiffusionBCModule: DENOISER,
    IDQLModule: {**DENOISER, **MLP, "num_samples": 2},
    DQLModule: {**DENOISER, **MLP, "num_samples": 2},
    ACDModule: {**DENOISER, **MLP},
    FQLModule: FLOW,
    IFQLModule: {**FLOW, "num_samples": 2},
}


def walks() -> OfflineDataset:
    """From each cell of a line to its right end, which pays 1; each step costs 0.1."""
    lengths = range(1, CELLS + 1)
    cells = np.concatenate([np.arange(CELLS - length, CELLS) for length in lengths])
    last = cells == CELLS - 1
    columns = {"observations": np.eye(CELLS)[cells], "actions": np.ones((len(cells), 1))}
    return OfflineDataset.from_columns({**columns, "rewards": last - 0.1, "terminals": last})


@pytest.mark.parametrize(("chunk", "n_step"), [(1, 3), (3, None), (2, 4)])
def test_values_of_a_chain_are_the_behaviours(chunk, n_step):
    """Whatever the steps that a target sums, also where the end cuts them short."""
    steps_left = np.arange(CELLS, 0, -1)
    exact = GAMMA ** (steps_left - 1) - 0.1 * (1 - GAMMA**steps_left) / (1 - GAMMA)
    torch.manual_seed(0)
    module = IQLModule(
        CELLS, 1, chunk=chunk, n_step=n_step, gamma=GAMMA, expectile=0.5, tau=0.2, hidden=()
    )
    view = module.view().bind(walks())
    batch = view.batch(view.rows)
    assert batch.actions.shape == (len(view.rows), chunk)
    optimizer = torch.optim.Adam(module.critics.parameters(), lr=0.05)
    for _ in range(250):
        losses = module.losses(batch)
        optimizer.zero_grad()
        (losses["value"] + losses["critic"]).backward()
        optimizer.step()
        module.after_step()
    cells, taken = torch.eye(CELLS), torch.ones(CELLS, chunk)
    np.testing.assert_allclose(module.critics.value(cells).detach(), exact, atol=0.02)
    np.testing.assert_allclose(module.critics.q(cells, taken)[0].detach(), exact, atol=0.02)


def dances(repeats: int = 20) -> OfflineDataset:
    """Four actions in an order that no observation tells, each dance an episode."""
    rows = repeats * len(DANCE)
    ends = np.arange(rows) % len(DANCE) == len(DANCE) - 1
    columns = {"observations": np.zeros((rows, 2)), "next_observations": np.zeros((rows, 2))}
    columns |= {"actions": np.tile(DANCE, repeats)[:, None], "timeouts": ends}
    return OfflineDataset.from_columns(columns)


@pytest.mark.parametrize(
    ("chunk", "execute_steps", "expected"),
    [(1, None, np.zeros(4)), (4, None, DANCE), (4, 2, DANCE[[0, 1, 0, 1]])],
)
def test_a_dance_is_learned_by_chunks_alone(chunk, execute_steps, expected):
    """Two dancers, of whom the second begins two steps later."""
    options = {"chunk": chunk, "execute_steps": execute_steps}
    module = BCModule(2, 1, head="deterministic", hidden=(), normalize=False, **options)
    view = module.view().bind(dances())
    batch = view.batch(view.rows)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(100):
        loss = module.losses(batch)["actor"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # what a policy is given wins over what the module has
    module.execute_steps, own = chunk, {"execute_steps": execute_steps}
    policy, still = module.policy(**own), np.zeros((2, 2), np.float32)
    policy.reset()
    danced = [policy.act(still) for _ in range(2)]
    policy.reset(np.array([False, True]))
    danced += [policy.act(still) for _ in range(4)]
    found = np.stack(danced)[..., 0]
    assert danced[0].shape == (2, 1)
    np.testing.assert_allclose(found[:4, 0], expected, atol=0.03)
    np.testing.assert_allclose(found[2:, 1], expected, atol=0.03)


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_every_method_trains_and_acts_by_chunks(kind, fit):
    steps = {} if kind in (BCModule, DiffusionBCModule) else {"n_step": 4}
    module = kind(2, 1, (-1.0,), (1.0,), chunk=3, execute_steps=2, **steps, **METHODS[kind])
    before = {name: part.clone() for name, part in module.named_parameters()}
    fit(module, 3)
    batch = module.latest_batch
    assert batch.actions.shape[1] == 3 and batch.discounts is not None
    torch.testing.assert_close(batch.discounts[0].item(), 0.99 ** (4 if steps else 3))
    assert any(not torch.equal(part, before[name]) for name, part in module.named_parameters())
    policy, observations = module.policy(), np.zeros((5, 2), np.float32)
    policy.reset()
    for _ in range(3):
        acted = policy.act(observations)
        assert acted.shape == (5, 1) and (np.abs(acted) <= 1).all()
    assert "execute_steps" in kind.policy_options()
    with pytest.raises(ConfigError, match="execute_steps is 4, and a chunk has 3 actions"):
        module.policy(execute_steps=4)


WITH_CRITICS = [kind for kind in METHODS if kind not in (BCModule, DiffusionBCModule)]


@pytest.mark.parametrize("kind", WITH_CRITICS, ids=lambda kind: kind.__name__)
def test_targets_take_the_batchs_discount_instead_of_gamma(kind):
    """With γ^n = 0 the next state counts for nothing, and with γ^n = γ as it does in one step."""
    module = kind(2, 1, n_step=2, **METHODS[kind])
    states, numbers = torch.randn(6, 2), torch.randn(6)
    batch = TransitionBatch(
        states, numbers[:, None].tanh(), numbers, states, numbers.isnan(),
        next_actions=numbers[:, None].tanh(),
    )  # fmt: skip

    def loss(discount, shift=0.0):
        discounts = None if discount is None else torch.full((6,), discount)
        given = batch._replace(next_observations=states + shift, discounts=discounts)
        module.seed_noise(0)
        return module.losses(given)["critic"].item()

    assert loss(0.0) == loss(0.0, shift=1.0)
    assert loss(module.gamma) == pytest.approx(loss(None), rel=1e-5) != loss(0.0)


def test_frozen_critics_label_chunks(save, fit):
    critics = save(IQLModule(2, 1, hidden=(8,), chunk=2), 2)
    options = {"labels": "precomputed", "critic": str(critics), "chunk": 2, **METHODS[ACDModule]}
    module = ACDModule(2, 1, **options)
    fit(module, 2)
    batch = module.latest_batch
    assert batch.actions.shape[1] == 2
    torch.testing.assert_close(
        batch.advantages, module.advantages(batch.observations, batch.actions)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 2, "execute_steps": 3}, "execute_steps is 3, and a chunk has 2 actions"),
        ({"chunk": 3, "n_step": 2}, "n_step is 2 and chunk 3"),
        ({"chunk": 0}, "chunk is 0"),
        ({"n_step": 0}, "n_step is 0"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        TD3BCModule(2, 1, **options)


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (Transitions(), "view has chunk 1 and IQLModule 2: give both the same, or"),
        (Transitions(chunk=2, gamma=0.9), "view has gamma 0.9 and IQLModule 0.99"),
        (AdvantageLabelled("x", chunk=3), "view has chunk 3 and IQLModule 2"),
    ],
)
def test_a_view_of_other_chunks_or_another_discount_is_refused(view, message, monkeypatch):
    module = IQLModule(2, 1, chunk=2)
    monkeypatch.setattr(IQLModule, "datamodule", type("Data", (), {"view": view, "spec": None})())
    with pytest.raises(ConfigError, match=message):
        module.setup("validate")
