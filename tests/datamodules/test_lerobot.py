"""LeRobotDataModule: labels, chunks and what is said of data that do not fit a method."""

from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Trainer

from lit_offrl.common.errors import DatasetError
from lit_offrl.datamodules import LeRobotDataModule, OfflineDataModule
from lit_offrl.datasets.lerobot_writing import write_lerobot
from lit_offrl.modules import BCModule, IQLModule

MADE = str(Path(__file__).parents[1] / "lerobot_made")


def trainer(steps=2):
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=steps,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def test_behaviour_cloning_of_chunks_on_what_lerobot_wrote(tmp_path):
    data = LeRobotDataModule(MADE, data_dir=str(tmp_path), batch_size=4, validation_fraction=0.0)
    module, fit = BCModule(4, 3, hidden=[8], chunk=2, execute_steps=1), trainer()
    fit.fit(module, data)
    assert fit.global_step == 2 and data.spec.name == "lerobot:lerobot_made"
    assert module.policy().act(np.zeros((1, 4))).shape == (1, 3)
    assert list((tmp_path / "cache").glob("*/entry.json"))


def test_labels_of_success_are_what_a_method_is_rewarded_by(tmp_path):
    options = {"data_dir": str(tmp_path), "batch_size": 4, "validation_fraction": 0.0}
    data = LeRobotDataModule(f"lerobot:{MADE}", success=[1], **options)
    trainer().fit(IQLModule(4, 3, hidden=[8]), data)
    assert data.dataset.episode_returns().tolist() == [0.0, 1.0, 0.0]
    assert data.dataset.episode_terminated.tolist() == [False, True, False]


def test_a_method_with_rewards_is_told_where_to_get_them(tmp_path):
    state = np.arange(20, dtype=np.float32).reshape(10, 2)
    write_lerobot(tmp_path / "data", {"observation.state": state, "action": state / 20}, [5, 5])
    data = LeRobotDataModule(str(tmp_path / "data"), data_dir=str(tmp_path), batch_size=2)
    with pytest.raises(DatasetError, match=r"IQLModule needs: name with data\.init_args\.success"):
        trainer().fit(IQLModule(2, 2, hidden=[8]), data)


def test_what_is_no_folder_of_lerobots(d4rl_file, tmp_path):
    with pytest.raises(DatasetError, match="is no LeRobot data"):
        LeRobotDataModule(str(d4rl_file))
    with pytest.raises(DatasetError, match="is read only by LeRobotDataModule"):
        OfflineDataModule(f"lerobot:{MADE}")
