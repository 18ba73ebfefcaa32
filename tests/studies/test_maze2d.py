"""Maze2d's study on models that draw known states."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.envs.mazes import MAZE2D
from lit_offrl.modules.base import CHECKPOINT_KEY
from lit_offrl.modules.checkpoints import read_checkpoint
from lit_offrl.studies import maze2d
from lit_offrl.studies.inputs import load_data

CPU = torch.device("cpu")


@pytest.fixture
def compare(save, maze_file):
    """Build a comparison whose model draws what ``draw(comparison, offsets, policy)`` says."""

    def build(draw=None, **changes):
        options = maze2d.Maze2dStudy(
            ckpt_path=save(4, 2), data=str(maze_file(**changes)), samples=90, seed=0, device=CPU
        )
        comparison = maze2d.Comparison(options)

        def sample(observations, offsets, *, policy, seed):
            states = draw(comparison, offsets[:, 0].numpy(), policy.numpy())
            return torch.from_numpy(states)[:, None], torch.zeros(len(states), 1) > 0

        if draw is not None:
            comparison.module.sample_future = sample
        return comparison

    return build


def from_data(comparison, offsets, policy):
    """The data's own states at these offsets, of the policy's episodes in turn."""
    turn = np.arange(len(policy)) % 4
    episodes = [
        np.flatnonzero(comparison.of_episode == one)[number]
        for one, number in zip(policy, turn, strict=True)
    ]
    return comparison.data.columns["observations"][comparison.data.episodes[episodes, 0] + offsets]


def test_perfect_samples_reach_the_ceiling_and_the_floor(compare):
    found = maze2d.separation(compare(from_data), 0.9)
    accuracy = found["accuracy"]
    assert accuracy["samples"] == pytest.approx(accuracy["held_out"], abs=0.12)
    assert accuracy["held_out"] > 0.6 and accuracy["chance"] == pytest.approx(1 / 3)
    for row in found["by_policy"]:
        assert row["distance"] == pytest.approx(row["floor"], abs=0.1)
        assert row["ceiling"] > 0.3 and row["in_walls"] == 0 and row["episodes"] == 4


def test_samples_of_another_policy_are_seen(compare):
    def shifted(comparison, offsets, policy):
        return from_data(comparison, offsets, (policy + 1) % 3)

    right, wrong = (maze2d.separation(compare(draw), 0.9) for draw in (from_data, shifted))
    assert wrong["accuracy"]["samples"] < 1 / 3 < right["accuracy"]["samples"]
    for row in wrong["by_policy"]:
        assert row["distance"] > 0.8 * row["ceiling"]


def test_samples_that_know_no_policy_are_told_by_chance(compare):
    random = np.random.default_rng(0)

    def mixed(comparison, offsets, policy):
        return from_data(comparison, offsets, random.integers(0, 3, len(policy)))

    found = maze2d.separation(compare(mixed), 0.9)["accuracy"]
    assert found["samples"] == pytest.approx(1 / 3, abs=0.09)


def test_the_way_grows_with_gamma_and_is_that_of_the_data(compare):
    rows = maze2d.reach(compare(from_data), [0.5, 0.9])
    near, far = (row["data"]["way_by_policy"] for row in rows)
    # policy 0 stays; policy 2 does half a cell a step, of offsets that are at most 9 steps
    assert near[0] < 0.05 and far[0] < 0.05 and far[2] > near[2] > near[1] - 0.1 > 0.5
    for row in rows:
        assert row["samples"]["way"] == pytest.approx(row["data"]["way"], abs=0.2)
        offsets = np.concatenate([panel["offset"] for panel in row["data"]["panels"]])
        assert offsets.min() >= 1 and offsets.max() <= LAST
    truncated = sum(k * 0.5 ** (k - 1) for k in range(1, 10)) / sum(0.5**k for k in range(9))
    assert rows[0]["data"]["mean_offset"] == pytest.approx(truncated, abs=0.25)


LAST = 9  # an episode of 10 rows


def test_ways_are_measured_along_the_maze():
    maze = MAZE2D["umaze"]
    start = np.array([2.8, 0.8])  # the middle of (3, 1)
    places = np.array([[2.8, 0.8], [2.8, 1.1], [2.8, 2.8], [1.8, 2.8], [0.8, 0.8], [0.8, 0.5]])
    expected = [0, 0.3, 2, 3, 6, 6.3]  # (1, 1) is 2 cells away through the wall
    np.testing.assert_allclose(maze2d.way_from(maze, start, places), expected, atol=1e-9)
    cell, inside = maze2d.free_cells(maze, np.array([[2.8, 0.8], [1.8, 0.8], [2.29, 0.8]]))
    assert inside.tolist() == [True, False, False]
    assert maze.cells[cell[0]].tolist() == maze.cells[cell[2]].tolist() == [3, 1]


def test_mistakes_are_named(compare, save, maze_file):
    with pytest.raises(DatasetError, match="has no column 'policy', which this figure needs"):
        compare(policy=None)
    with pytest.raises(DatasetError, match="all rows are of one policy"):
        compare(policy=np.zeros(120, np.float32))
    with pytest.raises(DatasetError, match="'policy' changes within an episode, at row 1:"):
        compare(policy=np.arange(120, dtype=np.float32))
    with pytest.raises(ConfigError, match="is of 'Pendulum-v1'; this figure is of maze2d"):
        compare(env_id="Pendulum-v1")
    with pytest.raises(ConfigError, match="does not say what it was trained on: give --data"):
        load_data(None, save(4, 2), ("policy",))
    config = f"data:\n  init_args:\n    dataset: {maze_file()}\n"
    path = save(4, 2, config=config)
    assert len(load_data(None, path, ("policy",))) == 120


def test_data_of_another_maze_are_refused(save, maze_file):
    path, data = save(4, 2), str(maze_file())
    spec = load_data(data, path, ()).spec
    options = maze2d.Maze2dStudy(ckpt_path=path, data=data, samples=90, seed=0, device=CPU)
    checkpoint = read_checkpoint(path)
    for env_id in ("lit_offrl/maze2d-umaze-dense-v1", "lit_offrl/maze2d-large-v1"):
        checkpoint[CHECKPOINT_KEY]["spec"] = replace(spec, env_id=env_id).to_dict()
        torch.save(checkpoint, path)
        if "umaze" in env_id:  # other rewards of the same maze
            maze2d.Comparison(options)
            continue
        with pytest.raises(ConfigError, match="was trained on 'lit_offrl/maze2d-large-v1', and"):
            maze2d.Comparison(options)
