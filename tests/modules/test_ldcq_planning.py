"""LDCP in made worlds, where the best skill is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.modules import load_module
from lit_offrl.modules.ldcq import planning
from lit_offrl.modules.ldcq.options import PlanOptions
from lit_offrl.modules.ldcq.planning import Planner

STEPS = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [2.5, 0.0]])
"""The five skills that the prior knows everywhere: unit steps, and a long one to the right."""


def plan(goal, state=(0.0, 0.0), world=torch.add, **options):
    planner = Planner(
        lambda states, number: STEPS[:number].expand(len(states), -1, -1),
        world,
        lambda states: states[..., :2],
        PlanOptions(**{"num_latents": 5, **options}),
    )
    states, goals = (torch.tensor(x, dtype=torch.float32).view(-1, 2) for x in (state, goal))
    latents, gap = planner.choose(states, goals)
    return latents.tolist(), gap.tolist()


def test_one_skill_is_the_one_that_ends_nearest_the_goal():
    assert plan((0.0, 5.0), depth=1) == ([[0.0, 1.0]], [4.0])
    assert plan((3.0, 0.4), depth=1)[0] == [[2.5, 0.0]]


def test_two_skills_are_planned_together():
    """Two steps to (1, 1): either may come first; the long step alone would come too far."""
    latents, gap = plan((1.0, 1.0))
    assert latents[0] in ([1.0, 0.0], [0.0, 1.0]) and gap == [0.0]
    assert plan((5.0, 0.0)) == ([[2.5, 0.0]], [0.0])


def test_each_environment_has_its_own_goal_and_state():
    latents, gap = plan([[9.0, 5.0], [0.0, -9.0]], state=[[4.0, 5.0], [0.0, -7.0]])
    assert latents == [[2.5, 0.0], [0.0, -1.0]] and gap == [0.0, 0.0]


def wall(states, latents):
    """Nothing moves on into x > 2 except from y ≥ 1: the straight way is a trap."""
    after = states + latents
    shut = (after[:, 0] > 2) & (states[:, 1] < 1)
    return torch.where(shut[:, None], states, after)


@pytest.mark.parametrize("seed", range(5))
def test_exhaustive_search_is_never_worse_than_greedy(seed):
    random = np.random.default_rng(seed)
    goals = random.uniform(-4, 4, (20, 2))
    greedy, exhaustive = (
        torch.tensor(plan(goals, [[0.0, 0.0]] * 20, wall, depth=3, search=search)[1])
        for search in ("greedy", "exhaustive")
    )
    assert (exhaustive <= greedy + 1e-6).all()


def test_exhaustive_search_sees_the_way_round():
    """To (3.5, 0): up first, then far to the right, then down; greedily nobody goes up twice."""
    start, goal = (1.0, 0.0), (3.5, 0.0)
    exhaustive = plan(goal, start, wall, depth=3)
    greedy = plan(goal, start, wall, depth=3, search="greedy")
    assert exhaustive == ([[0.0, 1.0]], [0.0])
    assert greedy[1][0] >= exhaustive[1][0]


def test_at_depth_two_both_searches_are_the_same():
    goals = np.random.default_rng(0).uniform(-4, 4, (30, 2))
    states = [[0.0, 0.0]] * 30
    assert plan(goals, states, wall) == plan(goals, states, wall, search="greedy")


@pytest.mark.parametrize("scored", ["last", "nearest"])
@pytest.mark.parametrize("search", ["exhaustive", "greedy"])
def test_however_many_are_tried_at_once_the_plan_is_the_same(monkeypatch, search, scored):
    goals = np.random.default_rng(1).uniform(-4, 4, (7, 2))
    options = {"depth": 3, "search": search, "scored": scored}
    whole = plan(goals, [[0.0, 0.0]] * 7, wall, **options)
    for chains in (1, 15, 40):
        monkeypatch.setattr(planning, "CHAINS", chains)
        assert plan(goals, [[0.0, 0.0]] * 7, wall, **options) == whole


def test_the_nearest_state_on_the_way_may_count():
    """The goal is one step away: of two steps the last always leaves it again."""
    assert plan((1.0, 0.0), num_latents=4)[1] == [1.0]  # two unit steps end beside it
    assert plan((1.0, 0.0), num_latents=4, scored="nearest") == ([[1.0, 0.0]], [0.0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"search": "wide"}, "search is 'wide'"),
        ({"scored": "first"}, "scored is 'first'"),
        ({"depth": 0}, "depth is 0: give at least 1"),
        ({"num_latents": 500, "depth": 3}, "125,000,000 ends .* greedy, which tries 500,500"),
    ],
)
def test_wrong_options_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        plan((0.0, 0.0), **options)


def test_the_second_stage_plans_in_the_coordinates_of_the_data(stages, monkeypatch):
    module = load_module(stages(2))
    monkeypatch.setattr(
        module.prior, "sample",
        lambda states, number, how: STEPS[:number].expand(len(states), -1, -1),
    )  # fmt: skip
    first = module.stage1
    first.normalizer.fit(torch.tensor([[-10.0, -20.0], [10.0, 20.0]]))
    first.normalizes = True
    scale = torch.tensor([10.0, 20.0])  # of the made world's states in the data's coordinates
    monkeypatch.setattr(first.world, "forward", lambda states, latents: states + latents / scale)
    chosen = []
    monkeypatch.setattr(
        first, "decode",
        lambda rows, latents, sample: chosen.append((rows.tolist(), latents.tolist())) or rows,
    )  # fmt: skip
    policy = module.policy(plan=True, num_latents=5, goal=[3.5, 0.0])
    policy.act(np.array([[1.0, 0.0], [3.5, 2.0]], np.float32))
    (rows, latents), = chosen  # fmt: skip
    assert rows == [[1.0, 0.0], [3.5, 2.0]]
    assert latents[0] in ([1.0, 0.0], [2.5, 0.0]) and latents[1] == [0.0, -1.0]
