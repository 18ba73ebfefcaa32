import gymnasium
import numpy as np
import pytest
import torch

from lit_offrl.common.errors import EvaluationError
from lit_offrl.common.signals import Interrupted
from lit_offrl.evaluation.rollouts import rollout

GIVES: dict = {}  # what the next step of `Odd` gives instead of what is right


class Odd(gymnasium.Env):
    """Two observations, a reward of 1.5 a step; gives whatever a test wants."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        return GIVES.get("reset", (np.zeros(2), {}))

    def step(self, action):
        if "raises" in GIVES:
            raise GIVES["raises"]
        if "all" in GIVES:
            return GIVES["all"]
        usual = {"observation": np.zeros(2), "reward": 1.5, "terminated": False}
        usual |= {"truncated": False, "info": {}}
        return tuple(GIVES.get(name, value) for name, value in usual.items())


class Still:
    def reset(self, mask=None):
        pass

    def act(self, observations):
        return np.zeros((len(observations), 1), np.float32)


@pytest.fixture(autouse=True, scope="module")
def odd():
    gymnasium.register("Odd-v0", Odd, max_episode_steps=3)
    gymnasium.register("OddEndless-v0", Odd)
    yield
    for name in ("Odd-v0", "OddEndless-v0"):
        del gymnasium.registry[name]


@pytest.fixture
def roll(monkeypatch):
    def run(env_id="Odd-v0", **gives):
        options = {"max_episode_steps": 3} if env_id == "OddEndless-v0" else {}
        for name, value in gives.items():
            monkeypatch.setitem(GIVES, name, value)
        return rollout(Still(), env_id, episodes=1, seed=0, num_envs=1, **options)

    return run


@pytest.mark.parametrize(
    "reward",
    [1.5, np.array([1.5]), np.array([[1.5]]), np.array(1.5), np.float32(1.5), [1.5],
     torch.tensor(1.5), torch.tensor([1.5], requires_grad=True)],
)  # fmt: skip
def test_a_reward_that_is_an_array_of_one_number_is_that_number(roll, reward):
    assert roll(reward=reward).returns.tolist() == [4.5]


def test_a_truth_value_is_a_reward_of_one(roll):
    assert roll(reward=True).returns.tolist() == [3.0]
    assert roll(reward=np.bool_(False)).returns.tolist() == [0.0]


@pytest.mark.parametrize(
    "reward", [np.ones(2), [], None, np.nan, np.array([-np.inf]), "1.5", np.array(["1"]), 1j, {}]
)
def test_any_other_reward_is_one_line(roll, reward):
    with pytest.raises(
        EvaluationError, match=r"'Odd-v0' gave the reward .*one finite.*step 1 of an episode\)"
    ):
        roll(reward=reward)


@pytest.mark.parametrize("ends", [True, np.True_, np.array([True]), np.array([[1]]), 1, 1.0])
def test_flags_may_be_arrays_of_one(roll, ends):
    found = roll(terminated=ends, truncated=np.array([False]))
    assert found.lengths.tolist() == [1] and found.terminated.tolist() == [True]


@pytest.mark.parametrize("ends", [None, np.ones(2, bool), "yes", 0.5, np.nan])
@pytest.mark.parametrize("flag", ["terminated", "truncated"])
def test_any_other_flag_is_one_line(roll, flag, ends):
    with pytest.raises(EvaluationError, match=f"'Odd-v0' gave {flag} as .*: give True or False"):
        roll(**{flag: ends})


def test_observations_may_be_lists(roll):
    assert roll(observation=[0.0, 1], reset=([0.0, 0.0], None), info=None).returns == [4.5]


@pytest.mark.parametrize(
    ("observation", "said"),
    [
        (np.zeros(3), r"shape \(3,\) where its space has \(2,\)"),
        (np.zeros((1, 2)), r"shape \(1, 2\)"),
        ([0.0, np.nan], r"the observation \[0.0, nan\]: give \(2,\) finite"),
        ([[0.0], [1.0, 2.0]], "the observation"),
        ({"position": 1}, "the observation"),
        (None, "the observation None"),
        (["a", "b"], "the observation"),
    ],
)
@pytest.mark.parametrize("when", ["step 1", "its reset"])
def test_any_other_observation_is_one_line(roll, observation, said, when):
    gives = {"observation": observation} if when == "step 1" else {"reset": (observation, {})}
    with pytest.raises(EvaluationError, match=f"'Odd-v0' gave .*{said}.*at {when}"):
        roll(**gives)


@pytest.mark.parametrize("env_id", ["Odd-v0", "OddEndless-v0"])
def test_the_interface_of_the_old_gym_is_one_line(roll, env_id):
    with pytest.raises(EvaluationError, match="returns 4 values, as environments of the old gym"):
        roll(env_id, all=(np.zeros(2), 1.0, False, {}))
    with pytest.raises(EvaluationError, match=r"no \(observation, info\).*at its reset"):
        roll(env_id, reset=np.zeros(2))


def test_an_error_of_the_environments_own_names_file_and_line(roll):
    line = Odd.step.__code__.co_firstlineno + 2
    said = f"failed at step 1 of an episode: KeyError: 'x' .*test_strict.py, line {line}"
    with pytest.raises(EvaluationError, match=said):
        roll(raises=KeyError("x"))


def test_an_environment_ends_no_process(roll):
    """Exit code 0 after two steps would say that all went well."""
    with pytest.raises(EvaluationError, match="failed at step 1 of an episode: SystemExit: 0 "):
        roll(raises=SystemExit(0))
    with pytest.raises(Interrupted):  # which is one, and no mistake of the environment's
        roll(raises=Interrupted(15))


def test_without_a_step_limit_nothing_is_rolled_out():
    with pytest.raises(EvaluationError, match=r"'OddEndless-v0' has no step limit.*--max_episode"):
        rollout(Still(), "OddEndless-v0", episodes=1, seed=0)
