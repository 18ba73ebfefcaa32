from __future__ import annotations

import numpy as np

from lit_offrl.datasets.checks import examine
from lit_offrl.datasets.schema import OfflineDataset


def test_facts_of_a_sound_dataset(columns_of):
    columns = columns_of([3, 5], ["terminal", "timeout"])
    facts = {"ref_min_score": 0.0, "ref_max_score": 100.0, "max_episode_steps": 5}
    report = examine(OfflineDataset.from_columns(columns, **facts))
    assert report.warnings == ()
    assert report.facts["rows"] == "8"
    assert report.facts["episodes"] == "2: 1 end in a terminal, 1 in a timeout"
    assert report.facts["episode lengths"] == "mean 4, min 3, median 4, max 5"
    # 0+1+2 and 5·1000 + 0+1+2+3+4
    assert report.facts["episode returns"].startswith("mean 2,506.50, min 3.00")
    assert report.facts["normalised scores"].startswith("mean 2,506.5, min 3.0")
    assert report.facts["terminals"] == "1 of 8 rows"
    assert report.facts["observations"] == "8 × 2, 0 to 4"


def test_an_episode_that_is_cut_off_has_no_return(columns_of):
    dataset = OfflineDataset.from_columns(columns_of([3, 5], ["terminal", ""]))
    assert dataset.cut_off and dataset.complete_returns().tolist() == [3]
    assert examine(dataset).facts["episode returns"].startswith("mean 3.00, min 3.00")
    alone = OfflineDataset.from_columns(columns_of([3], [""]))
    assert len(alone.complete_returns()) == 0
    assert "episode returns" not in examine(alone).facts


def test_oddities_are_named(columns_of):
    columns = columns_of([4, 1, 6, 2, 1], ["terminal", "terminal", "timeout", "timeout", ""])
    columns["observations"] = np.concatenate(
        [columns["observations"], np.ones((14, 1), np.float32)], axis=1
    )
    columns["next_observations"] = np.roll(columns["observations"], -1, axis=0)
    columns["next_observations"][6] += 1
    columns["observations"][9] = columns["observations"][8]
    columns["rewards"][:] = 2
    spec = {"action_low": (-3.0, -4.0), "action_high": (0.0, 0.0), "max_episode_steps": 4}
    given = {"complete": "False"}
    report = examine(OfflineDataset.from_columns(columns, provenance=given, **spec))
    said = "\n".join(report.warnings)
    for expected in (
        "'observations' is constant in dimensions 2",
        "'rewards' is 2 in every row",
        "'actions' leaves its bounds in 2 rows, first in row 10",
        "1 rows repeat the observation",
        "in 2 rows within episodes, first in row 6",
        "collection was interrupted",
        "the last episode is cut off after 1 rows",
        "2 episodes are a single row",
        "1 episodes end in a terminal at exactly the limit of 4 steps",
        "1 episodes are longer than the limit",
        "1 episodes time out before the limit",
    ):
        assert expected in said, expected
    assert len(report.warnings) == 11


def test_a_single_episode_is_named_and_no_limit_is_no_warning(columns_of):
    columns = columns_of([9], ["timeout"])
    del columns["rewards"], columns["actions"]
    report = examine(OfflineDataset.from_columns(columns))
    assert [w for w in report.warnings if "single episode" in w]
    assert "episode returns" not in report.facts


def test_what_recipes_do_on_purpose_is_no_warning(columns_of):
    columns = columns_of([5, 5, 2], ["timeout", "timeout", "timeout"])
    facts = {"max_episode_steps": 5, "provenance": {"last_episode_cut": "True"}}
    report = examine(OfflineDataset.from_columns(columns, **facts))
    assert report.warnings == () and report.facts["episodes"].endswith(", the last cut off")
    # Runs of 1,001 rows for a limit of 1,000, and timeouts that say that a goal was reached.
    columns = columns_of([6, 2, 6], ["timeout", "timeout", "timeout"])
    for env_id in ("lit_offrl/antmaze-medium-play-v2", "lit_offrl/maze2d-large-v1"):
        facts = {"max_episode_steps": 5, "env_id": env_id, "handling": ("some rows left out",)}
        report = examine(OfflineDataset.from_columns(columns, **facts))
        assert report.warnings == ()
        assert report.facts["done on reading"] == "some rows left out"
    report = examine(OfflineDataset.from_columns(columns, max_episode_steps=5, env_id="Some-v0"))
    assert len(report.warnings) == 2


def test_rows_are_compared_in_blocks_and_across_their_ends(columns_of, monkeypatch):
    columns = columns_of([5, 4], ["terminal", "timeout"])
    columns["observations"][[2, 4, 6]] = columns["observations"][[1, 3, 5]]
    columns["actions"][[3, 8]] = 7.0
    bounds = {"action_low": (-6.0,) * 2, "action_high": (6.0,) * 2}
    data = OfflineDataset.from_columns(columns, **bounds)
    said = examine(data).warnings
    assert "3 rows repeat the observation of the row before" in said
    outside = "column 'actions' leaves its bounds in 2 rows, first in row 3: policies act within"
    assert any(line.startswith(outside) for line in said)
    following = "column 'next_observations' is not the observation of the following row in 3 rows"
    assert f"{following} within episodes, first in row 1" in said
    for size in (1, 2, 3, 8, 9):
        monkeypatch.setattr("lit_offrl.datasets.checks._BLOCK", size)
        assert examine(data).warnings == said
