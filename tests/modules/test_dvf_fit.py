"""DVF through a real Trainer: pre-training and what builds on it, warm-up, cached values."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Callback

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.modules import BCModule, load_module
from lit_offrl.modules.occupancy import History

WARMUP = 3


def state_of(module, *names: str) -> dict[str, torch.Tensor]:
    """Copy of the weights and buffers whose names begin so."""
    state = module.state_dict().items()
    return {key: value.clone() for key, value in state if key.startswith(names)}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one and one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


class Watch(Callback):
    """Keeps something of the module at the start, and after each step."""

    def __init__(self, look) -> None:
        self.look = look
        self.seen: list = []

    def on_train_start(self, trainer, pl_module):
        self.seen.append(self.look(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(self.look(pl_module))


# ---- pre-training on states alone --------------------------------------------------------------


@pytest.fixture
def pretrained(tiny, save):
    """Checkpoint of an occupancy model trained on a file without actions and without rewards."""
    module = tiny(0, train="occupancy", ema_rate=0.5)
    module.normalizer.is_fitted.fill_(False)  # as a new module comes: the data's ranges count
    path = save(module, 3, name="pretrained.ckpt", without=("actions", "rewards", "policy"))
    assert module.spec.action_dim == 0 and "actions" not in module.spec.columns
    return path


OCCUPANCY = ("occupancy.", "normalizer.")


def test_pre_training_on_states_alone_moves_the_occupancy(tiny, pretrained):
    loaded, new = load_module(pretrained), tiny(0, train="occupancy")
    assert not same(state_of(loaded, "occupancy."), state_of(new, "occupancy."))
    assert same(state_of(loaded, "reward."), state_of(new, "reward."))
    assert loaded.acting is None
    empty = History(torch.zeros(3, 2, 2), None, torch.zeros(3, 2) > 0)
    states, absorbed = loaded.sample_future(torch.zeros(3, 2), torch.ones(3, 4), history=empty)
    assert states.shape == (3, 4, 2) and absorbed.shape == (3, 4)


def test_pre_training_has_no_values_to_cache(tiny, fit):
    options = {"train": "occupancy", "warmup_steps": WARMUP, "decay": "cosine"}
    cached, online = (tiny(0, values=values, **options) for values in ("cached", "online"))
    for module in (cached, online):
        fit(module, WARMUP + 2, without=("actions", "rewards"))
    assert same(state_of(cached, "occupancy."), state_of(online, "occupancy."))


@pytest.mark.parametrize("part", ["heads", "all"])
def test_the_rest_builds_on_a_pre_trained_occupancy(tiny, fit, pretrained, part):
    kept = state_of(load_module(pretrained), *OCCUPANCY)
    module = tiny(train=part, pretrained=str(pretrained))
    before = state_of(module, "reward.", "q.", "actor.", "acting.")
    watch = Watch(lambda m: state_of(m, *OCCUPANCY))
    fit(module, 3, watch, scale=7.0)  # a wider range, which must not move the normaliser
    assert same(watch.seen[0], kept)
    assert same(state_of(module, "normalizer."), state_of(load_module(pretrained), "normalizer."))
    assert same(watch.seen[-1], kept) == (part == "heads")
    after = state_of(module, "reward.", "q.", "actor.", "acting.")
    for name in ("reward.", "q.", "actor.", "acting."):
        weights = [key for key in before if key.startswith(name) and "weight" in key]
        assert any(not torch.equal(before[key], after[key]) for key in weights), name
    assert module.policy().act(torch.zeros(2, 2).numpy()).shape == (2, 1)


def test_a_resumed_run_takes_its_own_occupancy_and_needs_the_pre_trained_one_no_more(
    tiny, save, fit, pretrained
):
    options = {"train": "all", "pretrained": str(pretrained)}
    whole = tiny(**options)
    fit(whole, 4)
    path = save(tiny(**options), 2, name="half.ckpt")
    pretrained.unlink()
    resumed = tiny(**options)
    fit(resumed, 4, ckpt_path=path)
    assert same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 16}, "does not fit this model"),
        ({"policy_representation": "none"}, "does not fit this model"),
        ({"diffusion_steps": 8}, "8"),
        ({"prediction": "v"}, "trained with prediction epsilon, this model has v: set model.init"),
        ({"heads": 4}, "trained with heads 2, this model has 4"),
        ({"terminals": "truncate"}, "trained with terminals absorbing, this model has truncate"),
    ],
)
def test_a_pre_trained_occupancy_of_another_kind_is_refused(tiny, fit, pretrained, options, said):
    module = tiny(train="heads", pretrained=str(pretrained), **options)
    with pytest.raises(ConfigError, match=said) as caught:
        fit(module, 1)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_method_is_no_pre_trained_occupancy(tiny, save, tmp_path):
    path = save(BCModule(2, 1, hidden=(4,)), 1, name="bc.ckpt")
    for wrong in (path, tmp_path / "missing.ckpt"):
        with pytest.raises(ConfigError, match=wrong.name):
            tiny().load_occupancy(str(wrong))


# ---- phases of a run ---------------------------------------------------------------------------


def test_warming_up_clones_the_behaviour_and_leaves_q_alone(tiny, fit, whole_batch):
    module = tiny(warmup_steps=WARMUP)
    untouched, actor = state_of(module, "q."), state_of(module, "actor.net.")
    occupancy, reward = state_of(module, "occupancy.denoiser."), state_of(module, "reward.")
    losses = Watch(lambda m: set(m.latest_losses))
    trainer = fit(module, WARMUP, losses)
    assert losses.seen[-1] == {"occupancy", "reward", "actor"}
    assert same(untouched, state_of(module, "q."))
    assert not same(actor, state_of(module, "actor.net."))
    assert not same(occupancy, state_of(module, "occupancy.denoiser."))
    assert not same(reward, state_of(module, "reward."))
    optimizer = trainer.optimizers[0]
    assert not any(p in optimizer.state for p in module.q.parameters())
    assert all(p in optimizer.state for p in module.actor.parameters())

    batch = whole_batch(module)
    observations = module.normalizer.normalize(batch.observations)
    expected = -module.actor.log_prob(observations, batch.actions).mean()
    assert torch.equal(module.cloning_loss(batch), expected)

    module = tiny(warmup_steps=WARMUP)
    fit(module, WARMUP + 1, losses)
    assert losses.seen[-1] == {"occupancy", "reward", "q", "actor"}
    assert not same(untouched, state_of(module, "q."))


def test_cached_values_end_the_training_of_what_they_are_made_of(tiny, fit):
    module = tiny(warmup_steps=WARMUP, values="cached")
    watch = Watch(lambda m: state_of(m, "occupancy.", "reward.", "q.", "actor.net."))
    trainer = fit(module, WARMUP + 3, watch)
    settled, after = watch.seen[WARMUP], watch.seen[-1]
    moved = {key.split(".")[0] for key in settled if not torch.equal(settled[key], after[key])}
    assert moved == {"q", "actor"}
    idle = module.idle_parameters()
    assert {id(p) for p in idle} == {
        id(p) for name in ("occupancy", "reward") for p in module.parameter_groups()[name]
    }
    # Adam stopped with them: no step was counted, so no momentum moved a weight
    state = trainer.optimizers[0].state
    assert {int(state[p]["step"]) for p in idle} == {WARMUP}
    assert {int(state[p]["step"]) for p in module.q.parameters()} == {3}


def test_cached_values_are_those_of_sampling_in_training(tiny, fit, monkeypatch):
    monkeypatch.setattr("lit_offrl.modules.dvf_cache.CHAINS", 3 * 20)  # 20 rows at a time
    module = tiny(warmup_steps=WARMUP, values="cached")
    module.actor_ema_rate = 0.0  # the actor stands
    watch = Watch(lambda m: m.cache.next_values)
    trainer = fit(module, WARMUP + 2, watch)
    assert [cache is None for cache in watch.seen] == [True] * (WARMUP + 1) + [False] * 2
    assert watch.seen[-1] is watch.seen[-2]  # sampled once

    view = trainer.datamodule.train_view()
    chunks = view.rows.split(20)
    assert len(chunks) > 2
    for number, rows in enumerate(chunks):
        batch = view.batch(rows, torch.zeros(len(rows), 1))
        noise = ShardedGenerator(module.seed, 2, WARMUP, number)
        expected = module.diffused_value.next_values(batch, noise)
        torch.testing.assert_close(module.cache.next_values[rows], expected)
        assert (module.cache.next_values[rows][batch.terminals] == 0).all()
    missing = torch.ones(len(module.cache.next_values), dtype=torch.bool)
    missing[view.rows] = False
    assert missing.any() and (module.cache.next_values[missing] == 0).all()


def test_cached_values_are_refreshed_when_asked_for_and_survive_a_checkpoint(tiny, fit, save):
    options = {"warmup_steps": 1, "values": "cached", "refresh_steps": 2}
    watch, module = Watch(lambda m: m.cache.next_values), tiny(**options)
    fit(module, 6, watch)
    caches = watch.seen[2:]  # after steps 1 … 5
    assert [one is other for one, other in pairwise(caches)] == [True, False] * 2
    assert not torch.equal(caches[0], caches[2])

    path = save(tiny(**options), 4, name="half.ckpt")
    loaded = load_module(path)
    assert torch.equal(loaded.cache.next_values, caches[2])
    resumed = tiny(**options)
    fit(resumed, 6, ckpt_path=path)
    assert same(resumed.state_dict(), module.state_dict())
    assert torch.equal(resumed.cache.next_values, module.cache.next_values)


RETURNS = {
    "warmup_steps": WARMUP,
    "values": "cached",
    "extraction": "awr",
    "advantage": "returns",
    "return_trace": 0.5,
}


def test_returns_follow_each_trajectory_and_end_where_it_does(tiny, fit):
    """Against the recursion, episode by episode, over the rows that are trained on."""
    module = tiny(**RETURNS)
    trainer = fit(module, WARMUP + 2, validate=True)
    view, dataset = trainer.datamodule.train_view(), trainer.datamodule.dataset
    trained, seen = set(view.rows.tolist()), 0
    for start, stop in dataset.episodes.tolist():
        later = None
        for row in range(stop - 1, start - 1, -1):
            if row not in trained:
                continue
            value = float(module.cache.next_values[row])
            if later is None:  # the last row: at a terminal the cached value is 0
                later = value
            mixed = 0.5 * value + 0.5 * later
            later = float(dataset.columns["rewards"][row]) + 0.9 * mixed
            assert float(module.cache.returns[row]) == pytest.approx(later, rel=1e-4, abs=1e-4)
            seen += 1
    assert seen == len(trained) and len(trained) < len(dataset.columns["rewards"])


@pytest.mark.parametrize(
    ("advantage", "critics"), [("returns", {"baseline"}), ("q_baseline", {"q", "baseline"})]
)
def test_advantages_above_a_baseline_train_it_and_go_on_exactly(
    tiny, fit, save, advantage, critics
):
    options = {**RETURNS, "advantage": advantage, "refresh_steps": 2}
    module = tiny(**options)
    before = state_of(module, "q.", "baseline.")
    losses = Watch(lambda m: set(m.latest_losses))
    fit(module, WARMUP + 3, losses)
    assert losses.seen[WARMUP] == {"occupancy", "reward", "actor"}
    assert losses.seen[-1] == {*critics, "actor"}
    moved = {
        k.split(".")[0] for k, v in before.items() if not torch.equal(v, module.state_dict()[k])
    }
    assert moved == critics
    resumed = tiny(**options)
    fit(resumed, WARMUP + 3, ckpt_path=save(tiny(**options), WARMUP + 1, name="half.ckpt"))
    assert same(resumed.state_dict(), module.state_dict())


@pytest.mark.parametrize("options", [{"extraction": "q_net"}, {"values": "online"}])
def test_advantages_by_returns_need_cached_values_and_awr(tiny, options):
    with pytest.raises(ConfigError, match="set extraction to 'awr' and values to 'cached'"):
        tiny(**{**RETURNS, **options})


def test_the_averaged_actor_follows_by_its_rate(tiny, fit):
    module = tiny(actor_ema_rate=0.25)
    watch = Watch(lambda m: (state_of(m, "actor.net."), state_of(m, "acting.net.")))
    fit(module, 2, watch)
    (_, slow), _, _ = watch.seen
    for fast, after in watch.seen[1:]:
        for key, value in after.items():
            name = key.replace("acting", "actor")
            expected = torch.lerp(slow[key], fast[name], 0.25)
            torch.testing.assert_close(value, expected)
        slow = after


def test_values_of_held_out_states_stand_beside_their_returns(tiny, fit):
    module = tiny()
    trainer = fit(module, 4, validate=True)
    correlation = trainer.callback_metrics["val/value_correlation"]
    assert -1 <= correlation <= 1
    figure = module.figures()["value_against_return"]
    values, returns = torch.cat(module._compared, dim=1)
    axis = figure.axes[0]
    drawn = torch.as_tensor(axis.collections[0].get_offsets().data, dtype=torch.float32)
    assert torch.equal(drawn, torch.stack([returns, values], dim=1))
    assert torch.corrcoef(torch.stack([values, returns]))[0, 1] == pytest.approx(
        float(correlation), abs=1e-5
    )


# ---- a rate that decays --------------------------------------------------------------------------

WHOLE = [1.0, 0.9045, 0.6545, 0.3455, 0.0955]  # ½ (1 + cos(π k/5))
WARM = [1.0, 0.75, 0.25, 0.0, 0.0]  # over the 3 steps of warm-up


def rates(module) -> dict[str, float]:
    """The rate of the last step, by network."""
    return {group["name"]: group["lr"] for group in module.trainer.optimizers[0].param_groups}


@pytest.mark.parametrize(("values", "models"), [("online", WHOLE), ("cached", WARM)])
def test_the_rate_reaches_zero_where_a_networks_training_ends(tiny, fit, values, models):
    watch = Watch(rates)
    fit(tiny(decay="cosine", learning_rate=0.01, warmup_steps=WARMUP, values=values), 5, watch)
    expected = {"occupancy": models, "reward": models, "q": WHOLE, "actor": WHOLE}
    for name, parts in expected.items():
        seen = [step[name] for step in watch.seen[1:]]
        assert seen == pytest.approx([0.01 * part for part in parts], rel=1e-3), name


def test_a_warm_up_that_fills_the_training_decays_over_it(tiny, fit):
    watch = Watch(rates)
    fit(tiny(decay="cosine", learning_rate=0.01, warmup_steps=9, values="cached"), 2, watch)
    assert [step["occupancy"] for step in watch.seen[1:]] == pytest.approx([0.01, 0.005])
