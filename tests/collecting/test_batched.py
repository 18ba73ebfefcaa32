"""Mountain Car's graded controllers and the random walk's steps: replays and known answers."""

import signal

import gymnasium
import h5py
import numpy as np
import pytest

from lit_offrl.collecting.graded import GradedCollection
from lit_offrl.commands.collect import main
from lit_offrl.commands.datasets import main as check
from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.datamodules import D4RLDataModule
from lit_offrl.evaluation.envs import make_env
from lit_offrl.evaluation.recorder import episode_returns

CAR, WALK = "lit_offrl/mountain-car-v0", "lit_offrl/random-walk-v0"


def collect(path, planner, steps, *more, env=None):
    env = env or (CAR if planner == "graded" else WALK)
    argv = ["--env", env, "--planner", planner, "--steps", str(steps), "--output", str(path)]
    return main([*argv, *more])


def read(path):
    with h5py.File(path) as file:
        return {name: column[()] for name, column in file.items()}, dict(file.attrs)


def episodes(columns):
    """Return first and last row of each episode."""
    ends = np.flatnonzero(columns["terminals"] | columns["timeouts"])
    return list(zip(np.r_[0, ends[:-1] + 1].tolist(), ends.tolist(), strict=True))


def replay(env_id, columns, first, last, **options):
    """Step a real environment through one episode; every column has to be the same."""
    env = make_env(env_id, **options)
    env.reset(seed=0)
    if env_id == CAR:
        env.unwrapped.state = columns["observations"][first].astype(np.float64)
    for row in range(first, last + 1):
        observation, reward, terminated, truncated, _ = env.step(columns["actions"][row])
        assert (observation.astype(np.float32) == columns["next_observations"][row]).all(), row
        assert np.float32(reward) == columns["rewards"][row], row
        assert terminated == columns["terminals"][row], row
        assert (truncated and not terminated) == columns["timeouts"][row], row
    following = columns["next_observations"][first:last]
    np.testing.assert_array_equal(columns["observations"][first + 1 : last + 1], following)


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    path = tmp_path_factory.mktemp("graded") / "data.hdf5"
    assert collect(path, "graded", 150_000, "--policies", "8", "--seed", "3") == 0
    return path


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    path = tmp_path_factory.mktemp("walk") / "data.hdf5"
    assert collect(path, "steps", 200_000, "--seed", "3") == 0
    return path


def test_graded_rows_replay_in_the_environment_to_the_last_bit(graded):
    columns, _ = read(graded)
    whole = episodes(columns)[:32]
    for first, last in whole:
        replay(CAR, columns, first, last)
    rows = columns["next_observations"][: whole[-1][1] + 1]
    assert (rows[:, 0] == np.float32(-1.2)).any()  # the wall on the left was among them
    starts = np.array([columns["observations"][first] for first, _ in episodes(columns)])
    assert -0.6 <= starts[:, 0].min() < -0.59 and -0.41 < starts[:, 0].max() <= -0.4
    assert not starts[:, 1].any()


def test_a_shorter_limit_ends_every_episode(tmp_path):
    assert collect(tmp_path / "a", "graded", 90, "--max_episode_steps", "9") == 0
    columns, attributes = read(tmp_path / "a")
    assert attributes["max_episode_steps"] == 9 and not attributes["last_episode_cut"]
    assert [last - first for first, last in episodes(columns)] == [8] * 10
    np.testing.assert_array_equal(columns["policy"], np.repeat(np.arange(10), 9))
    assert not columns["terminals"].any() and columns["timeouts"].sum() == 10
    for first, last in episodes(columns):
        replay(CAR, columns, first, last, max_episode_steps=9)


def test_single_moves_are_the_environments_at_top_speed_too():
    env = make_env(CAR).unwrapped
    collection = GradedCollection.__new__(GradedCollection)
    collection._env = env
    random = np.random.default_rng(0)
    position = random.uniform(-1.2, 0.44, 4000).astype(np.float32)
    velocity = (random.choice([-1, 1], 4000) * random.uniform(0.066, 0.07, 4000)).astype(np.float32)
    action = random.uniform(-1, 1, 4000).astype(np.float32)
    moved = np.stack(collection._roll(position, velocity, action, first=False), axis=1)
    assert 200 < (np.abs(moved[:, 1]) == np.float32(0.07)).sum() < 3800
    for car in range(4000):
        env.state = np.array([position[car], velocity[car]])
        assert (env.step(action[car : car + 1])[0] == moved[car]).all(), car


def test_returns_rise_with_the_grade_and_stand_in_the_file(graded):
    columns, attributes = read(graded)
    policy = np.array([columns["policy"][last] for _, last in episodes(columns)])
    np.testing.assert_array_equal(policy, np.arange(len(policy)) % 8)  # in turn
    for (first, last), grade in zip(episodes(columns), policy, strict=True):
        assert (columns["policy"][first : last + 1] == grade).all()
    whole = slice(None, -1 if attributes["last_episode_cut"] else None)
    returns, policy = episode_returns(columns)[whole], policy[whole]
    mean = [returns[policy == grade].mean() for grade in range(8)]
    np.testing.assert_allclose(attributes["policy_return_mean"], mean)
    assert (np.diff(mean) > 0).all()  # a rank correlation of 1
    assert mean[0] == pytest.approx(-33.3, abs=1.5)  # uniform forces: 0.1 / 3 a step
    assert mean[-1] > 94
    assert attributes["episodes"] == len(returns) == attributes["policy_episodes"].sum()
    np.testing.assert_array_equal(attributes["policy_episodes"], np.bincount(policy.astype(int)))
    ends = np.array([last for _, last in episodes(columns)])[whole]
    good = columns["terminals"][ends]
    np.testing.assert_array_equal(
        attributes["policy_success"], [good[policy == grade].mean() for grade in range(8)]
    )
    np.testing.assert_allclose(attributes["policy_skill"], np.arange(8) / 7)
    assert attributes["policies"] == 8 and attributes["kind"] == "graded"
    assert attributes["rows"] == len(columns["rewards"]) == 150_000


def test_controllers_push_as_the_skill_says(graded):
    columns, attributes = read(graded)
    along = (columns["observations"][:, 1] >= 0) == (columns["actions"][:, 0] > 0)
    for grade, skill in enumerate(attributes["policy_skill"]):
        share = along[columns["policy"] == grade].mean()
        assert share == pytest.approx((1 + skill) / 2, abs=0.02)
    force = np.abs(columns["actions"])
    assert force.max() <= 1 and force.mean() == pytest.approx(0.5, abs=0.005)


def test_noise_is_clipped_and_one_policy_is_the_best(tmp_path):
    more = ["--policies", "1", "--noise", "0.5", "--no_next_observations"]
    assert collect(tmp_path / "a", "graded", 3000, *more) == 0
    columns, attributes = read(tmp_path / "a")
    assert attributes["policy_skill"].tolist() == [1] and attributes["noise"] == 0.5
    assert 0.1 < (np.abs(columns["actions"]) == 1).mean() < 0.3
    assert attributes["policy_return_mean"][0] > 85 and "next_observations" not in columns


@pytest.mark.parametrize("planner", ["graded", "steps"])
def test_a_seed_repeats_and_more_steps_go_on(tmp_path, planner):
    for name, steps, seed in (("a", 150_000, 7), ("b", 150_000, 7), ("c", 700, 7), ("d", 700, 8)):
        assert collect(tmp_path / name, planner, steps, "--seed", str(seed)) == 0
    (a, _), (b, _), (c, about), (d, _) = (read(tmp_path / name) for name in "abcd")
    assert about["last_episode_cut"] and c["timeouts"][-1] and not a["timeouts"][699]
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
        if name != "timeouts":  # the last row of the shorter one ends an episode
            np.testing.assert_array_equal(a[name][:700], c[name])
    assert (c["actions"] != d["actions"]).any()
    assert not (a["actions"][:1000] == a["actions"][-1000:]).all()


def test_grades_without_a_whole_episode_have_no_mean(tmp_path):
    assert collect(tmp_path / "a", "graded", 1500) == 0
    _, attributes = read(tmp_path / "a")
    assert attributes["policy_episodes"].tolist() == [1] + [0] * 9
    assert np.isnan(attributes["policy_return_mean"]).tolist() == [False] + [True] * 9


def test_steps_replay_in_the_environment_to_the_last_bit(walk):
    columns, attributes = read(walk)
    whole = episodes(columns)[:-1] if attributes["last_episode_cut"] else episodes(columns)
    timed_out = [episode for episode in whole if columns["timeouts"][episode[1]]]
    assert timed_out and all(last - first == 499 for first, last in timed_out)
    for first, last in whole[:100] + timed_out[:3]:
        replay(WALK, columns, first, last)
    assert attributes["episodes"] == len(whole) and attributes["rows"] == 200_000


def test_steps_have_ldcqs_distribution(walk):
    columns, attributes = read(walk)
    actions = columns["actions"][:, 0].astype(np.float64)
    size = np.sort(np.abs(actions))
    assert size[0] >= 0.8 and size[-1] <= 1
    uniform = 0.8 + 0.2 * (np.arange(len(size)) + 0.5) / len(size)
    assert np.abs(size - uniform).max() < 0.2 * 0.005  # Kolmogorov and Smirnov: p < 1e-4 beyond
    assert (actions > 0).mean() == pytest.approx(0.5, abs=0.005)
    assert np.corrcoef(actions[1:], actions[:-1])[0, 1] == pytest.approx(0, abs=0.01)
    # Wald: the mean of S², S where an episode stops, is that of its steps times that of a²
    ends = np.array(episodes(columns))[: attributes["episodes"]]
    stop = columns["observations"][ends[:, 1], 0] + actions[ends[:, 1]]
    lengths = ends[:, 1] - ends[:, 0] + 1
    square = (1 - 0.8**3) / (3 * 0.2)
    assert (stop**2).mean() == pytest.approx(square * lengths.mean(), rel=0.06)
    returns = np.where(columns["terminals"][ends[:, 1]], 11.0 - lengths, -lengths)
    assert attributes["return_mean"] == pytest.approx(returns.mean())


@pytest.mark.parametrize(("planner", "size"), [("graded", 2), ("steps", 1)])
def test_the_data_module_takes_the_file_and_the_check_is_content(tmp_path, capsys, planner, size):
    path = tmp_path / "long.hdf5"
    assert collect(path, planner, 10_000) == 0
    rows = episodes(read(path)[0])[-2][1] + 1  # whole episodes: the check names a cut one
    assert collect(path, planner, rows, "--overwrite") == 0
    assert not read(path)[1]["last_episode_cut"]
    capsys.readouterr()
    assert check(["check", str(path)]) == 0
    said = capsys.readouterr()
    assert "long.hdf5: readable, 0 warnings" in said.out and not said.err
    data = D4RLDataModule(str(path), data_dir=str(tmp_path))
    data.setup("fit")
    assert data.spec.env_id == (CAR if planner == "graded" else WALK)
    assert data.spec.observation_dim == size and data.spec.action_dim == 1
    assert ("policy" in data.train_set.columns) == (planner == "graded")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_whole_rows(tmp_path, monkeypatch, capsys, number):
    calls, roll = 0, GradedCollection._roll

    def interrupted(self, *arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 30:
            signal.raise_signal(number)
        return roll(self, *arguments, **options)

    monkeypatch.setattr(GradedCollection, "_roll", interrupted)
    monkeypatch.setattr("lit_offrl.collecting.graded.BATCH", 1)
    more = ["--max_episode_steps", "20"]
    assert collect(tmp_path / "a", "graded", 10_000, *more) == 128 + number
    assert f"stopped by {number.name}; kept 200 rows" in capsys.readouterr().err
    columns, attributes = read(tmp_path / "a")
    assert attributes["rows"] == len(columns["rewards"]) == 200 and not attributes["complete"]
    assert attributes["policy_episodes"].tolist() == [1] * 10
    assert not attributes["last_episode_cut"]


@pytest.mark.parametrize(
    ("planner", "env", "more", "said"),
    [
        ("graded", WALK, [], "graded: does not know .*: choose lit_offrl/mountain-car-v0"),
        ("steps", CAR, [], "steps: does not know .*: choose lit_offrl/random-walk-v0"),
        ("steps", WALK, ["--policies", "3"], "--policies is of --planner graded"),
        ("steps", WALK, ["--noise", "0.1"], "has steps of 0.8 to 1 only: leave out --noise"),
        ("graded", CAR, ["--goals", "(1,1)"], "--goals is of --planner waypoint"),
        ("graded", CAR, ["--thin", "2"], "--thin is of --kind random"),
        ("graded", CAR, ["--policies", "1001"], r"policies is 1001: give a number in \[1, 1000\]"),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, planner, env, more, said):
    with pytest.raises(ConfigError, match=said) as error:
        collect(tmp_path / "a", planner, 100, *more, env=env)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_no_step_limit_is_an_error_until_one_is_given(tmp_path):
    gymnasium.register("Boundless-v0", "lit_offrl.envs.random_walk:RandomWalkEnv")
    try:
        with pytest.raises(EvaluationError, match=r"no step limit.* give --max_episode_steps"):
            collect(tmp_path / "a", "steps", 100, env="Boundless-v0")
        more = ["--max_episode_steps", "5"]
        assert collect(tmp_path / "a", "steps", 20, *more, env="Boundless-v0") == 0
        assert np.flatnonzero(read(tmp_path / "a")[0]["timeouts"]).tolist() == [4, 9, 14, 19]
    finally:
        del gymnasium.registry["Boundless-v0"]


def test_gymnasiums_own_mountain_car_will_do(tmp_path):
    env = "MountainCarContinuous-v0"
    assert collect(tmp_path / "a", "graded", 500, "--policies", "1", env=env) == 0
    assert read(tmp_path / "a")[1]["env_id"] == env
