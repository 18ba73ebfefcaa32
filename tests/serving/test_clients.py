"""A policy for many clients: what one is told never shows in what another does."""

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.modules import DecisionTransformerModule
from lit_offrl.modules.policies import NetworkPolicy
from lit_offrl.serving.clients import Clients, Step, StepRefusal


class Counting:
    """Acts by the number of steps since the reset, the goals, and the rewards until now."""

    def __init__(self):
        self.steps = self.goals = self.earned = None

    def reset(self, mask=None):
        if mask is None:
            self.steps = None
        else:
            self.steps[mask] = 0

    def aim(self, goals):
        self.goals = goals

    def earn(self, rewards):
        self.earned = self.earned + rewards

    def act(self, observations):
        if self.steps is None:
            self.steps, self.earned = np.zeros(len(observations)), np.zeros(len(observations))
        if self.goals is not None and self.goals.shape[1] != 1:
            raise ConfigError("the goal has one number.")
        self.steps += 1
        goals = np.zeros(len(observations)) if self.goals is None else self.goals[:, 0]
        return np.stack([self.steps, goals, self.earned, observations[:, 0]], 1)


class Time:
    now = 0.0

    def __call__(self):
        return self.now


def rows(*numbers):
    return np.array(numbers, np.float32)[:, None]


def act(clients, *numbers, **told):
    (found,) = clients.act([Step(observations=rows(*numbers), **told)])
    return found if isinstance(found, Exception) else found.tolist()


def test_each_client_has_its_own_steps_goals_and_rewards():
    clients = Clients(Counting)
    assert clients.remembers and clients.takes_goals and clients.takes_rewards
    begin = {"reset": True, "goals": rows(7)}
    assert act(clients, 5, client="a", **begin) == [[1, 7, 0, 5]]
    assert act(clients, 6, 9, client="b", reset=True) == [[1, 0, 0, 6], [1, 0, 0, 9]]
    assert act(clients, 5, client="a", rewards=np.array([2.0])) == [[2, 7, 2, 5]]
    some = {"reset": np.array([False, True]), "rewards": np.array([1.0, 3.0])}
    assert act(clients, 6, 9, client="b", **some) == [[2, 0, 1, 6], [1, 0, 3, 9]]
    assert act(clients, 4, client="a", rewards=np.array([0.5])) == [[3, 7, 2.5, 4]]
    # anew, with another number of rows and no goals: nothing of the episode before is left
    assert act(clients, 1, 2, client="a", reset=True) == [[1, 0, 0, 1], [1, 0, 0, 2]]
    assert len(clients) == 2


def test_a_refused_step_changes_nothing_and_a_failed_one_forgets_the_client():
    clients = Clients(Counting)
    act(clients, 5, client="a", reset=True)
    for told, line in (
        ({}, "give a 'client'"),
        ({"client": "b"}, "'b' is not known"),
        ({"client": "a"}, "give 'rewards'"),
    ):
        assert line in str(act(clients, 5, **told))
    assert "2 rows, and client 'a' had 1" in str(act(clients, 5, 6, client="a"))
    assert act(clients, 5, client="a", rewards=np.array([1.0])) == [[2, 0, 1, 5]]
    failed = act(clients, 5, client="a", reset=True, goals=np.zeros((1, 2)))
    assert isinstance(failed, ConfigError) and len(clients) == 0
    assert "'a' is not known" in str(act(clients, 5, client="a"))


def test_clients_are_bounded_and_those_that_are_idle_make_room():
    time = Time()
    clients = Clients(Counting, most=2, idle_seconds=10, clock=time)
    for time.now, name in ((0, "a"), (6, "b")):
        act(clients, 1, client=name, reset=True)
    refusal = act(clients, 1, client="c", reset=True)
    assert isinstance(refusal, StepRefusal) and refusal.status == 503
    time.now = 11  # "a" was idle for 11 s, "b" for 5
    assert act(clients, 1, client="c", reset=True) == [[1, 0, 0, 1]]
    assert act(clients, 1, client="b", rewards=np.zeros(1)) == [[2, 0, 0, 1]]
    assert act(clients, 1, client="a", rewards=np.zeros(1)).status == 409


def test_steps_of_a_memoryless_policy_are_answered_by_one_call():
    calls = []

    def double(observations):
        calls.append(len(observations))
        return 2 * observations

    clients = Clients(lambda: NetworkPolicy(double, torch.device("cpu")))
    assert not clients.remembers
    asked = [rows(1, 2), rows(3), rows(np.nan), rows(4, 5)]
    found = clients.act([Step(observations=each) for each in asked])
    assert calls == [6]
    assert [each.tolist() for each in (found[0], found[1], found[3])] == [
        [[2], [4]],
        [[6]],
        [[8], [10]],
    ]
    assert "not finite" in str(found[2])


def test_a_return_conditioned_policy_does_as_one_of_its_own_would():
    torch.manual_seed(0)
    module = DecisionTransformerModule(3, 2, [-1.0] * 2, [1.0] * 2, context=4, target_return=5.0)
    module.eval()
    clients, random = Clients(module.policy), np.random.default_rng(0)
    alone = {name: module.policy() for name in "ab"}
    rewards = None
    for step in range(6):
        for number, (name, policy) in enumerate(alone.items(), start=1):
            observations = random.normal(size=(number, 3)).astype(np.float32)
            rewards = random.normal(size=number).astype(np.float32)
            told = {"reset": True} if step == 0 else {"rewards": rewards}
            (found,) = clients.act([Step(observations=observations, client=name, **told)])
            if step > 0:
                policy.earn(rewards)
            assert found == pytest.approx(policy.act(observations), abs=1e-6)
