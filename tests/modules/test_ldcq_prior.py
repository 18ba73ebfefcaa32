"""LDCQ's second stage: the loss, what a dropped condition is, guidance, goals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError, DatasetError, EvaluationError
from lit_offrl.common.randomness import ShardedGenerator, draw_normal, draw_times
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.modules import LDCQStage1Module, LDCQStage2Module, load_module
from lit_offrl.modules.ldcq.options import Sampling
from lit_offrl.modules.ldcq.prior import LatentPrior
from tests.helpers import unchecked

SMALL = {"widths": (16, 8, 16), "width": 16, "diffusion_steps": 20}


@pytest.fixture
def prior(awake):
    torch.manual_seed(0)
    made = LatentPrior(3, 4, **SMALL)
    awake(made.denoiser)
    made.average.load_state_dict(made.denoiser.state_dict())
    return made


@pytest.fixture
def aimed(awake):
    torch.manual_seed(0)
    made = LatentPrior(3, 4, 2, **SMALL)
    awake(made.denoiser)
    made.average.load_state_dict(made.denoiser.state_dict())
    return made


# ---- the loss ------------------------------------------------------------------------------


def test_the_loss_is_the_error_of_z0_weighed_by_min_snr(prior):
    """Written out from Eq. 5 with the same random numbers."""
    states, latents = torch.randn(64, 3), torch.randn(64, 4)
    prior.fit(torch.full((4,), 0.5), torch.full((4,), 2.0))
    found = prior.loss(states, latents, None, 0.0, ShardedGenerator(7))

    noise = ShardedGenerator(7)
    noise.uniform((64,))
    t = draw_times(64, 20, noise, device="cpu")
    epsilon = draw_normal((64, 4), noise, device="cpu")
    clean = (latents - 0.5) / 2.0
    kept = prior.schedule.alpha_bar[t]
    noisy = kept.sqrt()[:, None] * clean + (1 - kept).sqrt()[:, None] * epsilon
    guess = prior.denoiser(noisy, t, torch.cat([states, torch.ones(64, 1)], dim=1))
    weight = (kept / (1 - kept)).clamp(max=5.0)
    torch.testing.assert_close(found, weight * (guess - clean).square().mean(1))
    assert 1 < (weight == 5.0).sum() < 64  # both sides of the minimum are met


def test_conditions_are_dropped_with_the_probability_asked_for(aimed, monkeypatch):
    seen = {}
    encode = aimed.denoiser.encode
    monkeypatch.setattr(aimed.denoiser, "encode", lambda c: seen.update(c=c) or encode(c))
    states, goals = torch.full((4000, 3), 2.0), torch.full((4000, 2), 3.0)
    aimed.loss(states, torch.zeros(4000, 4), goals, 0.2, ShardedGenerator(0))
    state, state_flag, goal, goal_flag = seen["c"].split([3, 1, 2, 1], dim=1)
    assert torch.equal(state, 2.0 * state_flag.expand(-1, 3))  # zeros where the flag is 0
    assert torch.equal(goal, 3.0 * goal_flag.expand(-1, 2))
    assert abs(float(state_flag.mean()) - 0.8) < 0.02  # with its goal
    assert abs(float(goal_flag.mean()) - 0.6) < 0.02  # and again as many goals alone
    assert not (goal_flag > state_flag).any()


def test_a_state_of_zeros_is_not_a_dropped_one(prior):
    zero = prior.condition(torch.zeros(1, 3))
    dropped = prior.condition(torch.ones(1, 3), with_state=torch.tensor([False]))
    assert zero.tolist() == [[0, 0, 0, 1]] and dropped.tolist() == [[0, 0, 0, 0]]
    x, t = torch.randn(1, 4), torch.tensor([5])
    assert not torch.allclose(prior.denoiser(x, t, zero), prior.denoiser(x, t, dropped))


# ---- sampling ------------------------------------------------------------------------------


def drawn(prior, guidance=1.0, against="nothing", goals=None, number=3, how=("ddpm", None, 2)):
    how = Sampling(*how, guidance)
    states = torch.linspace(-1, 1, 6).view(2, 3)
    noise = torch.Generator().manual_seed(3)
    return prior.sample(states, number, how, goals=goals, against=against, noise=noise)


def test_guidance_one_is_the_conditional_model_at_one_forward_a_step(prior, monkeypatch):
    rows = []
    denoise = prior.average.denoise
    monkeypatch.setattr(
        prior.average, "denoise", lambda x, *a, **k: rows.append(len(x)) or denoise(x, *a, **k)
    )
    plain = drawn(prior)
    assert rows == [6] * 22  # T = 20 and 2 extra steps, 2 states × 3
    rows.clear()
    torch.testing.assert_close(drawn(prior, 1.0 + 1e-6), plain, rtol=1e-3, atol=1e-4)
    assert rows == [12] * 22
    assert not torch.allclose(drawn(prior, 2.0), plain, atol=1e-3)


def test_guidance_zero_is_the_model_without_what_was_dropped(aimed):
    goals = torch.tensor([[0.5, -0.5], [1.0, 1.0]])
    assert torch.equal(drawn(aimed, 0.0, "state", goals), drawn(aimed))
    blind = drawn(aimed, 0.0, "nothing", goals)
    torch.testing.assert_close(
        blind, aimed.sample(torch.zeros(2, 3), 3, Sampling("ddpm", None, 2, 0.0),
                            noise=torch.Generator().manual_seed(3))
    )  # fmt: skip
    assert not torch.allclose(drawn(aimed, 1.0, "nothing", goals), drawn(aimed))


def test_each_state_is_encoded_once_and_the_times_of_the_sampler_too(prior, monkeypatch):
    calls = []
    for name in ("encode", "times"):
        real = getattr(prior.average, name)
        monkeypatch.setattr(
            prior.average, name,
            lambda *a, real=real, name=name: calls.append((name, *map(len, a))) or real(*a),
        )  # fmt: skip
    drawn(prior, number=100)
    assert sorted(calls) == [("encode", 2), ("times", 20)]
    calls.clear()
    drawn(prior, number=100, how=("dpm++", 5, 0))
    assert sorted(calls) == [("encode", 2), ("times", 5)]


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 20), ("dpm++", 10)])
def test_deterministic_solvers_begin_where_training_was(prior, monkeypatch, sampler, steps):
    """Latents at 0.8 ± 0.1: from N(0, 1), which training never met at T, they are missed."""
    prior = LatentPrior(3, 4)

    def exact(x, t, encoded, times):
        kept = prior.schedule.alpha_bar[t][:, None]
        gain = kept.sqrt() * 0.01 / (kept * 0.01 + 1 - kept)
        return 0.8 + gain * (x - kept.sqrt() * 0.8)

    monkeypatch.setattr(prior.average, "denoise", exact)
    noise = torch.Generator().manual_seed(0)
    drawn = prior.sample(torch.zeros(1, 3), 4000, Sampling(sampler, steps), noise=noise)
    assert abs(float(drawn.mean()) - 0.8) < 0.01
    assert abs(float(drawn.std()) - 0.1) < 0.02
    cold = Sampling(sampler, steps).make()
    shape, generator = (4000, 4), torch.Generator().manual_seed(0)
    plain = cold.sample(
        lambda x, t: exact(x, t, None, None), prior.schedule, shape, prediction="x0",
        generator=generator,
    )  # fmt: skip
    assert abs(float(plain.mean()) - 0.8) > 0.02


def test_many_chains_are_drawn_in_parts(prior, monkeypatch):
    monkeypatch.setattr("lit_offrl.modules.ldcq.prior.CHAINS", 8)
    parts = prior.sample(torch.zeros(5, 3), 4, Sampling(), noise=torch.Generator().manual_seed(0))
    assert parts.shape == (5, 4, 4)
    noise = torch.Generator().manual_seed(0)
    pieces = [prior.sample(torch.zeros(n, 3), 4, Sampling(), noise=noise) for n in (2, 2, 1)]
    assert torch.equal(parts, torch.cat(pieces))


@unchecked()
def test_two_modes_are_learned_and_sampled_in_few_steps():
    """Latents at ±1 by a coin toss, moved by the state: neither mode is lost or blurred."""
    torch.manual_seed(0)
    prior = LatentPrior(1, 2, width=64, ema_rate=0.05)
    optimiser = torch.optim.AdamW(prior.denoiser.parameters(), lr=1e-3, fused=True)
    steps = 500
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 1e-3 * (1 - step / steps)
        noise = ShardedGenerator(1, step)
        states = 2 * noise.uniform((128, 1)) - 1
        sign = 2.0 * noise.integers(0, 2, (128, 1)) - 1
        latents = torch.cat([sign + states, 0.1 * noise.normal((128, 1))], dim=1)
        optimiser.zero_grad()
        prior.loss(states, latents, None, 0.1, noise).mean().backward()
        optimiser.step()
        prior.update_ema()
    states = torch.tensor([[-0.5], [0.5]])
    for how in (Sampling("ddpm", None, 10), Sampling()):
        found = prior.sample(states, 500, how, noise=torch.Generator().manual_seed(0))
        modes = found[..., 0] - states
        assert abs(float((modes > 0).float().mean()) - 0.5) < 0.07
        assert float((modes.abs() - 1).abs().mean()) < 0.1


# ---- the module ----------------------------------------------------------------------------


def test_latents_are_standardised_by_those_of_the_training_data(stages, columns):
    module = load_module(stages(2))
    first = module.first
    data = OfflineDataset.from_columns(columns())
    view = module.view().bind(data)
    mean, std = first.posterior(view.batch(view.rows))
    torch.testing.assert_close(module.prior.mean, mean.mean(0), rtol=1e-4, atol=1e-5)
    spread = (mean.var(0, unbiased=False) + std.square().mean(0)).sqrt()
    torch.testing.assert_close(module.prior.std, spread, rtol=1e-4, atol=1e-5)
    module = load_module(stages(2, standardize=False))
    assert module.prior.mean.tolist() == [0, 0] and module.prior.std.tolist() == [1, 1]


def test_posteriors_from_the_file_are_those_of_the_encoder(stages, fit):
    first = str(stages())
    by = {}
    for source in ("cached", "online"):
        torch.manual_seed(0)
        options = {"widths": (8,), "width": 8, "diffusion_steps": 5, "posteriors": source}
        by[source] = LDCQStage2Module(2, 1, stage1=first, **options)
        fit(by[source], 3)
    for name, value in by["online"].state_dict().items():
        torch.testing.assert_close(by["cached"].state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_acts_without_the_stages_that_it_came_from(stages):
    path = stages(2)
    before = load_module(path)
    (path.parent / "stage1.ckpt").unlink()
    module = load_module(path)
    assert module.hparams["stage1"]["sha256"] == before.hparams["stage1"]["sha256"]
    observations = np.zeros((3, 2), np.float32)
    torch.manual_seed(1)
    one = before.policy().act(observations)
    torch.manual_seed(1)
    np.testing.assert_array_equal(module.policy().act(observations), one)
    assert not any(part.requires_grad for part in module.stage1.parameters())
    assert not module.train().stage1.training


def test_observations_of_one_number_make_positions_of_one(tmp_path):
    stage1 = LDCQStage1Module(1, 1, horizon=1, latent_dim=2, width=8, gru_layers=1)
    checkpoint = {"state_dict": stage1.state_dict(), "hyper_parameters": dict(stage1.hparams)}
    stage1.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "stage1.ckpt")
    for goals in ("none", "hindsight"):  # the random walk has such states
        stage2 = LDCQStage2Module(1, 1, stage1=str(tmp_path / "stage1.ckpt"), goals=goals)
        assert stage2.goal_dims == (0,)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"drop_probability": 0.6}, "drop_probability is 0.6"),
        ({"goals": "far"}, "goals is 'far'"),
        ({"goals": "hindsight", "goal_dims": (0, 5)}, r"goal_dims is \[0, 5\]; name dimensions"),
        ({"posterior": "mode"}, "posterior is 'mode'"),
        ({"posteriors": "never"}, "posteriors is 'never'"),
        ({"diffusion_steps": 0}, "diffusion_steps is 0: give at least 1"),
        ({"widths": (8, 4)}, r"widths is \[8, 4\]"),
        ({"ema_rate": 2.0}, "ema_rate is 2.0"),
        ({"min_snr": -1.0}, "min_snr is -1.0"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_wrong_options_are_refused(stages, options, said):
    with pytest.raises(ConfigError, match=said):
        LDCQStage2Module(2, 1, stage1=str(stages()), **options)


def test_other_data_and_other_snippets_are_refused(stages, fit, columns):
    first = str(stages())
    with pytest.raises(ConfigError, match=r"has the data's sha256 .*, this stage"):
        fit(LDCQStage2Module(2, 1, stage1=first), 1, scale=2.0)
    with pytest.raises(ConfigError, match="observation_dim 2, this stage 3"):
        LDCQStage2Module(3, 1, stage1=first)
    second = stages(2)
    with pytest.raises(ConfigError, match="is a checkpoint of LDCQStage2Module, where one of LDCQ"):
        LDCQStage2Module(2, 1, stage1=str(second))
    module = load_module(second)
    view = LDCQStage1Module(2, 1, horizon=4).view().bind(OfflineDataset.from_columns(columns()))
    with pytest.raises(ConfigError, match="LDCQStage2Module trains on Snippets of horizon 3"):
        module.losses(view.batch(view.rows))


def test_goals_of_the_data_must_be_there(stages, fit):
    with pytest.raises(DatasetError, match=r"no column 'goals'.*set model.init_args.goals to hind"):
        fit(LDCQStage2Module(2, 1, stage1=str(stages()), goals="column", goal_dims=(0,)), 1)


def test_more_steps_than_were_trained_are_refused(stages):
    with pytest.raises(ConfigError, match=r"cannot sample in 50 steps .* trained with 20"):
        load_module(stages(2)).policy(sampling_steps=50)


def test_what_a_prior_never_learned_is_refused(stages):
    module = load_module(stages(2, steps=1, goals="hindsight", drop_probability=0.0))
    module.policy(goal=(0.0, 0.0))
    with pytest.raises(ConfigError, match=r"guidance is 2.0, and .* drop_probability 0"):
        module.policy(goal=(0.0, 0.0), guidance=2.0)
    with pytest.raises(ConfigError, match="cannot be used without"):
        module.policy(plan=True, goal=(0.0, 0.0))
    aimed = load_module(stages(2, steps=1, goals="hindsight"))
    with pytest.raises(
        ConfigError, match="a plan uses the prior without a goal"
    ):  # c and u would be the same
        aimed.policy(plan=True, goal=(0.0, 0.0), guidance=2.0, against="state")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"depth": 3}, "depth is 3, which is for a plan:"),
        ({"num_latents": 7}, "num_latents is 7, which is for a plan:"),
        (
            {"goal": (9.0, 9.0)},
            r"goal is \(9.0, 9.0\), which is for a plan or a prior",
        ),
        ({"plan": True, "goal": ("a", "b")}, r"goal is \('a', 'b'\); give 2 finite numbers"),
    ],
)
def test_options_that_nothing_would_look_at_are_refused(stages, options, said):
    with pytest.raises(ConfigError, match=said):
        load_module(stages(2, steps=1)).policy(**options)


# ---- goals ---------------------------------------------------------------------------------


@pytest.fixture
def goal_module(stages, awake):
    module = load_module(stages(2, goals="hindsight", goal_dims=(1,)))
    awake(module.prior.average)
    return module


def test_goals_are_scaled_as_positions_are(stages):
    path = stages(1, normalize=True)
    module = LDCQStage2Module(2, 1, stage1=str(path), goals="hindsight", goal_dims=(1,))
    raw = torch.randn(5, 2)
    expected = module.stage1.normalize(raw)[:, 1:]
    torch.testing.assert_close(module.positions(raw[:, 1:]), expected)


def test_the_policy_goes_where_it_is_told(goal_module):
    observations = np.zeros((2, 2), np.float32)

    def act(goals, **options):
        torch.manual_seed(0)
        policy = goal_module.policy(**options)
        if goals is not None:
            policy.aim(np.asarray(goals))
        return policy.act(observations)

    here, there = act([[0.0], [0.0]]), act([[0.0], [5.0]])
    assert here[0] == there[0] and here[1] != there[1]
    np.testing.assert_array_equal(act(None, goal=[5.0]), act([[5.0], [5.0]]))
    assert (act([[0.0], [5.0]], guidance=3.0, against="state") != there).any()
    with pytest.raises(EvaluationError, match="the environment names no goal: give one as the pol"):
        act(None)
    with pytest.raises(EvaluationError, match="goal has 3 numbers and the policy's positions 1"):
        act(np.zeros((2, 3)))
    (dim,) = goal_module.goal_dims  # of a goal that is a whole observation this one is the position
    whole = np.full((2, 2), 9.0)
    whole[:, dim] = 0.0, 5.0
    np.testing.assert_array_equal(act(whole), there)
    with pytest.raises(ConfigError, match=r"goal is \[1.0, 2.0\]; give 1 finite numbers"):
        act(None, goal=[1.0, 2.0])
    with pytest.raises(ConfigError, match="against is 'none'"):
        act(None, against="none")


def test_products_of_few_rows_stay_in_float32_under_autocast(prior):
    """They take less time than casting the weights for them."""
    for rows, kind in ((32, torch.float32), (256, torch.bfloat16)):
        seen = []
        hook = prior.denoiser.blocks[0].register_forward_hook(
            lambda module, given, made, seen=seen: seen.append(made.dtype)
        )
        with torch.autocast("cpu", torch.bfloat16):
            states, latents = torch.randn(rows, 3), torch.randn(rows, prior.latent_dim)
            loss = prior.loss(states, latents, None, 0.1, ShardedGenerator(0))
        hook.remove()
        assert seen == [kind] and loss.dtype == torch.float32
