"""D4RL's conventions, each on a few rows whose answer can be read off."""

from __future__ import annotations

import numpy as np
import pytest

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.datasets import d4rl
from lit_offrl.datasets.hdf5 import read_hdf5
from lit_offrl.datasets.rewards import environment_rewards, handle_rewards
from lit_offrl.datasets.schema import OfflineDataset


def flags(text: str) -> np.ndarray:
    """``..x`` is [False, False, True]."""
    return np.array([letter != "." for letter in text])


def rows(terminals: str, timeouts: str | None = None, **more: np.ndarray) -> dict[str, np.ndarray]:
    count = len(terminals)
    columns = {
        "observations": np.arange(count, dtype=np.float32)[:, None],
        "actions": np.zeros((count, 1), np.float32),
        "rewards": flags(terminals).astype(np.float32),
        "terminals": flags(terminals),
    }
    return columns | ({} if timeouts is None else {"timeouts": flags(timeouts)}) | more


def episodes(columns: dict[str, np.ndarray]) -> list[list[float]]:
    """Return the observations of each episode."""
    data = OfflineDataset.from_columns(columns)
    return [data.columns["observations"][a:b, 0].tolist() for a, b in data.episodes]


def test_antmaze_ends_once_at_the_goal_and_goes_on_when_the_ant_walks_away():
    columns = rows("..TTT....", "........x")
    kept, said = d4rl.fix_conventions(columns, "antmaze-umaze-v2", 700, "x")
    assert episodes(kept) == [[0, 1, 2], [5, 6, 7, 8]]
    assert said == ("2 rows at the goal after the first of each visit left out",)
    data = OfflineDataset.from_columns(kept)
    assert data.episode_terminated.tolist() == [True, False]
    assert data.episode_returns().tolist() == [1, 0]


@pytest.mark.parametrize(
    ("terminals", "timeouts", "expected"),
    [
        (".TT|.T", "..x..x", [[0, 1], [3, 4, 5]]),  # the run ends at the goal
        (".T|T.", "..x..", [[0, 1], [2], [3], [4]]),  # see below
        ("TT..", "...x", [[0], [2, 3]]),  # it starts there
        ("....", "...x", [[0, 1, 2, 3]]),
    ],
)
def test_antmaze_runs_are_told_apart_by_their_timeouts(terminals, timeouts, expected):
    # "|" stands for a row that is not terminal, so that a picture can show where runs meet.
    columns = rows(terminals.replace("|", "."), timeouts)
    kept, _ = d4rl.fix_conventions(columns, "lit_offrl/antmaze-umaze-v2", 700, "x")
    assert episodes(kept) == expected


def test_a_new_run_that_starts_at_the_goal_keeps_its_first_row():
    kept, _ = d4rl.fix_conventions(rows("..TTT.", "...x.x"), "antmaze-umaze-v2", 700, "x")
    assert episodes(kept) == [[0, 1, 2], [4], [5]]


def test_no_antmaze_run_of_any_shape_gives_a_row_twice_or_two_terminals_in_a_row():
    random = np.random.default_rng(0)
    for _ in range(50):
        terminals = random.random(200) < 0.3
        timeouts = np.arange(200) % 40 == 39
        columns = rows("." * 200) | {"terminals": terminals, "timeouts": timeouts}
        kept, _ = d4rl.fix_conventions(columns, "antmaze-large-play-v2", 1000, "x")
        index = kept["observations"][:, 0].astype(int)
        assert (np.diff(index) > 0).all()
        away = ~terminals  # every row that is not at the goal stays
        assert set(np.flatnonzero(away)) <= set(index)
        joined = (np.diff(index) == 1) & kept["terminals"][:-1] & kept["terminals"][1:]
        assert not (joined & ~kept["timeouts"][:-1]).any()


def test_maze2d_without_timeouts_is_cut_where_the_goal_changes():
    goals = np.array([[1, 1], [1, 1], [1, 2], [3, 2], [3, 2]], np.float32)
    kept, said = d4rl.fix_conventions(rows(".....", goals=goals), "maze2d-large-v1", 800, "x")
    assert episodes(kept) == [[0, 1], [2], [3, 4]]
    assert said == ("timeouts put where the navigation goal changes",)
    same, said = d4rl.fix_conventions(rows("....."), "maze2d-large-v1", 800, "x")
    assert episodes(same) == [[0, 1, 2, 3, 4]] and said == ()  # one continuous run


def test_others_without_timeouts_are_cut_at_the_step_limit():
    kept, said = d4rl.fix_conventions(rows("..T......"), "hopper-medium-v0", 4, "x")
    assert episodes(kept) == [[0, 1, 2], [3, 4, 5, 6], [7, 8]]
    assert said == ("timeouts put after every 4 rows without a terminal",)
    short, said = d4rl.fix_conventions(rows("..T..T"), "kitchen-mixed-v0", 280, "x")
    assert episodes(short) == [[0, 1, 2], [3, 4, 5]] and said == ()


def test_data_of_no_task_of_d4rl_are_left_alone():
    columns = rows("TT...")
    kept, said = d4rl.fix_conventions(columns, None, 2, "x")
    assert all(kept[name] is columns[name] for name in columns) and said == ()


def test_sparse_windows_end_a_run_at_its_first_success():
    columns = rows(".....T.T..", "...x.....x", rewards=np.float32([0, 1, 0, 1, 0, 0, 1, 1, 0, 0]))
    kept, said = d4rl.fix_conventions(columns, "maze2d-umaze-v1", 300, "x", sparse_windows=True)
    assert episodes(kept) == [[0, 1], [4, 5, 6]]
    data = OfflineDataset.from_columns(kept)
    assert data.episode_terminated.tolist() == [True, True]
    assert data.episode_returns().tolist() == [1, 1]
    assert "5 rows left out" in said[0]
    for task in (None, "hopper-medium-v2"):
        with pytest.raises(ConfigError, match="'sparse_windows' is for antmaze and maze2d"):
            d4rl.fix_conventions(columns, task, 300, "x", sparse_windows=True)
    with pytest.raises(DatasetError, match="x: has no column 'timeouts'"):
        d4rl.fix_conventions(rows("..."), "antmaze-umaze-v2", None, "x", sparse_windows=True)


def test_the_conventions_hold_for_files(tmp_path, raw):
    columns = rows("..TT.", "....x")
    columns["observations"] = np.zeros((5, 29))
    columns["actions"] = np.zeros((5, 8))
    path = raw(tmp_path / "x.hdf5", columns, env_id="antmaze-medium-play-v2 (regenerated)")
    data = read_hdf5(path)
    assert data.spec.env_id == "lit_offrl/antmaze-medium-play-v2"
    assert data.episodes.tolist() == [[0, 3], [3, 4]]
    assert data.spec.handling == ("1 rows at the goal after the first of each visit left out",)
    whole = read_hdf5(path, sparse_windows=True)
    assert whole.episodes.tolist() == [[0, 3]]


# ---- rewards -----------------------------------------------------------------------------------


def dataset(rewards: list[float], lengths: list[int], env_id: str | None = None) -> OfflineDataset:
    count = len(rewards)
    timeouts = np.zeros(count, bool)
    timeouts[np.cumsum(lengths) - 1] = True
    columns = {
        "observations": np.zeros((count, 2)),
        "rewards": np.array(rewards),
        "timeouts": timeouts,
    }
    return OfflineDataset.from_columns(columns, origin="x.hdf5", env_id=env_id)


ANTMAZE, KITCHEN = "lit_offrl/antmaze-umaze-v2", "lit_offrl/kitchen-mixed-v0"


@pytest.mark.parametrize(
    ("option", "env_id", "recorded", "expected", "said"),
    [
        ("as_recorded", None, [0, 1, 0, 0, 1], [0, 1, 0, 0, 1], None),
        ("hundredfold", ANTMAZE, [0, 1, 0, 0, 1], [0, 100, 0, 0, 100], "rewards: 100 r"),
        ("minus_one", ANTMAZE, [0, 1, 0, 0, 1], [-1, 0, -1, -1, 0], "rewards: r - 1"),
        ("centred", ANTMAZE, [0, 1, 0, 0, 1], [-2, 2, -2, -2, 2], "rewards: 4 (r - 0.5)"),
        ("return_range", None, [1, 2, 3, 1, 1], [250, 500, 750, 250, 250], "* 1000 / 4,"),
        # the count may fall: what is solved once more has been paid
        ("differences", KITCHEN, [1, 0, 2, 0, 3], [1, 0, 1, 0, 3], "count of solved"),
        ("differences", KITCHEN, [0, 0, 4, 4, 4], [0, 0, 4, 4, 0], "count of solved"),
    ],
)
def test_rewards_are_handled_as_asked_and_said(option, env_id, recorded, expected, said):
    data = dataset(recorded, [3, 2], env_id)
    handled = handle_rewards(data, option)
    np.testing.assert_allclose(handled.columns["rewards"], expected)
    assert data.columns["rewards"].tolist() == recorded  # untouched
    assert handled.columns["observations"] is data.columns["observations"]
    assert len(handled.spec.handling) == (said is not None)
    assert said is None or said in handled.spec.handling[0]


@pytest.mark.parametrize("option", ["as_recorded", "minus_one", "centred", "hundredfold"])
def test_an_environments_rewards_are_changed_as_the_datas_were(option):
    data = dataset([0, 1, 0, 0, 1], [2, 3], ANTMAZE)
    changed = environment_rewards(data, option)(data.columns["rewards"])
    np.testing.assert_array_equal(changed, handle_rewards(data, option).columns["rewards"])


def test_an_environments_rewards_have_the_datas_range_and_no_sparse_windows():
    data = dataset([0, 2, 0, 0, 1], [2, 3], None)
    assert environment_rewards(data, "return_range")(np.float32([3])).tolist() == [3000.0]
    with pytest.raises(ConfigError, match="own steps in it cannot be added"):
        environment_rewards(data, "sparse_windows")


@pytest.mark.parametrize(
    ("option", "env_id", "recorded", "error", "said"),
    [
        ("minus_one", None, [0, 1, 0.5], DatasetError, "x.hdf5: column 'rewards' has 0.5 in row 2"),
        ("differences", KITCHEN, [0, 5, 0], DatasetError, "'rewards' has 5 in row 1"),
        ("differences", ANTMAZE, [0, 1, 0], ConfigError, "is for kitchen"),
        ("return_range", None, [1, 1, 1], DatasetError, "gives every episode the return 3"),
        ("plus_one", None, [0, 1, 0], ConfigError, "rewards is 'plus_one': use one of"),
    ],
)
def test_rewards_that_an_option_is_not_for(option, env_id, recorded, error, said):
    with pytest.raises(error, match=said.replace("(", r"\(")) as caught:
        handle_rewards(dataset(recorded, [3], env_id), option)
    assert "\n" not in str(caught.value)
