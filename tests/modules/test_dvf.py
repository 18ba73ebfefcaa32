"""What DVF's losses touch, what its representations need, what its options refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.views import FutureStates, TransitionBatch
from lit_offrl.modules import DVFModule
from lit_offrl.modules.occupancy import History, OccupancyModel
from lit_offrl.nets import symlog

PARTS = ("occupancy", "reward", "q", "actor")


def gradients(module: DVFModule) -> dict[str, list[torch.Tensor]]:
    """Gradients that are not zero, by network."""
    return {
        name: [p.grad for p in group if p.grad is not None and bool(p.grad.any())]
        for name, group in module.parameter_groups().items()
    }


# ---- losses and gradients ----------------------------------------------------------------------


WITH_BASELINE = {"extraction": "awr", "advantage": "q_baseline"}


@pytest.mark.parametrize(
    "options", [*({"extraction": name} for name in ("q_net", "awr", "reward_grad")), WITH_BASELINE]
)
def test_each_loss_moves_its_own_network_alone(tiny, whole_batch, awake, options):
    module = awake(tiny(**options))
    batch = whole_batch(module)
    parts = (*PARTS[:3], "baseline", "actor") if options == WITH_BASELINE else PARTS
    assert tuple(module.trains()) == parts
    for name, loss in module.trains().items():
        module.zero_grad()
        loss(batch).backward()
        touched = {group for group, found in gradients(module).items() if found}
        assert touched == {name}
        without = {p for p in module.parameter_groups()[name] if p.grad is None}
        assert without <= set(module.idle_parameters())  # or processes would wait for each other
    for copy in (module.occupancy.average, module.acting):
        assert all(p.grad is None and not p.requires_grad for p in copy.parameters())


def test_a_state_baseline_is_regressed_on_q_and_advantages_are_above_it(
    tiny, whole_batch, awake, monkeypatch
):
    module = awake(tiny(**WITH_BASELINE))
    batch = whole_batch(module)
    states = module.normalizer.normalize(batch.observations)
    q = module.q(torch.cat([states, batch.actions], dim=-1)).squeeze(-1)
    above = q - module.baseline(states).squeeze(-1)
    torch.testing.assert_close(module.baseline_loss(batch), above.square().mean())
    given = []
    monkeypatch.setattr(
        "lit_offrl.modules.dvf.weighted_loss",
        lambda actor, s, a, advantage, beta: given.append(advantage) or (advantage.sum(), {}),
    )
    module.actor_loss(batch)
    torch.testing.assert_close(given[0], above.detach())


def test_losses_are_finite_scalars_by_name(tiny, whole_batch):
    module = tiny()
    losses = module.losses(whole_batch(module))
    assert tuple(losses) == PARTS
    assert all(loss.shape == () and bool(loss.isfinite()) for loss in losses.values())


def test_with_the_rewards_gradient_the_diffusion_model_cannot_move_the_policy(
    tiny, whole_batch, awake
):
    def actor_gradients(extraction: str, moved: str) -> list[torch.Tensor]:
        module = awake(tiny(extraction=extraction))
        if moved:
            awake(getattr(module, moved))
        module.seed_noise(0)
        module.actor_loss(whole_batch(module)).backward()
        return gradients(module)["actor"]

    def same(one, other) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    literal, through_q = actor_gradients("reward_grad", ""), actor_gradients("q_net", "")
    assert same(literal, actor_gradients("reward_grad", "occupancy"))
    assert same(literal, actor_gradients("reward_grad", "q"))
    assert not same(literal, actor_gradients("reward_grad", "reward"))
    assert not same(through_q, actor_gradients("q_net", "q"))

    # and ρ does move what Q is regressed on, which is how it reaches the policy by q_net
    module = awake(tiny())
    batch, targets = whole_batch(module), []
    for _ in range(2):
        module.seed_noise(0)
        module.q_loss(batch)
        targets.append(module._info["q/target_mean"])
        awake(module.occupancy)
    assert targets[0] != targets[1]


def test_unlabelled_rewards_are_never_read(tiny, whole_batch, awake):
    module = awake(tiny())
    batch = whole_batch(module)
    labelled = torch.arange(len(batch.rewards)) % 3 == 0
    garbage = torch.where(labelled, batch.rewards, 1e6)
    masked = batch._replace(rewards=garbage, reward_mask=labelled)

    joined = torch.cat([module.normalizer.normalize(batch.observations), batch.actions], -1)
    error = (module.reward(joined).squeeze(-1) - symlog(batch.rewards)).square()
    expected = error[labelled].sum() / len(error)
    torch.testing.assert_close(module.reward_loss(masked), expected)

    # Q's target takes the reward model's guess in their place
    guess = module.diffused_value.reward_of(*joined.split([2, 1], -1)).detach()
    filled = batch._replace(rewards=torch.where(labelled, batch.rewards, guess))
    module.seed_noise(3)
    loss = module.q_loss(masked)
    module.seed_noise(3)
    torch.testing.assert_close(loss, module.q_loss(filled))


# ---- representations of the policy -------------------------------------------------------------

REPRESENTATIONS = {
    "none": {"policy_representation": "none"},
    "scalar": {"policy_representation": "scalar"},
    "states": {"policy_representation": "sequential"},
    "pairs": {"policy_representation": "sequential", "history_actions": True},
}


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_samples_depend_on_the_representation_and_on_nothing_else(tiny, whole_batch, awake, name):
    module = awake(tiny(**REPRESENTATIONS[name]))
    batch = whole_batch(module)
    assert all(bool(loss.isfinite()) for loss in module.losses(batch).values())
    assert (batch.history is not None) == (name in ("states", "pairs"))

    count = len(batch.rows)
    history = History(torch.zeros(count, 2, 2), torch.zeros(count, 2, 1), torch.ones(count, 2) > 0)
    given = {"history": history, "policy": torch.zeros(count)}

    def sample(**changed):
        offsets = batch.offsets[:, None]
        return module.sample_future(batch.observations, offsets, **{**given, **changed}, seed=5)[0]

    moved = {
        "scalar": {"policy": torch.ones(count)},
        "states": {"history": history._replace(states=torch.ones(count, 2, 2))},
        "pairs": {"history": history._replace(actions=torch.ones(count, 2, 1))},
    }
    seen = {what for what, change in moved.items() if not torch.equal(sample(), sample(**change))}
    assert (
        seen
        == {
            "none": set(),
            "scalar": {"scalar"},
            "states": {"states"},
            "pairs": {"states", "pairs"},
        }[name]
    )


@pytest.mark.parametrize(
    ("name", "missing", "said"),
    [
        ("scalar", "policy", "no 'policy' column"),
        ("states", "history", "batch has no history"),
        ("pairs", "history_actions", "history has no actions"),
    ],
)
def test_what_a_representation_needs_and_does_not_get_is_named(
    tiny, whole_batch, name, missing, said
):
    module = tiny(**REPRESENTATIONS[name])
    batch = whole_batch(module)._replace(**{missing: None})
    for loss in (module.occupancy_loss, module.q_loss):
        with pytest.raises(ConfigError, match=said):
            loss(batch)


def test_a_longer_history_than_the_models_is_refused(tiny, whole_batch):
    batch = whole_batch(tiny(history=3))
    with pytest.raises(ConfigError, match="history of 3 states, the model one of 2"):
        tiny().occupancy_loss(batch)


def test_columns_that_each_part_needs(tiny):
    assert tiny().required_columns == ("actions", "rewards")
    assert tiny(0, train="occupancy").required_columns == ()
    scalar, pairs = REPRESENTATIONS["scalar"], REPRESENTATIONS["pairs"]
    assert tiny(**scalar).required_columns == ("actions", "rewards", "policy")
    assert tiny(train="occupancy", **scalar).required_columns == ("policy",)
    assert tiny(train="occupancy", **pairs).required_columns == ("actions",)


@pytest.mark.parametrize("missing", ["actions", "rewards"])
def test_labels_that_are_not_there_are_named(tiny, whole_batch, missing):
    module = tiny()
    batch = whole_batch(module)._replace(**{missing: None})
    module.occupancy_loss(batch)
    with pytest.raises(ConfigError, match=f"no column '{missing}'"):
        module.reward_loss(batch)


def test_history_advances_by_one_step():
    states = torch.arange(12.0).reshape(2, 3, 2)
    actions = torch.arange(6.0).reshape(2, 3, 1)
    mask = torch.tensor([[False, False, True], [True, True, True]])
    history = History(states, actions, mask)
    now, taken = torch.full((2, 2), -1.0), torch.full((2, 1), -2.0)
    after = history.advanced(now, taken)
    assert after.states[0].tolist() == [[2, 3], [4, 5], [-1, -1]]
    assert after.actions[1].tolist() == [[4], [5], [-2]]
    assert after.mask.tolist() == [[False, True, True], [True, True, True]]
    assert history.advanced(now, None).actions is None
    assert history._replace(actions=None).advanced(now, taken).actions is None


# ---- terminals and options ---------------------------------------------------------------------


def test_terminals_are_absorbing_or_forgotten(tiny, whole_batch):
    absorbing, truncating = tiny(), tiny(terminals="truncate")
    assert absorbing.view() == FutureStates(0.9, None, 2, "absorbing")
    assert truncating.view() == FutureStates(0.9, None, 2, "truncate")
    assert tiny(near_share=0.5).view() == FutureStates(0.9, history=2, near_share=0.5)
    seen, cut = whole_batch(absorbing), whole_batch(truncating)
    assert seen.future_absorbed.any() and not cut.future_absorbed.any()
    assert seen.terminals.sum() == 4  # of both, the last rows of the four ended episodes …
    assert cut.terminals.sum() == 0  # … which have no future where the end is forgotten

    marked = OccupancyModel.mark(torch.full((2, 3), 0.5), torch.tensor([True, False]))
    assert marked.tolist() == [[0, 0, 0, 1], [0.5, 0.5, 0.5, -1]]
    assert OccupancyModel.mark(torch.full((1, 2), 0.5)).tolist() == [[0.5, 0.5, -1]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gamma": 1.0}, "gamma is 1.0"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"near_share": 1.0}, "near_share is 1.0"),
        ({"action_dim": 0}, "set train to 'occupancy'"),
        ({"action_dim": 0, "train": "occupancy", "history_actions": True}, "history_actions"),
        ({"train": "heads"}, "without 'pretrained'"),
        ({"values": "cached"}, "without warmup_steps"),
        ({"refresh_steps": 0}, "refresh_steps is 0"),
        ({"history": 0}, "history of at least 1"),
        ({"sampling_steps": 5}, "5 steps .* trained with 4"),
        ({"width": 15}, "width is 15 and heads"),
        ({"advantage": "q_baseline"}, "only awr weighs by advantages, so set extraction to 'awr'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tiny, options, said):
    with pytest.raises(ConfigError, match=said) as caught:
        tiny(**options)
    assert "\n" not in str(caught.value)


def test_a_part_that_was_pre_trained_alone_has_no_policy_and_no_values(tiny):
    for module in (tiny(0, train="occupancy"), tiny(1, train="occupancy")):
        with pytest.raises(ConfigError, match="no policy yet"):
            module.policy()
        with pytest.raises(ConfigError, match="no policy yet"):
            module.value(torch.zeros(1, 2))
        assert module.figures() == {}


def test_the_averaged_actor_acts_by_its_mean(tiny, awake):
    module = tiny()
    awake(module.acting)
    rows = np.random.default_rng(0).normal(size=(5, 2))
    acted = module.policy().act(rows)
    normalised = module.normalizer.normalize(torch.as_tensor(rows, dtype=torch.float32))
    np.testing.assert_array_equal(acted, module.acting(normalised).numpy())
    assert not np.allclose(acted, module.actor(normalised).detach().numpy())
    assert acted.dtype == np.float32 and np.abs(acted).max() <= 1


def test_another_view_is_refused():
    module = DVFModule(
        1, 1, (-1.0,), (1.0,), policy_representation="none", width=16, blocks=1, latents=2
    )
    state, number = torch.zeros(2, 1), torch.zeros(2)
    batch = TransitionBatch(state, state, number, state, number.bool())
    with pytest.raises(ConfigError, match="leave the view to the model"):
        module.losses(batch)
