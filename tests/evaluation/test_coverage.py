"""The intervals cover what they say, where the kept table says that they do."""

import pytest
from rich.console import Console

from benchmarks.__main__ import coverage_table
from benchmarks.coverage import DATASETS, HOLDS, SEEDS, SHAPES, run_coverage
from lit_offrl.evaluation.statistics import coverage, simulated


def test_the_intervals_hold_for_few_seeds():
    low, high = HOLDS
    settings = {"seeds": (3, 5, 10), "shapes": ("normal",), "resamples": 200, "seed": 1}
    for result in run_coverage(datasets=(1,), repeats=1000, **settings):
        assert low <= result.coverage <= high + 0.01, result  # IQM of 5 covers a little more
    for result in run_coverage(datasets=(4,), repeats=1000, **settings):
        assert low <= result.coverage <= high, result


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kept_table_is_what_the_simulation_gives(shape):
    setting = {"seeds": (3,), "datasets": (2,), "shapes": (shape,)}
    for result in run_coverage(repeats=1000, resamples=200, seed=2, **setting):
        kept = simulated()[result.statistic, 3, 2, shape]
        assert result.coverage == pytest.approx(kept, abs=0.035)  # three standard errors of both


def test_every_setting_is_kept_and_the_nearest_below_is_found():
    assert len(simulated()) == 2 * len(SEEDS) * len(DATASETS) * len(SHAPES)
    seeds, datasets, shares = coverage("mean", 6, 11)
    assert (seeds, datasets) == (5, 8) and list(shares) == list(SHAPES)
    assert coverage("IQM", 100, 100)[:2] == (max(SEEDS), max(DATASETS))


def test_the_benchmarks_table_marks_what_does_not_hold():
    results = list(run_coverage(statistics=("mean",), seeds=(3,), datasets=(1,), resamples=100))
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    console.print(coverage_table(results))
    (line,) = [line for line in console.export_text().splitlines() if "│ mean" in line]
    assert line.count("%") == 3
    assert "*" in line.split("│")[-2] and "*" not in line.split("│")[4]  # skewed, and normal
