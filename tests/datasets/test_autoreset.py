"""Next observations that are the next episode's first make no transition, in any view."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_offrl.commands.datasets import main as datasets
from lit_offrl.datamodules import D4RLDataModule
from lit_offrl.datasets.hdf5 import read_hdf5, write_hdf5
from lit_offrl.datasets.views import FutureStates, Snippets, Transitions

EPISODES, STEPS = 20, 50
EPISODE, STEP = np.repeat(np.arange(EPISODES), STEPS), np.tile(np.arange(STEPS), EPISODES)
END = STEP == STEPS - 1


def columns(terminal=(), reset=range(EPISODES), **more):
    """As an auto-resetting vector environment returns them, in the episodes ``reset``."""
    observations = np.stack([EPISODE, STEP], 1).astype(np.float32)
    following = observations + np.float32([0, 1])
    rows = END & np.isin(EPISODE, list(reset))
    following[rows] = np.roll(observations, -1, 0)[rows]
    terminals = END & np.isin(EPISODE, list(terminal))
    return {
        "observations": observations,
        "next_observations": following,
        "actions": np.random.default_rng(0).uniform(-1, 1, (len(STEP), 1)).astype(np.float32),
        "rewards": np.arange(len(STEP), dtype=np.float32),
        "terminals": terminals,
        "timeouts": END & ~terminals,
        **more,
    }


@pytest.fixture
def read(tmp_path, raw):
    return lambda attributes=None, **options: read_hdf5(
        raw(tmp_path / "x.hdf5", columns(**options), **(attributes or {}))
    )


def batch_of(view, dataset, uniform=0.999999):
    bound = view.bind(dataset)
    rows = bound.spans.all()
    uniforms = np.full((len(rows), bound.num_uniforms), uniform)
    return bound.batch(rows, torch.from_numpy(uniforms))


def crossings(batch):
    observations = batch.observations
    if observations.ndim == 3:
        observations = observations[:, 0]
    return int((observations[:, 0] != batch.next_observations[:, 0]).sum())


@pytest.mark.parametrize("terminal", [(), range(10), range(EPISODES)])
def test_no_view_leads_into_another_episode(read, terminal):
    data = read(terminal=terminal)
    assert "of 20 episodes is the next episode's first" in data.spec.notices[0]
    assert len(data) == 1000 and data.episode_returns().sum() == data.columns["rewards"].sum()
    rows = 1000 - (EPISODES - len(terminal))
    batch = batch_of(Transitions(), data)
    assert len(batch.terminals) == rows and crossings(batch) == 0
    for ends in ("absorbing", "truncate"):
        batch = batch_of(FutureStates(gamma=0.99, terminals=ends), data)
        assert crossings(batch) == 0
        reached = batch.future_observations[~batch.future_absorbed]
        begun = batch.observations[~batch.future_absorbed]
        assert (reached[:, 0] == begun[:, 0]).all() and (reached[:, 1] > begun[:, 1]).all()
    assert len(batch.terminals) == 1000 - EPISODES  # truncated at terminals as well
    for partial in ("terminal", "all", "none"):
        batch = batch_of(Snippets(horizon=5, partial=partial), data)
        assert crossings(batch) == 0
    hindsight = batch_of(Snippets(horizon=5, goals="hindsight"), data)
    assert (hindsight.goals[:, 0] == hindsight.observations[:, 0, 0]).all()


def test_episodes_with_their_final_observation_keep_it(read):
    data = read(reset=range(5))
    assert "of 5 episodes" in data.spec.notices[0]
    batch = batch_of(Transitions(), data)
    assert len(batch.terminals) == 995 and crossings(batch) == 0
    chosen = data.take_episodes([7, 2, 3])  # other neighbours than on disk
    batch = batch_of(Transitions(), chosen)
    assert len(batch.terminals) == 50 + 49 + 49 and crossings(batch) == 0


def test_check_and_fit_say_so_and_what_is_written_stays_marked(tmp_path, raw, capsys):
    path = raw(tmp_path / "x.hdf5", columns(), action_low=-1.0, action_high=1.0)
    expected = (
        "next_observations of the last row of 20 episodes is the next episode's first observation "
        "(an auto-reset): leave the column out, or store the final observation"
    )
    assert datasets(["check", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"warning: {expected}" in said and "1 warning" in said
    for _ in range(2):  # the second time from the cache
        data = D4RLDataModule(str(path), cache_dir=str(tmp_path / "cache"))
        data.setup("fit")
        assert expected in capsys.readouterr().out
        assert len(data.train_view().spans) == 18 * 49
    again = read_hdf5(write_hdf5(tmp_path / "y.hdf5", data.dataset.columns))
    assert again.columns["next_unknown"].sum() == 20
    assert len(batch_of(Transitions(), again).terminals) == 980


def test_what_only_looks_like_it_is_left_alone(read):
    assert read(reset=()).spec.notices == ()
    # D4RL's maze runs go on where the goal changes: the next row is the next state
    maze = read({"env_id": "maze2d-umaze-v1"}, observations=np.tile(STEP[:, None], (1, 4)) * 1.0,
                next_observations=np.roll(np.tile(STEP[:, None], (1, 4)), -1, 0) * 1.0,
                actions=np.zeros((len(STEP), 2)))  # fmt: skip
    assert maze.spec.notices == () and "next_unknown" not in maze.columns
    # an environment that begins in one state, and ended there now and then
    one = np.where(STEP == 0, 0, EPISODE * 100 + STEP)[:, None].astype(np.float32)
    following = np.roll(one, -1, 0)
    following[END & (EPISODE > 2)] = -1
    assert read(observations=one, next_observations=following).spec.notices == ()
    # but where all ends do so, that state is a reset
    reset = read(observations=one, next_observations=np.roll(one, -1, 0))
    assert "of 20 episodes" in reset.spec.notices[0]


def test_a_last_episode_that_is_cut_off_was_not_reset(read):
    data = read(timeouts=END & (EPISODE < EPISODES - 1), reset=range(EPISODES - 1))
    assert data.cut_off and "of 19 episodes" in data.spec.notices[0]
    assert len(batch_of(Transitions(), data).terminals) == 981
