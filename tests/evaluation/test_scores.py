import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import EvaluationError
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.evaluation.scores import NormalizedScore, has_references, normalized_score


def spec(low=20.0, high=220.0):
    return DatasetSpec("data", 2, 1, ref_min_score=low, ref_max_score=high)


def test_references_score_0_and_100():
    assert normalized_score(np.array([20.0, 220.0, 120.0, 320.0]), spec()).tolist() == [
        0.0,
        100.0,
        50.0,
        150.0,
    ]


def test_without_references_there_is_no_score():
    assert not has_references(spec(low=None))
    with pytest.raises(EvaluationError, match="'data' has no reference returns"):
        normalized_score(1.0, spec(low=None))
    with pytest.raises(EvaluationError, match="first must be smaller"):
        NormalizedScore(1.0, 1.0)


def test_an_episode_counts_once_however_often_it_comes():
    metric = NormalizedScore(0.0, 200.0)
    metric.update([4, 0, 1], [10.0, 20.0, 30.0])
    metric.update([0, 1, 2], [99.0, 99.0, 40.0])  # 0 and 1 again: their first returns count
    assert metric.compute().item() == pytest.approx((10 + 20 + 30 + 40) / 4 / 2)
    metric.reset()
    metric.update([], [])
    assert torch.isnan(metric.compute())


PROCESS = """
import sys, torch.distributed as dist
from lit_offrl.evaluation.scores import NormalizedScore
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
for shards in (
    ([0, 2, 4], [1]),
    ([0, 2, 4], [1, 3, 0]),  # episode 0 fills up the second shard
    ([0, 1, 2, 3, 4], []),
):
    episodes = shards[rank]
    metric = NormalizedScore(0.0, 100.0)
    metric.update(episodes, [10.0 * number**2 for number in episodes])
    print(metric.compute().item())
dist.destroy_process_group()
"""


def test_two_processes_give_the_mean_over_distinct_episodes(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    expected = [np.mean([10.0 * i**2 for i in numbers]) for numbers in ([0, 1, 2, 4], range(5))]
    for process in processes:
        answers = [float(line) for line in process.communicate(timeout=600)[0].split()]
        assert answers == pytest.approx([expected[0], expected[1], expected[1]])
