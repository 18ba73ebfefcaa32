"""LDCQ's first stage: what its losses count, on random walks, with categories, and as a policy."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.distributions import Normal

from lit_offrl.__main__ import main
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import Snippets
from lit_offrl.modules import LDCQStage1Module, load_module
from lit_offrl.modules.skill_policy import SkillPolicy

SMALL = {"horizon": 4, "width": 16, "gru_layers": 1, "latent_dim": 2}


@pytest.fixture
def module(columns):
    torch.manual_seed(0)
    built = LDCQStage1Module(2, 1, (-1.0,), (1.0,), normalize=True, **SMALL)
    built.normalizer.fit(columns()["observations"])
    return built


@pytest.fixture
def batch(module, columns):
    view = module.view().bind(OfflineDataset.from_columns(columns()))
    return view.batch(view.rows)


def losses(module, batch):
    module.noise = ShardedGenerator(3)
    return module.losses(batch)


def test_losses_are_those_of_the_real_steps_alone(module, batch):
    assert not batch.mask.all()  # snippets that true terminals cut short
    found = losses(module, batch)
    mean, std = module.posterior(batch)
    latents = mean + std * ShardedGenerator(3).normal(mean.shape)
    states = module.normalizer.normalize(batch.observations)
    total = 0.0
    for row, steps in enumerate(batch.mask.sum(1)):
        own = latents[row].expand(int(steps), -1)
        taken = batch.actions[row, :steps]
        total += module.decoder.log_prob(states[row, :steps], own, taken).sum()
    torch.testing.assert_close(found["actions"], -total / len(batch.mask))

    prior = Normal(*module.prior(states[:, 0]))
    divergence = torch.distributions.kl_divergence(Normal(mean, std), prior).sum(1).mean()
    torch.testing.assert_close(found["kl"], 0.05 * divergence)
    reached = module.normalizer.normalize(batch.next_observations)
    error = (module.world(states[:, 0], latents) - reached).square().mean()
    torch.testing.assert_close(found["world"], error)

    padding = ~batch.mask[..., None]
    rubbish = batch._replace(
        observations=batch.observations.masked_fill(padding, 99.0),
        actions=batch.actions.masked_fill(padding, -7.0),
    )
    for name, value in losses(module, rubbish).items():
        torch.testing.assert_close(value, found[name], rtol=0, atol=0)


def test_the_world_model_moves_no_latent(module, batch):
    losses(module, batch)["world"].backward()
    moved = {name for name, part in module.named_parameters() if part.grad is not None}
    assert moved and all(name.startswith("world.") for name in moved)


def test_bad_options_and_views_are_refused(module, columns):
    for options in ({"horizon": 0}, {"gru_layers": 0}, {"beta": -1.0}, {"num_actions": 1}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            LDCQStage1Module(2, 1, **{**SMALL, **options})
    with pytest.raises(ConfigError, match="2 action columns"):
        LDCQStage1Module(2, 2, num_actions=3)
    view = Snippets(horizon=3).bind(OfflineDataset.from_columns(columns()))
    with pytest.raises(ConfigError, match=r"horizon 4.*data\.init_args\.view"):
        module.losses(view.batch(view.rows))


# ---- acting ------------------------------------------------------------------------------------


def test_a_skill_lasts_its_steps_and_no_longer_than_its_episode():
    asked = []

    def choose(rows):
        asked.append(rows[:, 0].tolist())
        return rows * 10

    policy = SkillPolicy(choose, lambda rows, latents: latents, 3, torch.device("cpu"))
    steps = [np.array([[t], [100 + t]], np.float32) for t in range(6)]
    policy.reset(np.array([True, True]))
    acted = [policy.act(rows)[:, 0].tolist() for rows in steps[:2]]
    policy.reset(np.array([False, True]))  # the second environment begins anew after 2 steps
    acted += [policy.act(rows)[:, 0].tolist() for rows in steps[2:]]
    assert asked == [[0, 100], [102], [3], [105]]
    assert [first for first, _ in acted] == [0, 0, 0, 30, 30, 30]
    assert [second for _, second in acted] == [1000, 1000, 1020, 1020, 1020, 1050]
    policy.reset()
    policy.act(steps[0][:1])
    assert asked[-1] == [0]
    with pytest.raises(ConfigError, match="execute_steps"):
        LDCQStage1Module(2, 1, width=8).policy(execute_steps=0)


def test_its_policy_decodes_latents_of_the_prior(module, batch):
    rows = batch.observations[:, 0]
    seen = module.normalize(rows)
    acted = module.policy(sample_latents=False).act(rows.numpy())
    mean = module.decoder.act(seen, module.prior(seen)[0])
    torch.testing.assert_close(torch.from_numpy(acted), mean)
    drawn = module.policy(sample_actions=True).act(rows.numpy())
    assert drawn.shape == acted.shape and np.abs(drawn).max() <= 1.0
    assert not np.allclose(drawn, acted)


# ---- data --------------------------------------------------------------------------------------


def train(module, data, steps):
    """Plain steps of Adam on snippets drawn at random: a Trainer takes longer than these."""
    module.normalizer.fit(data.column("observations"))
    view = module.view().bind(data)
    optimizer = torch.optim.Adam(module.parameters(), lr=module.learning_rate)
    for step in range(steps):
        module.noise = ShardedGenerator(0, step)
        batch = view.batch(view.rows[module.noise.integers(0, len(view.rows), (128,))])
        optimizer.zero_grad()
        torch.stack(list(module.losses(batch).values())).sum().backward()
        optimizer.step()
    return view.batch(view.rows[:2000])


def read(path, rows):
    with h5py.File(path) as file:
        names = ("observations", "actions", "terminals", "timeouts")
        return OfflineDataset.from_columns({name: file[name][:rows] for name in names})


def test_it_reproduces_the_steps_of_a_random_walk(folder):
    walk = ["--env", "lit_offrl/random-walk-v0", "--planner", "steps", "--steps", "20000"]
    assert main(["collect", *walk, "--output", "walk.hdf5"]) == 0
    torch.manual_seed(0)
    small = {"width": 32, "gru_layers": 1, "latent_dim": 2, "learning_rate": 5e-3}
    module = LDCQStage1Module(1, 1, (-1.0,), (1.0,), horizon=1, **small)
    batch = train(module, read("walk.hdf5", 20_000), 200)
    latents, _ = module.posterior(batch)
    first = module.decode(batch.observations[:, 0], latents)
    taken = batch.actions[:, 0]
    assert (first.sign() == taken.sign()).float().mean() > 0.95
    assert (first - taken).abs().mean() < 0.1  # of steps of 0.8 to 1
    reached = module.world(module.normalize(batch.observations[:, 0]), latents)
    error = (module.denormalize(reached) - batch.next_observations).square().mean()
    still = (batch.observations[:, 0] - batch.next_observations).square().mean()
    assert error < 0.1 * still


@pytest.fixture
def categories(d4rl_file, folder):
    """Write the small dataset with one of three actions, which the observation decides."""
    with h5py.File(d4rl_file) as source, h5py.File("categories.hdf5", "w") as file:
        for name in ("observations", "rewards", "terminals", "timeouts"):
            file[name] = source[name][:]
        last = source["observations"][:, 2]
        file["actions"] = ((last > -0.5).astype(np.int64) + (last > 0.5))[:, None]
    return "categories.hdf5"


def test_discrete_actions_are_learnt(categories):
    torch.manual_seed(0)
    small = {**SMALL, "width": 32, "horizon": 2, "learning_rate": 5e-3}
    module = LDCQStage1Module(3, 1, num_actions=3, **small)
    data = read(categories, 600)
    train(module, data, 100)
    acted = module.policy(execute_steps=1).act(data.column("observations"))
    assert set(np.unique(acted)) == {0.0, 1.0, 2.0}
    assert (acted == data.column("actions")).mean() > 0.8


def test_discrete_actions_from_the_command_line(categories, capsys):
    fit = ["fit", "--model", "LDCQStage1Module", "--data", "D4RLDataModule"]
    fit += ["--data.init_args.dataset", categories, "--data.init_args.batch_size", "64"]
    fit += ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.max_steps", "3"]
    fit += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    for name, value in SMALL.items():
        fit += [f"--model.init_args.{name}", str(value)]
    actions = "--model.init_args.num_actions"
    assert main([*fit, "--checkpoint.dirpath", "run", actions, "3"]) == 0
    acted = load_module("run/last.ckpt").policy(sample_actions=True).act(np.zeros((50, 3)))
    assert acted.shape == (50, 1) and set(np.unique(acted)) <= {0.0, 1.0, 2.0}

    capsys.readouterr()
    assert main([*fit, actions, "2"]) == 2
    said = capsys.readouterr().err.strip()
    assert "'actions' has 2.0 in row" in said and len(said.splitlines()) == 1


def test_discrete_actions_are_scored(folder, capsys):
    random = np.random.default_rng(0)
    with h5py.File("cart.hdf5", "w") as file:
        file["observations"] = random.normal(size=(200, 4)).astype(np.float32)
        file["actions"] = random.integers(2, size=(200, 1))
        file["rewards"] = np.ones(200, np.float32)
        file["terminals"] = np.arange(200) % 20 == 19
    fit = ["fit", "--model", "LDCQStage1Module", "--data", "D4RLDataModule"]
    fit += ["--data.init_args.dataset", "cart.hdf5", "--trainer.max_steps", "2"]
    fit += ["--data.init_args.batch_size", "16", "--model.init_args.num_actions", "2"]
    fit += ["--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    fit += ["--trainer.enable_progress_bar", "false", "--checkpoint.dirpath", "run"]
    for name, value in SMALL.items():
        fit += [f"--model.init_args.{name}", str(value)]
    assert main(fit) == 0
    score = ["evaluate", "--ckpt_path", "run/last.ckpt", "--env", "CartPole-v1", "--episodes", "2"]
    assert main([*score, "--output", "score.json"]) == 0
    record = json.loads(Path("score.json").read_text())
    assert all(8 <= steps <= 500 for steps in record["lengths"])
    assert record["returns"] == record["lengths"]  # CartPole pays 1 a step


def test_later_stages_learn_from_the_snippets_that_the_first_one_does(stages):
    from lit_offrl.modules import LDCQStage2Module, LDCQStage3Module

    for partial in ("terminal", "all"):
        path = str(stages(partial=partial))
        second = LDCQStage2Module(2, 1, stage1=path, widths=(8, 4, 8), width=8)
        third = LDCQStage3Module(2, 1, stage1=path, prior="gaussian")
        views = [module.view() for module in (load_module(path), second, third)]
        assert [view.partial for view in views] == [partial] * 3
    with pytest.raises(ConfigError, match="partial is 'some'"):
        LDCQStage1Module(2, 1, partial="some", **SMALL)
