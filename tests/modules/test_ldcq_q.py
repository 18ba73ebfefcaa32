"""LDCQ's third stage: targets, weights, priorities, candidates, BCQ-H on a chain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.datamodules import OfflineDataModule
from lit_offrl.datasets.hdf5 import write_hdf5
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import SnippetBatch
from lit_offrl.modules import LDCQStage3Module, load_module
from lit_offrl.modules.ldcq.stage3 import growing
from tests.helpers import unchecked

SMALL = {"state_hidden": (8,), "latent_hidden": (8,), "joined": (8, 4), "num_latents": 4}


@pytest.fixture
def make(stages):
    """Build a third stage on tiny earlier ones."""

    def build(gaussian=False, stage=None, **options):
        earlier = {"stage1": str(stage or stages()), "prior": "gaussian"}
        if not gaussian:
            earlier = {"stage2": str(stage or stages(2))}
        torch.manual_seed(0)
        return LDCQStage3Module(2, 1, **earlier, **{**SMALL, **options})

    return build


@pytest.fixture
def snippets(columns):
    """All snippets of a module's view over the data that the fixtures train on."""

    def of(module):
        view = module.view().bind(OfflineDataset.from_columns(columns()))
        return view.batch(view.rows)

    return of


# ---- targets -------------------------------------------------------------------------------


def test_targets_of_snippets_made_by_hand(make, monkeypatch):
    """γ = 0.5, H = 3; a stub says V(s) = 10 · s_0, and s_0 is the row's number.

    Episode 1: rows 0–4, a timeout, so row 4 is known as a next state only.
    Episode 2: rows 5–8, a true terminal in row 8.
    """
    module = make(gaussian=True, gamma=0.5, latents="online", posteriors="online")
    monkeypatch.setattr(module.q_target, "best", lambda states, z: (10 * states[:, 0], None))
    rows = np.arange(9, dtype=np.float32)
    columns = {
        "observations": np.stack([rows, 0 * rows], 1),
        "actions": np.zeros((9, 1), np.float32),
        "rewards": np.array([1, 2, 4, 8, 99, 1, 2, 4, 8], np.float32),
        "terminals": rows == 8,
        "timeouts": rows == 4,
    }
    view = module.view().bind(OfflineDataset.from_columns(columns))
    batch = view.batch(view.rows)
    assert batch.rows.tolist() == [0, 1, 5, 6, 7, 8]
    expected = [
        1 + 0.5 * 2 + 0.25 * 4 + 0.125 * 30,  # the discount inside the snippet, then γ^H
        2 + 0.5 * 4 + 0.25 * 8 + 0.125 * 40,  # up to the timeout, which bootstraps
        1 + 0.5 * 2 + 0.25 * 4 + 0.125 * 80,
        2 + 0.5 * 4 + 0.25 * 8,  # the terminal is the snippet's last step
        4 + 0.5 * 8,  # it cuts the snippet short
        8,
    ]
    torch.testing.assert_close(module.td_target(batch), torch.tensor(expected))


def test_the_target_is_the_best_of_the_least_of_both_target_critics(make, snippets):
    module = make(latents="online", posteriors="online")
    with torch.no_grad():
        for part in module.q_target.parameters():
            part += 0.5 * torch.randn_like(part)
    batch = snippets(module)
    module.noise = ShardedGenerator(3)
    target = module.td_target(batch)
    module.noise = ShardedGenerator(3)
    proposed = module.proposed(batch)
    assert proposed.shape == (len(batch.rows), 4, 2)
    states = module.first.normalize(batch.next_observations)
    both = torch.stack([module.q_target(states, proposed[:, i]) for i in range(4)])
    later = both.amin(dim=1).amax(dim=0)
    expected = batch.returns + batch.discounts * torch.where(batch.terminals, 0.0, later)
    torch.testing.assert_close(target, expected)


def test_losses_are_weighed_a_sample(make, snippets):
    module = make(latents="online", posteriors="online")
    batch = SnippetBatch(*(None if part is None else part[:5] for part in snippets(module)))
    weights = torch.rand(5)

    def loss(weights):
        module.noise = ShardedGenerator(1)
        return module.losses(batch._replace(weights=weights))["q"]

    one_by_one = [loss(torch.eye(len(weights))[i]) for i in range(len(weights))]
    torch.testing.assert_close(loss(weights), (torch.stack(one_by_one) * weights).sum())
    torch.testing.assert_close(loss(None), loss(torch.ones_like(weights)))


def test_no_gradient_reaches_targets_or_earlier_stages(make, snippets):
    module = make(latents="online", posteriors="online")
    module.losses(snippets(module))["q"].backward()
    trained = {name for name, part in module.named_parameters() if part.grad is not None}
    assert trained == {f"q.{name}" for name, _ in module.q.named_parameters()}


def test_targets_move_a_little_towards_the_critics(make):
    module = make(gaussian=True, prioritized=False, tau=0.25)
    with torch.no_grad():
        before = [part.clone() for part in module.q_target.parameters()]
        for part in module.q.parameters():
            part += 1.0
    module.after_step()
    for old, now in zip(before, module.q_target.parameters(), strict=True):
        torch.testing.assert_close(now, old + 0.25)


# ---- priorities ----------------------------------------------------------------------------


def test_beta_grows_as_the_paper_says(make):
    beta = growing(0.3, 0.03, 3000)
    assert [round(beta.at(step), 4) for step in (0, 2999, 3000, 9000, 69_999, 10**6)] == [
        *(0.3, 0.3, 0.33, 0.39, 0.99, 1.0)
    ]
    assert growing(1.0, 0.03, 3000).at(0) == 1.0
    for step in (0, -0.1, float("nan"), 1e-320):
        with pytest.raises(ConfigError, match=f"priority_beta_step is {step}: give"):
            make(priority_beta_step=step)


def test_errors_of_a_step_become_the_priorities_of_its_rows(make, fit):
    module = make()
    steps = []
    real = module.losses

    def losses(batch):
        found = real(batch)
        steps.append((batch.rows, batch.weights, module._errors[-1][1]))
        return found

    module.losses = losses
    trainer = fit(module, 3)
    order = trainer.datamodule.row_order
    assert len(steps) == 3 and not module._errors
    assert module.calls is None  # each step's rows depend on the one before
    largest = max(1.0, *(float(errors.max()) for _, _, errors in steps))
    expected = torch.where(order.priorities < 0, -1.0, largest)
    for rows, _, errors in steps:
        for row in rows.unique():
            expected[row] = errors[rows == row].max()
    torch.testing.assert_close(order.priorities, expected)
    rows, weights, _ = steps[-1]
    assert weights.shape == rows.shape and weights.unique().numel() > 1
    assert float(weights.max()) == 1.0


def test_without_priorities_rows_come_evenly(make, fit):
    trainer = fit(make(prioritized=False), 1)
    assert not hasattr(trainer.datamodule.row_order, "priorities")


# ---- candidates ----------------------------------------------------------------------------


def test_data_all_of_whose_snippets_end_in_terminals_are_learned_from(make, stages, fit):
    # Snippets of whole episodes: those cut by time do not say what came after their last row.
    module = make(True, stage=stages(horizon=9), num_latents=4)
    fit(module, 2)
    assert module.latest_losses["q"].isfinite() and module.tables["candidates"] is not None


def test_what_is_stored_for_the_data_of_training_is_not_for_others(make, fit, tmp_path, columns):
    module = make()
    trainer = fit(module, 1)
    path = tmp_path / "other.hdf5"
    limits = {"action_low": [-1.0], "action_high": [1.0]}
    write_hdf5(path, columns(scale=2.0), limits)
    (tested,) = trainer.test(module, datamodule=OfflineDataModule(str(path), batch_size=16))
    plain = make(latents="online", posteriors="online")
    plain.load_state_dict(module.state_dict())
    (expected,) = trainer.test(plain, datamodule=OfflineDataModule(str(path), batch_size=16))
    assert tested == expected


@pytest.mark.parametrize("gaussian", [False, True])
def test_cached_and_online_candidates_are_of_one_distribution(make, fit, snippets, gaussian):
    """Values under one critic of 2 × 500 candidates at each of a few states."""
    module = make(gaussian, num_latents=500)
    fit(module, 1)
    batch = snippets(module)
    assert module.tables["candidates"] is not None
    cached = module.proposed(batch)
    module.latents = "online"
    module.noise = ShardedGenerator(5)
    online = module.proposed(batch)
    assert cached.shape == online.shape and not torch.equal(cached, online)
    states = module.first.normalize(batch.next_observations)
    for at in (~batch.terminals).nonzero().flatten()[::9]:
        values = [
            module.q.minimum(states[at, None], each[at, None])[0].detach().numpy()
            for each in (cached, online)
        ]
        assert stats.ks_2samp(*values).pvalue > 1e-3
        assert len(np.unique(values[0])) > 400  # they are not one candidate many times


def test_candidates_are_made_once_for_all_runs_and_seeds(make, fit, data_directory, monkeypatch):
    folder = data_directory / "cache" / "latents"

    def files():
        return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}

    stage = make().hparams["stage2"]["path"]
    before = set(files())
    fit(make(stage=stage), 1)
    made = files()
    new = set(made) - before
    assert {name.partition("-")[0] for name in new} <= {"candidates", "posteriors"} and new
    fit(make(stage=stage, seed=3), 2)
    assert files() == made
    fit(make(stage=stage, num_latents=5), 1)
    assert len(files()) == len(made) + 1


def test_what_is_kept_does_not_depend_on_the_precision_of_the_step(make, fit, monkeypatch):
    stage, found = make().hparams["stage2"]["path"], []
    for enabled in (False, True):
        module = make(stage=stage)
        monkeypatch.setattr(
            "lit_offrl.modules.ldcq.tables.fetch_array",
            lambda *given: np.concatenate(list(given[6](0))).astype(given[4]),  # made each time
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            fit(module, 1)
        found.append((module.tables["posteriors"]._values, module.tables["candidates"]._values))
    for plain, mixed in zip(*found, strict=True):
        assert torch.equal(plain, mixed)


def test_a_state_that_several_snippets_end_in_has_one_set(make, fit, snippets):
    module = make()
    fit(module, 1)
    batch = snippets(module)
    held = module.tables["candidates"]._values
    ends = (batch.rows + batch.mask.sum(1))[~batch.terminals]
    assert len(held) == len(ends.unique()) and held.dtype == torch.float16
    assert torch.equal(module.proposed(batch), module.proposed(batch))


def test_fewer_snippets_need_fewer_candidates(make, fit, snippets):
    few, all_of_them = make(snippet_every=3), make()
    fit(few, 1)
    fit(all_of_them, 1)
    assert 2 * len(few.tables["candidates"]._values) < len(all_of_them.tables["candidates"]._values)


def test_a_full_disk_is_said_in_a_line(make, fit, monkeypatch):
    module = make(num_latents=7, posteriors="online")
    monkeypatch.setattr("lit_offrl.common.files.SPARE_BYTES", 10**18)
    with pytest.raises(DatasetError, match="GB left: take fewer with num_latents, fewer snippets"):
        fit(module, 1)


# ---- options, checkpoints, acting ----------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stage1": None}, "prior is 'gaussian', which takes the checkpoint stage1 alone"),
        ({"stage2": "x.ckpt"}, "takes the checkpoint stage1 alone"),
        ({"prior": "diffusion"}, "prior is 'diffusion', which takes the checkpoint stage2 alone"),
        ({"prior": "flow"}, "prior is 'flow'"),
        ({"latents": "stored"}, "latents is 'stored'"),
        ({"num_latents": 0}, "num_latents is 0"),
        ({"gamma": 1.5}, "gamma is 1.5"),
        ({"tau": 2.0}, "tau is 2.0"),
        ({"joined": ()}, r"joined \[\]: give widths"),
        ({"sampler": "euler"}, "sampler is 'euler'; choose ddpm, ddim or dpm"),
        ({"stage1": "nowhere.ckpt"}, "nowhere.ckpt: no such checkpoint"),
    ],
)
def test_wrong_options_are_refused(stages, options, said):
    right = {"stage1": str(stages()), "prior": "gaussian"}
    with pytest.raises(ConfigError, match=said):
        LDCQStage3Module(2, 1, **{**right, **options})


def test_data_without_rewards_are_refused(make, fit):
    with pytest.raises(DatasetError, match=r"no column 'rewards'"):
        fit(make(gaussian=True), 1, without=("rewards",))


def test_the_policy_decodes_the_latent_of_the_best_least_value(make, save):
    path = save(make(), 2, name="stage3.ckpt")
    for earlier in ("stage1.ckpt", "stage2.ckpt"):
        (path.parent / earlier).unlink()
    module = load_module(path)
    observations = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    rows = torch.from_numpy(observations)
    torch.manual_seed(4)
    acted = module.policy(num_latents=30).act(observations)
    torch.manual_seed(4)
    proposed = module.propose(rows, 30, module.how)
    values = module.q.minimum(module.first.normalize(rows), proposed)
    best = proposed[torch.arange(6), values.argmax(1)]
    torch.testing.assert_close(torch.from_numpy(acted), module.first.decode(rows, best).detach())
    with pytest.raises(ConfigError, match="num_latents is 0"):
        module.policy(num_latents=0)


def test_what_the_prior_never_learned_is_refused_before_training(make, stages):
    with pytest.raises(ConfigError, match="cannot sample in 30 steps"):
        make(sampling_steps=30)
    with pytest.raises(ConfigError, match="cannot sample in 30 steps"):
        make().policy(sampling_steps=30)
    with pytest.raises(ConfigError, match="drop_probability 0"):
        make(stage=stages(2, drop_probability=0.0), guidance=2.0)


def test_a_sampler_that_is_named_takes_all_its_steps(make, monkeypatch):
    module = make()
    asked = []
    monkeypatch.setattr(
        module, "choose", lambda rows, number, how: asked.append(how) or torch.zeros(len(rows), 2)
    )
    for options in ({}, {"sampler": "ddpm"}, {"sampler": "ddpm", "sampling_steps": 5}):
        module.policy(**options).act(np.zeros((1, 2), np.float32))
    assert [(how.sampler, how.sampling_steps) for how in asked] == [
        *(("dpm++", 10), ("ddpm", None), ("ddpm", 5))
    ]


def test_environments_plan_anew_when_their_own_skill_has_ended(make, monkeypatch):
    module = make()
    chosen = []
    choose = module.choose
    monkeypatch.setattr(
        module, "choose", lambda rows, *a: chosen.append(rows[:, 0].tolist()) or choose(rows, *a)
    )
    policy = module.policy(execute_steps=3)
    observations = np.array([[0, 0], [1, 0], [2, 0]], np.float32)
    policy.reset(np.ones(3, bool))
    for step in range(6):
        if step == 2:
            policy.reset(np.array([False, True, False]))
        policy.act(observations)
    assert chosen == [[0, 1, 2], [1], [0, 2], [1]]


# ---- BCQ-H on a chain ----------------------------------------------------------------------


@unchecked()
def test_bcq_h_finds_the_way_along_a_chain(make, monkeypatch):
    """Positions 0, 1, 2 and a terminal to the right of them; γ = 0.9, H = 1.

    An action (its own latent here) above 0 moves right, any other left and costs 0.1; only the
    terminal pays. So V(p) = 0.9^(2 − p), and moving left is worth 0.9 V of where it leads, less
    the cost: values that only come from bootstrapping along the data's own actions.
    """
    module = make(
        gaussian=True, gamma=0.9, latents="online", posteriors="online", learning_rate=5e-3,
        state_hidden=(32,), latent_hidden=(32,), joined=(32, 16), num_latents=16, tau=0.05,
        prioritized=False,
    )  # fmt: skip
    first = module.first
    monkeypatch.setattr(first, "horizon", 1)
    monkeypatch.setattr(first, "posterior", lambda b: (b.actions[:, 0], 0.0 * b.actions[:, 0]))
    monkeypatch.setattr(first.prior, "forward", lambda s: (0 * s[:, :2], 0 * s[:, :2] + 1))
    monkeypatch.setattr(first, "decode", lambda rows, latents, sample: latents)

    def batch(step):
        random = ShardedGenerator(11, step)
        places = random.integers(0, 3, (64,)).float()
        latents = random.normal((64, 2))
        right = latents[:, 0] > 0
        after = torch.where(right, places + 1, (places - 1).clamp(min=0))
        ends = after == 3
        one = torch.ones(64)
        return SnippetBatch(
            observations=torch.stack([places, one], 1)[:, None],
            actions=latents[:, None],
            returns=torch.where(ends, 1.0, torch.where(right, 0.0, -0.1)),
            next_observations=torch.stack([after, one], 1),
            terminals=ends,
            discounts=0.9 * one,
            mask=torch.ones(64, 1, dtype=torch.bool),
            goals=None,
            weights=None,
            rows=torch.arange(64),
        )

    optimiser = module.configure_optimizers()
    for step in range(400):
        module.noise = ShardedGenerator(12, step)
        optimiser.zero_grad()
        module.losses(batch(step))["q"].backward()
        optimiser.step()
        module.after_step()
    places = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    acted = module.policy(num_latents=50).act(places.numpy())
    assert (acted[:, 0] > 0).all()
    right, left = (
        module.q.minimum(places, torch.tensor([[[sign, 0.0]]]).expand(3, 1, 2)).flatten()
        for sign in (1.0, -1.0)
    )
    torch.testing.assert_close(right, torch.tensor([0.81, 0.9, 1.0]), atol=0.08, rtol=0)
    torch.testing.assert_close(left, torch.tensor([0.629, 0.629, 0.71]), atol=0.12, rtol=0)
