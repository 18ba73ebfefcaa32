"""ACD on a bandit with several modes of different worth, and its guidance."""

import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.modules import ACDModule, DiffusionBCModule, DQLModule, IDQLModule, IQLModule
from lit_offrl.modules.expectile import best_of
from lit_offrl.nets import AdvantageEncoding
from tests.helpers import unchecked

MODES = torch.tensor([-0.7, 0.0, 0.7])
SHARES = torch.tensor([0.5, 0.3, 0.2])
WORTH = torch.tensor([-2.0, -1.0, 0.0])  # the rarest is the best: its advantage is 0
SMALL = {"width": 32, "blocks": 1, "dropout": 0.0, "actor_ema_rate": 0.02, "learning_rate": 2e-3}


def bandit(rows, generator):
    arm = torch.multinomial(SHARES, rows, replacement=True, generator=generator)
    noise = 0.05 * torch.randn(rows, generator=generator)
    return (MODES[arm] + noise)[:, None], WORTH[arm]


@unchecked()
def train(module, loss, steps=900):
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(module.actor.denoiser.parameters(), lr=module.learning_rate)
    module.train()
    for step in range(steps):
        module.noise = ShardedGenerator(0, step)
        optimizer.zero_grad()
        loss(*bandit(256, generator)).backward()
        optimizer.step()
        module.actor.update_ema()
    return module.eval()


@pytest.fixture(scope="module")
def acd():
    torch.manual_seed(0)
    module = ACDModule(2, 1, diffusion_steps=10, drop_probability=0.2, hidden=(8,), **SMALL)
    states = torch.zeros(256, 2)
    return train(module, lambda actions, worth: module.actor_loss(states, actions, worth))


def shares(actions):
    """Which share of actions lies nearest to each mode."""
    nearest = (actions.flatten()[:, None] - MODES).abs().argmin(1)
    return torch.bincount(nearest, minlength=3) / len(nearest)


def test_plain_diffusion_cloning_reproduces_the_modes_in_proportion():
    torch.manual_seed(0)
    module = DiffusionBCModule(2, 1, diffusion_steps=10, **SMALL)

    def loss(actions, worth):
        nothing = torch.zeros(256)
        states = torch.zeros(256, 2)
        batch = TransitionBatch(states, actions, nothing, states, nothing.bool())
        return module.losses(batch)["actor"]

    train(module, loss)
    drawn = module.actor.sample(torch.zeros(1, 2), number=2000)
    torch.testing.assert_close(shares(drawn), SHARES, atol=0.08, rtol=0)


def test_at_advantage_zero_acd_takes_the_best_mode(acd):
    states = torch.zeros(500, 2)
    plain = acd.sample_actions(states, 1, 0.0)
    assert shares(plain)[2] > 0.9
    assert ((plain - 0.7).abs() < 0.2).float().mean() > 0.85
    assert shares(acd.sample_actions(states, 1, 3.0))[2] > 0.97
    assert shares(acd.sample_actions(states, 1, 0.0, advantage=-2.0))[0] > 0.9
    acted = acd.policy().act(states.numpy())
    assert acted.shape == (500, 1) and shares(torch.from_numpy(acted))[2] > 0.97


def test_omega_minus_one_is_the_unconditional_model_and_zero_the_conditional_one(acd):
    states = torch.zeros(300, 2)

    def drawn(omega):
        torch.manual_seed(1)
        return acd.sample_actions(states, 2, omega)

    def plain(condition):
        torch.manual_seed(1)
        return acd.actor.sample(condition, number=2)

    hidden = torch.cat([states, torch.zeros(300, 2)], dim=1)
    given = torch.cat([states, torch.tensor([1.0, 0.0]).expand(300, 2)], dim=1)
    assert torch.equal(drawn(-1.0), plain(hidden))
    assert torch.equal(drawn(0.0), plain(given))
    torch.testing.assert_close(shares(plain(hidden)), SHARES, atol=0.1, rtol=0)
    assert not torch.equal(drawn(3.0), drawn(0.0))


def test_acd_f_picks_the_arg_max(acd):
    states = torch.randn(20, 2)
    torch.manual_seed(2)
    candidates = acd.sample_actions(states, 8, 3.0)
    torch.manual_seed(2)
    acted = acd.policy(act_mode="acd_f", num_samples=8).act(states.numpy())
    expected = best_of(acd.critics.target, states, candidates)
    assert torch.equal(torch.from_numpy(acted), expected.detach())


def test_hiding_masks_the_advantage_and_never_the_state(monkeypatch):
    module = ACDModule(2, 1, drop_probability=0.5, hidden=(8,), **SMALL)
    seen = {}
    monkeypatch.setattr(
        module.actor, "loss", lambda condition, actions, noise: seen.update(c=condition) or actions
    )
    module.noise = ShardedGenerator(3)
    states = torch.randn(1000, 2)
    module.actor_loss(states, torch.zeros(1000, 1), torch.full((1000,), -4.0))
    condition = seen["c"]
    assert torch.equal(condition[:, :2], states)
    hidden = condition[:, 2] == 0
    assert 0.4 < hidden.float().mean() < 0.6
    assert torch.equal(condition[hidden, 2:], torch.zeros(int(hidden.sum()), 2))
    assert (condition[~hidden, 2:] == torch.tensor([1.0, -4.0])).all()


def test_classifier_guidance_trains_the_unconditional_model_alone(monkeypatch):
    module = ACDModule(2, 1, guidance="classifier", hidden=(8,), **SMALL)
    seen = {}
    monkeypatch.setattr(
        module.actor, "loss", lambda condition, actions, noise: seen.update(c=condition) or actions
    )
    module.noise = ShardedGenerator(3)
    module.actor_loss(torch.ones(100, 2), torch.zeros(100, 1), torch.full((100,), -4.0))
    assert torch.equal(seen["c"][:, 2:], torch.zeros(100, 2))


def test_a_learned_representation_acts_by_its_average_as_the_denoiser_does():
    module = ACDModule(2, 1, representation="learned", hidden=(8,), **SMALL)
    states = torch.zeros(20, 2)

    def drawn():
        torch.manual_seed(0)
        return module.sample_actions(states, 1, 0.0)

    before = drawn()
    with torch.no_grad():
        module.encoding.net[-1].bias.add_(10.0)
    assert torch.equal(drawn(), before)
    module.after_step()
    assert not torch.equal(drawn(), before)
    moved = module.average_encoding.net[-1].bias - module.encoding.net[-1].bias
    torch.testing.assert_close(moved, torch.full((32,), -10.0 * (1 - SMALL["actor_ema_rate"])))


def test_classifier_guidance_climbs_the_critic():
    torch.manual_seed(0)
    module = ACDModule(2, 1, guidance="classifier", hidden=(8,), **SMALL)
    monotone = {"weight": torch.tensor([[[0.0], [0.0], [5.0]]]).expand(2, 3, 1)}

    class Rising(torch.nn.Module):
        def minimum(self, observations, actions):
            return (torch.cat([observations, actions], 1) @ monotone["weight"][0]).squeeze(1)

    module.critics.target = Rising()
    states = torch.zeros(400, 2)
    still = module.sample_actions(states, 1, 0.0).mean()
    pushed = module.sample_actions(states, 1, 1.0).mean()
    assert pushed > still + 0.2


def test_the_four_representations_tell_advantages_apart_and_their_absence():
    values = torch.tensor([-3.0, 0.0, 0.3])
    for kind, size in (("raw", 2), ("one_hot", 12), ("sinusoidal", 9), ("learned", 9)):
        encoding = AdvantageEncoding(kind, bins=11, features=8)
        encoded = encoding(values)
        assert encoded.shape == (3, size) == (3, encoding.dim)
        assert (encoded[:, 0] == 1).all() and len(encoded.unique(dim=0)) == 3
        masked = encoding(values, torch.tensor([True, False, True]))
        assert not masked[1].any() and torch.equal(masked[0], encoded[0])
        assert torch.equal(encoding.absent(1, values)[0], masked[1])
    bins = AdvantageEncoding("one_hot", bins=5, bin_width=0.5)
    inside = bins(torch.tensor([-9.0, -0.3, -0.2, 0.0, 0.24, 0.26, 9.0]))[:, 1:].argmax(1)
    assert inside.tolist() == [0, 1, 2, 2, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"drop_probability": 2.0}, "drop_probability"),
        ({"labels": "precomputed"}, "critic"),
        ({"critic": "x.ckpt"}, "joint"),
        ({"decay": "step"}, "decay"),
        ({"num_samples": 0}, "num_samples"),
        ({"sampling_steps": 6}, "num_steps"),
        ({"actor_ema_rate": 2.0}, "actor_ema_rate"),
        ({"width": 0}, "width"),
        ({"dropout": 1.0}, "dropout"),
        ({"bins": 40}, "bins"),
        ({"advantage_scale": 0.0}, "advantage_scale"),
        ({"learning_rate": -1e-3}, "learning_rate"),
        ({"weight_decay": -1e-3}, "weight_decay"),
    ],
)
def test_options_that_cannot_be_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        ACDModule(2, 1, **options)


def test_choosing_among_none_and_targets_that_overtake_are_refused():
    for kind in (IDQLModule, DQLModule):
        with pytest.raises(ConfigError, match="num_samples"):
            kind(2, 1, hidden=(8,), **SMALL).policy(num_samples=0)
    with pytest.raises(ConfigError, match="tau"):
        DQLModule(2, 1, tau=3.0)


def test_an_unknown_mode_of_acting_is_refused(acd):
    with pytest.raises(ConfigError, match="acd_f"):
        acd.policy(act_mode="acdf")
    with pytest.raises(ConfigError, match="num_samples"):
        acd.policy(num_samples=0)


def test_frozen_critics_must_have_taken_observations_scaled_alike(save):
    path = str(save(IQLModule(2, 1, hidden=(4,), normalize="min_max"), 1))
    options = {"hidden": (4,), "labels": "precomputed", "critic": path, **SMALL}
    module = ACDModule(2, 1, normalize=True, **options)  # the other name of min_max
    module.load_critics()
    assert module.normalizer.fitted
    said = "was trained with normalize min_max, this model has mean_std: give both the same"
    with pytest.raises(ConfigError, match=said):
        ACDModule(2, 1, normalize="mean_std", **options).load_critics()
    said = "was trained with activation relu, this model has gelu: give both the same"
    with pytest.raises(ConfigError, match=said):
        ACDModule(2, 1, normalize=True, activation="gelu", **options).load_critics()


def test_a_line_says_where_frozen_critics_were_trained_otherwise(save, capsys):
    trained = {"hidden": (4,), "gamma": 0.995, "expectile": 0.9}
    path = str(save(IQLModule(2, 1, **trained), 1))
    options = {"labels": "precomputed", "critic": path, **SMALL}
    capsys.readouterr()
    ACDModule(2, 1, **trained, **options).load_critics()
    assert capsys.readouterr().out == ""
    ACDModule(2, 1, **(trained | {"expectile": 0.7}), **options).load_critics()
    assert capsys.readouterr().out == (
        f"lit-offrl: critic: {path} was trained with expectile 0.9, and its labels are of that; "
        "the 0.7 of this model trains nothing.\n"
    )
    ACDModule(2, 1, **trained, n_step=3, **options).load_critics()
    assert "was trained with n_step 1, and its labels are of that; the 3" in capsys.readouterr().out
