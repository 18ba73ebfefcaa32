"""Episodes that are made anew in the project's simulators, by their seeds and their actions."""

from __future__ import annotations

import numpy as np
import pytest

from lit_offrl.callbacks.own_steps import _OwnEpisode
from lit_offrl.collecting.exploration import Exploration
from lit_offrl.datasets.replay import Replay
from lit_offrl.evaluation.envs import make_env


@pytest.mark.parametrize(
    "env_id",
    [
        "HopperBulletEnv-v0",
        "AntBulletEnv-v0",
        "lit_offrl/antmaze-umaze-v2",
        "lit_offrl/maze2d-umaze-v1",
        "lit_offrl/mountain-car-v0",
    ],
)
def test_an_episode_made_anew_goes_on_as_the_unbroken_one(env_id):
    """The steps after it, too, whose contacts and warm starts no observation shows."""

    def begin(replay):
        env = make_env(env_id)
        explore = Exploration(env.action_space, noise=0.1, hold=3.0, seed=9)
        return _OwnEpisode(2, env, 11, explore, replay)

    def go_on(episode, number):
        for _ in range(number):
            episode.draws = episode.length < 2
            episode.step(np.float32(0.3 * np.sin(np.arange(size) + episode.length)))
            assert not episode.done

    probe = make_env(env_id)
    (width,), (size,) = probe.observation_space.shape, probe.action_space.shape
    probe.close()
    unbroken, cut = Replay(30, width, size), Replay(30, width, size)
    whole = begin(unbroken)
    go_on(whole, 5)
    for name, column in cut.columns.items():
        column[:5] = unbroken.columns[name][:5]
    cut.length = 5
    again = begin(cut)
    assert again.repeat(2)
    for episode in (whole, again):
        go_on(episode, 3)
        episode.close()
    for name, column in cut.columns.items():
        np.testing.assert_array_equal(column, unbroken.columns[name], name)

    cut.columns["next_observations"][1] += 1e-6
    broken = begin(cut)
    assert not broken.repeat(2)
    broken.close()
