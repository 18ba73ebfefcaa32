import numpy as np
import pytest

from lit_offrl.common.errors import ConfigError
from lit_offrl.envs.maze2d import Maze2dEnv
from lit_offrl.envs.mazes import MAZE2D
from lit_offrl.envs.planners import WaypointPlanner, Waypoints, plan
from lit_offrl.evaluation.rollouts import rollout

U = MAZE2D["umaze"]


def test_a_plan_is_the_shortest_way_with_jitter_before_the_goal():
    ways = [plan(U, np.array([2.7, 0.6]), (1, 1), np.random.default_rng(k)) for k in range(200)]
    cells = np.array([[3, 2], [3, 3], [2, 3], [1, 3], [1, 2], [1, 1]])
    shifts = cells - np.array(ways)
    np.testing.assert_array_equal(shifts[:, -1], 0)
    assert 0 <= shifts.min() < 0.01 and 0.19 < shifts.max() <= 0.2
    assert shifts[:, :-1].mean() == pytest.approx(0.1, abs=0.01)


def test_actions_are_the_controllers():
    way = Waypoints(np.array([[1.0, 2.0], [1.0, 3.0]]))
    ax, ay, arrived = way.act(0.98, 1.96, 0.5, -0.2)  # 10 · error − velocity, the first still
    assert (ax, ay) == pytest.approx((10 * 0.02 - 0.5, 10 * 0.04 + 0.2)) and not arrived
    assert way.act(0.98, 1.96, 0.0, 0.0) == pytest.approx(
        (0.2, 1.0, False)
    )  # the next one, clipped
    ax, ay, arrived = way.act(1.05, 2.95, 0.1, 0.0)
    assert (ax, ay) == pytest.approx((-0.6, 0.5)) and arrived


def test_the_policy_acts_as_one_point_at_a_time_does():
    random = np.random.default_rng(1)
    large = MAZE2D["large"]
    envs = [Maze2dEnv("large") for _ in range(5)]
    observations = np.stack([env.reset(seed=k)[0] for k, env in enumerate(envs)])
    policy = WaypointPlanner(large, (3, 5), seed=4)
    policy.reset()
    jitter = np.random.default_rng(4)
    ways = [Waypoints(plan(large, row[:2], (3, 5), jitter)) for row in observations]
    arrivals = 0
    for _ in range(700):
        actions = policy.act(observations)
        for row, (env, way) in enumerate(zip(envs, ways, strict=True)):
            ax, ay, arrived = way.act(*observations[row].tolist())
            np.testing.assert_array_equal(actions[row], np.array([ax, ay], np.float32))
            arrivals += arrived
            noisy = actions[row] + 0.3 * random.standard_normal(2)
            observations[row] = env.step(noisy)[0]
    assert arrivals > 500


@pytest.mark.parametrize("name", ["umaze", "medium", "large"])
def test_every_cell_is_left_for_the_goal_in_time(name):
    """From each free cell the goal is reached, and held, well within the step limit."""
    maze = MAZE2D[name]
    envs = [Maze2dEnv(name) for _ in maze.cells]
    observations = np.stack(
        [e.reset(seed=0, options={"location": c})[0] for e, c in zip(envs, maze.cells, strict=True)]
    )
    policy = WaypointPlanner(maze)
    for _ in range(maze.max_episode_steps):
        actions = policy.act(observations)
        steps = [env.step(action) for env, action in zip(envs, actions, strict=True)]
        observations = np.stack([step[0] for step in steps])
    assert all(step[4]["success"] for step in steps)


def test_rows_begin_anew_one_by_one():
    policy = WaypointPlanner(U, seed=0)
    ends = np.array([[3.0, 1.0, 0, 0], [1.0, 3.0, 0, 0]])
    first = policy.act(ends)
    policy.reset(np.array([True, False]))
    swapped = policy.act(ends[::-1])  # row 0 plans from the corner; row 1 keeps its way
    assert swapped[0, 1] < -0.5 and swapped[1, 0] < -0.5 and first[0, 1] > 0.5
    np.testing.assert_array_equal(policy.act(ends[::-1]), swapped)


def test_without_planning_anew_later_starts_drive_straight_at_the_goal():
    policy = WaypointPlanner(U, replan=False)
    goal, other_arm = np.array([[1.0, 1, 0, 0]]), np.array([[3.0, 1, 0, 0]])
    policy.act(goal)
    policy.reset(np.array([True]))
    np.testing.assert_array_equal(policy.act(other_arm), [[-1, 0]])  # into the wall between
    policy = WaypointPlanner(U)
    policy.act(goal)
    policy.reset(np.array([True]))
    assert policy.act(other_arm)[0, 1] > 0.5  # round it


def test_scores_are_a_true_planners_and_the_original_scripts():
    """D4RL's references are 23.85 and 161.86; its script plans once in all its episodes."""
    options = {"episodes": 40, "seed": 0}
    env_id = "lit_offrl/maze2d-umaze-v1"
    planner = rollout(WaypointPlanner(U), env_id, num_envs=8, **options).returns
    once = rollout(WaypointPlanner(U, replan=False), env_id, num_envs=1, **options).returns
    assert 180 < planner.mean() < 250 and planner.min() > 50
    assert 110 < once.mean() < 200 and once.min() == 0


def test_idle_rows_of_roll_outs_disturb_nobody():
    few = rollout(WaypointPlanner(U), "lit_offrl/maze2d-umaze-v1", episodes=2, seed=0, num_envs=6)
    assert len(few.returns) == 2 and (few.returns > 50).all()
    policy = WaypointPlanner(U)
    actions = policy.act(np.array([[0.0, 0, 0, 0], [99, 1, 0, 0], [1, 1, 0, 0]]))
    np.testing.assert_array_equal(actions, [[1, 1], [-1, 0], [0, 0]])


def test_walls_are_no_goals():
    with pytest.raises(ConfigError, match=r"cell \(2,1\) is a wall"):
        WaypointPlanner(U, (2, 1))
