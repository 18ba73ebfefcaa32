"""Digits that float32 loses and outliers are each a line, said again from the cache."""

from __future__ import annotations

import numpy as np
import pytest

from lit_offrl.commands.datasets import main as datasets
from lit_offrl.datamodules import D4RLDataModule, PyBulletDataModule
from lit_offrl.datasets.values import remarks

ROWS = 1000
TIME = 1.76e9 + np.arange(ROWS) * 0.1
OFFSET = "subtract an offset"


def uniform(low, high, shape=ROWS):
    return np.random.default_rng(0).uniform(low, high, shape)


@pytest.fixture
def grid(tmp_path, raw):
    """Metres of a national grid and Unix time at 10 Hz, and one outlier among the actions."""
    random = np.random.default_rng(0)
    east, north = 5.0e5 + random.uniform(0, 20, ROWS), 4.65e6 + random.uniform(0, 20, ROWS)
    actions = random.uniform(-1, 1, (ROWS, 1))
    actions[17] = -1e30
    columns = {
        "observations": np.stack([east, north, TIME], 1),
        "actions": actions,
        "rewards": random.uniform(-1, 1, ROWS),
        "timeouts": np.arange(ROWS) % 50 == 49,
    }
    return raw(tmp_path / "grid.hdf5", columns, action_low=-1.0, action_high=1.0)


EXPECTED = (
    "column 'observations', dimension 1: float32 keeps 41 of 1,000 distinct values: "
    "subtract an offset",
    "column 'observations', dimension 2: float32 keeps 2 of 1,000 distinct values: "
    "subtract an offset",
    "column 'actions', dimension 0: 1 of 1,000 values is as far off as -1e+30, first in row 17",
)


def test_check_and_fit_name_column_dimension_and_count(grid, tmp_path, capsys):
    assert datasets(["check", str(grid)]) == 0
    said = capsys.readouterr().out
    assert all(f"warning: {line}" in said for line in EXPECTED)
    makers = [lambda: PyBulletDataModule(str(grid))]
    makers += 2 * [lambda: D4RLDataModule(str(grid), cache_dir=str(tmp_path / "cache"))]
    for make in makers:  # the last from the cache
        make().setup("fit")
        said = capsys.readouterr().out
        assert all(f"lit-offrl: grid: {line}" in said for line in EXPECTED)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("observations", (1_760_000_000 + np.arange(ROWS))[:, None], "keeps 9 of 1,000"),
        ("observations", np.arange(2**24, 2**24 + ROWS, dtype=np.int32)[:, None], "keeps 501 of"),
        ("observations", uniform(4.65e6, 4.651e6)[:, None], "keeps 781 of 1,000"),
        ("observations", np.random.default_rng(0).normal(size=(ROWS, 1)) * 1e-50, "other units"),
        ("rewards", uniform(1e9, 1e9 + 1), "column 'rewards': float32 keeps 1 of 1,000 distinct"),
        ("policy", 10**9 + np.arange(ROWS) // 50, "column 'policy': float32 keeps 1 of 20"),
    ],
)
def test_digits_of_whole_numbers_and_of_rewards_count_too(name, values, expected):
    (line,) = remarks({name: values})
    assert expected in line


def test_where_a_sample_is_judged_the_line_says_so():
    far = 1.76e9 + np.arange(200_000)[:, None] * 0.1
    (line,) = remarks({"observations": far})
    assert line.endswith("distinct values (among 100,000 of 200,000 rows): subtract an offset")
    far[:] = uniform(-1, 1, far.shape)
    far[150_001] = 1e12
    (line,) = remarks({"observations": far})
    assert "1 of 200,000 values is as far off as 1e+12, first in row 150,001" in line


@pytest.mark.parametrize("share", [1, 50])
def test_outliers_are_counted_also_where_they_are_many(share):
    rewards = np.random.default_rng(0).normal(size=ROWS).astype(np.float32)
    rewards[:share] = 1e30
    (line,) = remarks({"rewards": rewards})
    assert line.startswith(f"column 'rewards': {share} of 1,000 values")
    alone = np.zeros((ROWS, 1))
    alone[3] = 1e30
    assert "most lie within 0 of 0" in remarks({"observations": alone})[0]


def test_many_dimensions_are_summed_up():
    values = np.random.default_rng(0).normal(size=(ROWS, 12))
    values[3] = 1e25
    lines = remarks({"observations": values, "next_observations": values[::-1]})
    assert len(lines) == 12
    assert lines[5] == "column 'observations': the same of 7 more dimensions"


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).normal(size=ROWS),
        np.random.default_rng(0).normal(300, 0.5, ROWS),  # kelvins
        np.concatenate([uniform(-1, 1), 0.5 + uniform(-1e-12, 1e-12)]),  # a robot at rest
        0.5 + uniform(-1e-16, 1e-16),
        np.full(ROWS, 5e5),
        uniform(5e5, 5e5 + 20).astype(np.float32),  # whatever was lost is no longer there
        np.arange(ROWS),
        np.where(np.arange(ROWS) % 50 == 0, 1000.0, -1.0),  # rewards that are paid now and then
        (np.arange(ROWS) == 5).astype(np.float32),
        np.exp(np.random.default_rng(0).normal(0, 3, ROWS)),
        np.ones(ROWS, bool),
    ],
)
def test_usual_values_are_passed_over(values):
    assert remarks({"rewards": values, "text": np.full(3, b"x"), "terminals": values}) == ()


def test_rare_values_and_small_steps_of_large_numbers_count_too():
    sparse, steps = np.zeros(ROWS), 2**62 + np.arange(ROWS) * 3
    sparse[-1] = 1e12
    assert "1 of 1,000 values is as far off as 1e+12" in remarks({"rewards": sparse})[0]
    assert "float32 keeps 1 of 1,000 distinct values" in remarks({"rewards": steps})[0]
    sparse[-1] = 1e5
    assert remarks({"rewards": sparse}) == ()


def test_what_mostly_rests_and_moves_at_times_has_no_outliers():
    moves = uniform(-1e-11, 1e-11)
    moves[::20] = 0.3  # a button's speed in a simulator
    assert remarks({"observations": moves[:, None]}) == ()
    moves[::20] = 1e30
    assert (
        "50 of 1,000 values are as far off as 1e+30" in remarks({"observations": moves[:, None]})[0]
    )
