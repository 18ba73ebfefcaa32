"""What ACD is told: signs of advantages, whose quantile, whose corrections; RECAP as a whole."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset
from lit_offrl.datasets.views import Outcomes, Transitions
from lit_offrl.modules import ACDModule
from tests.helpers import unchecked

SMALL = {"width": 8, "blocks": 1, "hidden": (4,)}
NOTHING = SimpleNamespace()


def told(advantages, batch=NOTHING, **options):
    module = ACDModule(2, 1, **SMALL, **options)
    return module.actor_condition(batch, torch.as_tensor(advantages))


def test_advantages_are_told_as_they_are_unless_signs_are_asked_for():
    advantages = torch.randn(9)
    assert told(advantages) is advantages
    assert torch.equal(told(advantages, condition="positive"), torch.sign(advantages))
    above = torch.where(advantages > 0.7, 1.0, -1.0)
    assert torch.equal(told(advantages, condition="positive", threshold=0.7), above)
    assert told(torch.zeros(3), condition="positive").tolist() == [-1.0] * 3  # none is above 0


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_a_share_of_the_rows_is_positive_and_it_is_the_best(share):
    advantages = torch.randn(200) - 5.0
    found = told(advantages, condition="positive", positive_share=share)
    assert (found == 1.0).sum().item() == round(share * 200)
    assert advantages[found == 1.0].min() > advantages[found == -1.0].max()


def test_the_best_rows_are_positive_also_where_many_tie():
    """Of three successes in five, all alike, the quantile of 0.4 is that of a success."""
    for advantages, expected in (
        ([0.5, -1.0, 0.5, -1.0, 0.5], [1.0, -1.0, 1.0, -1.0, 1.0]),
        ([0.5, -1.0, 0.5, 0.5, 2.0], [-1.0, -1.0, -1.0, -1.0, 1.0]),  # fewer than 0.4
        ([0.5, 0.5, 0.5, 0.5, 0.5], [1.0] * 5),
    ):
        assert told(advantages, condition="positive", positive_share=0.4).tolist() == expected


def test_a_humans_corrections_are_positive_whatever_they_are_worth():
    batch = SimpleNamespace(corrected=torch.tensor([True, False, False, True]))
    found = told(torch.tensor([-3.0, -1.0, 2.0, 5.0]), batch, condition="positive")
    assert found.tolist() == [1.0, -1.0, 1.0, 1.0]
    shared = told([-3.0, -1.0, 2.0, 5.0], batch, condition="positive", positive_share=0.25)
    assert shared.tolist() == [1.0, -1.0, -1.0, 1.0]


@pytest.mark.parametrize(("condition", "default"), [("positive", 1.0), ("advantage", 0.0)])
def test_it_acts_for_a_positive_or_an_optimal_action(monkeypatch, condition, default):
    module, seen = ACDModule(2, 1, condition=condition, **SMALL), []

    def sample(given, **options):
        seen.append((given[:, 2:].tolist(), options["absent"][:, 2:].tolist()))
        return torch.zeros(len(given), 1, 1)

    monkeypatch.setattr(module.actor, "sample", sample)
    states = np.zeros((1, 2), np.float32)
    module.policy().act(states)
    module.policy(advantage=-1.0).act(states)
    assert seen == [([[1.0, default]], [[0.0, 0.0]]), ([[1.0, -1.0]], [[0.0, 0.0]])]


def test_the_view_is_as_ever_unless_more_of_an_episode_is_asked_for():
    assert type(ACDModule(2, 1, **SMALL).view()) is Transitions
    for options in ({"condition": "positive"}, {"failure_reward": -1.0}):
        assert ACDModule(2, 1, **SMALL, **options).view() == Outcomes(
            gamma=0.99, failure=options.get("failure_reward")
        )
    view = ACDModule(2, 1, values="returns", chunk=2, n_step=3, gamma=0.9, **SMALL).view()
    assert view == Outcomes(returns=0.9, chunk=2, n_step=3, gamma=0.9)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"threshold": 1.0, "positive_share": 0.3}, "give one of them"),
        ({"positive_share": 1.0}, "positive_share is 1.0"),
        ({"values": "returns", "labels": "precomputed", "critic": "x"}, "no critics that could"),
        ({"values": "returns", "act_mode": "acd_f"}, "act_mode 'acd_f' needs a Q"),
        ({"values": "returns", "guidance": "classifier"}, "guidance 'classifier' needs a Q"),
        ({"values": "returns", "return_bins": 1}, "return_bins is 1"),
    ],
)
def test_what_cannot_be_together_is_refused(options, line):
    with pytest.raises(ConfigError, match=line):
        ACDModule(2, 1, **SMALL, **options)


def test_values_without_a_q_choose_nothing():
    module = ACDModule(2, 1, values="returns", **SMALL)
    with pytest.raises(ConfigError, match="act_mode 'acd_f' needs a Q"):
        module.policy(act_mode="acd_f")
    with pytest.raises(ConfigError, match="no Q, so no advantages of single actions"):
        module.advantages(torch.zeros(1, 2), torch.zeros(1, 1))


def words(options):
    return [word for option in options.split() for word in (f"--{option}").split("=", 1)]


RETURNS = "model.init_args.values=returns model.init_args.hidden=[8] model.init_args.width=8"
RETURNS += " model.init_args.blocks=1"


def test_values_of_returns_are_no_critics_for_another(lit, d4rl_file, capsys):
    assert lit("--checkpoint.dirpath", "run", *words(RETURNS), module="ACDModule") == 0
    labels = "model.init_args.labels=precomputed model.init_args.critic=run/last.ckpt"
    small = RETURNS.split(" ", 1)[1]
    capsys.readouterr()
    assert (
        lit("--checkpoint.dirpath", "other", *words(f"{small} {labels}"), module="ACDModule") == 2
    )
    line = capsys.readouterr().err
    assert "run/last.ckpt has values of returns and no Q" in line and line.count("\n") == 1
    view = ("--data.init_args.view", "Transitions")
    assert lit("--checkpoint.dirpath", "third", *words(RETURNS), *view, module="ACDModule") == 2
    line = capsys.readouterr().err
    assert "the view gives none: leave the view to the model" in line and line.count("\n") == 1


def demonstrations():
    """Episodes of two steps, of two modes alike often, of which that to the right succeeds.

    The second action is the first one's opposite. A step earns −1, the last one of a success 0; a
    failure runs out of time.
    """
    random = np.random.default_rng(0)
    right = np.arange(400) % 2 == 0
    modes = np.where(right, 0.6, -0.6)[:, None] * [1.0, -1.0] + 0.03 * random.normal(size=(400, 2))
    last = np.tile([False, True], 400)
    columns = {
        "observations": (last[:, None] + 0.1 * random.normal(size=(800, 2))).astype(np.float32),
        "actions": modes.reshape(-1, 1).astype(np.float32),
        "terminals": last & right.repeat(2),
        "timeouts": last & ~right.repeat(2),
        "rewards": (last & right.repeat(2)).astype(np.float32) - 1.0,
    }
    return OfflineDataset(columns, DatasetSpec("modes", observation_dim=2, action_dim=1))


@pytest.fixture(
    scope="module", params=[("episode", {}), ("n_step", {"positive_share": 0.4})], ids=str
)
def recap(request):
    """RECAP trained on demonstrations half of which are failures."""
    torch.manual_seed(0)
    lookahead, limit = request.param
    options = {"values": "returns", "lookahead": lookahead, "failure_reward": -9.0, "gamma": 0.9}
    options |= {"condition": "positive", "drop_probability": 0.3, "chunk": 2, "omega": 1.0, **limit}
    nets = {"width": 32, "blocks": 1, "hidden": (16,), "dropout": 0.0, "actor_ema_rate": 0.02}
    drawing = {"diffusion_steps": 10, "clipping": "estimate", "variance": "posterior"}
    module = ACDModule(2, 1, **options, **nets, **drawing)
    bound = module.view().bind(demonstrations())
    module.critics.fit(bound.returns(), module.failure_reward)
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    draws = torch.Generator().manual_seed(0)
    with unchecked():
        for step in range(450):
            index = bound.rows[torch.randint(len(bound.rows), (128,), generator=draws)]
            module.noise = ShardedGenerator(0, step)
            optimizer.zero_grad()
            sum(module.losses(bound.batch(index)).values()).backward()
            optimizer.step()
            module.after_step()
    return module.eval()


def test_of_two_modes_of_which_one_fails_recap_takes_the_other(recap):
    # successes are worth −1 + 0.9 · 0, failures −1 + 0.9 (−1 − 9), half of the episodes each
    assert recap.critics.ends.tolist() == pytest.approx([-10.0, 0.0])
    assert recap.critics.value(torch.zeros(1, 2)).item() == pytest.approx(-5.5, abs=1.0)

    def to_the_right(**options):
        torch.manual_seed(0)
        policy = recap.policy(**options)
        policy.reset()
        start = np.zeros((300, 2), np.float32)
        one, two = policy.act(start), policy.act(start)  # the chunk's, whatever is seen then
        assert (np.sign(one) == -np.sign(two)).mean() > 0.95
        return (one > 0).mean(), (np.abs(np.abs(one) - 0.6) < 0.25).mean()

    assert min(to_the_right()) > 0.97
    assert min(to_the_right(omega=0.0)) > 0.93
    share, near = to_the_right(omega=-1.0)
    assert 0.33 < share < 0.67 and near > 0.7
    assert to_the_right(omega=0.0, advantage=-1.0)[0] < 0.35
