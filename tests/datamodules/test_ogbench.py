"""OGBenchDataModule: the ready-made split, methods with and without goals, scores by success."""

import importlib.util

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from lit_offrl.common.errors import DatasetError
from lit_offrl.datamodules import D4RLDataModule, OfflineDataModule, OGBenchDataModule
from lit_offrl.evaluation.evaluate import evaluate_module
from lit_offrl.evaluation.protocol import describe, protocol
from lit_offrl.evaluation.record import EvaluationRecord
from lit_offrl.modules import BCModule, IQLModule

BASE = "pointmaze-medium-navigate"
needs_ogbench = pytest.mark.skipif(
    importlib.util.find_spec("ogbench") is None, reason="the package ogbench is not installed"
)


@pytest.fixture(scope="session")
def written(ogbench_files):
    return ogbench_files()


def build(kind, written, name=f"{BASE}-v0", **options):
    data = kind(name, data_dir=str(written), batch_size=8, **options)
    data.setup("fit")
    return data


def test_the_validation_file_validates_and_nothing_else_is_held_out(written):
    for kind in (OGBenchDataModule, D4RLDataModule, OfflineDataModule):
        data = build(kind, written)
        assert len(data.train_set.episodes) == 4 and len(data.held_out.episodes) == 1
        assert data.held_out.columns["validation"].all()
        assert not data.train_column("validation").any()
        rows = data.train_view().rows
        assert rows.tolist() == [row for row in range(24) if row % 6 != 5]
        validated = torch.cat([batch.observations for batch in data.test_dataloader()])
        np.testing.assert_array_equal(validated[:, 0], np.float32(10 + 0.25 * np.arange(5)))


def test_rows_that_are_trained_on_never_validate(written):
    data = build(OGBenchDataModule, written)
    drawn = {tuple(row) for batch in data.train_dataloader() for row in batch.observations.tolist()}
    held_out = {tuple(row) for row in data.held_out.columns["observations"].tolist()}
    assert drawn and not drawn & held_out


def test_files_are_read_once(written, tmp_path, monkeypatch):
    folder = str(tmp_path / "cache")
    first = build(OGBenchDataModule, written, cache_dir=folder)
    monkeypatch.setattr("lit_offrl.datasets.ogbench.OGBenchSource._read", None)
    second = build(OGBenchDataModule, written, cache_dir=folder)
    assert second.spec == first.spec
    for name, values in first.dataset.columns.items():
        np.testing.assert_array_equal(second.dataset.columns[name], values)


def test_what_is_none_of_ogbenchs_data(d4rl_file):
    for given in (str(d4rl_file), "hopper-medium-v2"):
        with pytest.raises(DatasetError, match="is none of OGBench's data"):
            OGBenchDataModule(given)


def test_a_method_with_rewards_is_told_to_choose_a_task(written):
    data = OGBenchDataModule(f"{BASE}-v0", data_dir=str(written))
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(DatasetError, match=f"choose a task, such as {BASE}-singletask-task1-v0"):
        trainer.fit(IQLModule(2, 2, hidden=[8]), data)


@needs_ogbench
def test_a_task_is_trained_on_and_scored_by_success(written, tmp_path):
    data = OGBenchDataModule(f"{BASE}-singletask-task1-v0", data_dir=str(written), batch_size=8)
    module = IQLModule(2, 2, hidden=[8])
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=3,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    assert trainer.global_step == 3 and module.spec.score_of == "success"
    record = evaluate_module(module, episodes=3, seed=0, num_envs=3, max_episode_steps=4)
    assert record.env_id == "lit_offrl/pointmaze-medium-singletask-task1-v0"
    assert record.returns == (-4.0,) * 3 and record.scores == (0.0,) * 3
    assert record.tasks == (1, 1, 1) and record.task_scores() == {}
    record.save(tmp_path / "record.json")
    assert EvaluationRecord.load(tmp_path / "record.json") == record
    assert protocol(record)["tasks"] == "1"


@needs_ogbench
def test_success_is_the_score_of_each_task(written, monkeypatch):
    data = build(OGBenchDataModule, written)
    module = BCModule(2, 2, hidden=[8])
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    from ogbench.locomaze import maze

    make = maze.make_maze_env

    def make_easy(*args, **options):
        env = make(*args, **options)
        monkeypatch.setattr(type(env), "compute_success", lambda self: self.cur_task_id == 2)
        return env

    monkeypatch.setattr(maze, "make_maze_env", make_easy)
    monkeypatch.setattr("lit_offrl.envs.ogbench._idle", {"pointmaze-medium-v0": []})
    record = evaluate_module(module, episodes=10, seed=0, num_envs=5, max_episode_steps=3)
    assert record.tasks == (1, 2, 3, 4, 5) * 2 and record.scores == (0.0, 100.0, 0, 0, 0) * 2
    assert record.returns == (0.0, 1.0, 0, 0, 0) * 2 and record.lengths == (3, 1, 3, 3, 3) * 2
    assert record.summary()["score_task2"] == 100 and record.summary()["score_task1"] == 0
    assert record.metrics()["eval/score"] == 20
    assert "tasks 1, 2, 3, 4, 5" in describe("x", record)
    assert "2: 100.0" in str(record.table().caption)
