"""RobomimicDataModule: the same demonstrations train as D4RL's file does, bit for bit."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from lit_offrl.common.errors import DatasetError
from lit_offrl.datamodules import D4RLDataModule, OfflineDataModule, RobomimicDataModule
from lit_offrl.datasets.hdf5 import write_hdf5
from lit_offrl.datasets.robomimic_writing import write_robomimic
from lit_offrl.modules import IQLModule


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The layout of D4RL's Adroit demonstrations in both formats: timeouts, no terminals."""
    folder, random, lengths = tmp_path_factory.mktemp("both"), np.random.default_rng(0), [7, 9, 8]
    rows = sum(lengths)
    columns = {
        "observations": random.normal(size=(rows, 5)).astype(np.float32),
        "actions": random.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "rewards": random.normal(size=rows).astype(np.float32),
        "terminals": np.zeros(rows, bool),
    }
    last = np.isin(np.arange(rows) + 1, np.cumsum(lengths))
    note = {"action_low": [-1.0, -1.0], "action_high": [1.0, 1.0]}
    write_hdf5(folder / "d4rl.hdf5", columns | {"timeouts": last}, note)
    write_robomimic(folder / "demos.hdf5", columns, lengths, masks={"train": [0, 2]}, note=note)
    return folder


def test_weights_after_training_are_those_of_d4rls_file(both):
    def train(kind, file):
        torch.manual_seed(0)
        options = {"data_dir": str(both), "batch_size": 4, "validation_fraction": 0.3}
        data, module = kind(str(both / file), **options), IQLModule(5, 2, hidden=[8])
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=4,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, data)
        return data, module.state_dict()

    of_d4rl, expected = train(D4RLDataModule, "d4rl.hdf5")
    of_robomimic, found = train(RobomimicDataModule, "demos.hdf5")
    assert of_d4rl.dataset.columns.keys() == of_robomimic.dataset.columns.keys()
    for name, values in of_d4rl.dataset.columns.items():
        np.testing.assert_array_equal(of_robomimic.dataset.columns[name], values)
    assert all((found[name] == value).all() for name, value in expected.items())


def test_a_filter_key_validates(both):
    data = RobomimicDataModule(
        str(both / "demos.hdf5"), validation_mask="train", data_dir=str(both), batch_size=2
    )
    data.setup("fit")
    assert data.train_set.episode_lengths.tolist() == [9]
    assert data.held_out.episode_lengths.tolist() == [7, 8]


def test_what_is_no_file_of_robomimics(both):
    with pytest.raises(DatasetError, match="has no group 'data'"):
        RobomimicDataModule(str(both / "d4rl.hdf5"))
    with pytest.raises(DatasetError, match="is read only by RobomimicDataModule"):
        OfflineDataModule(f"robomimic:{both / 'demos.hdf5'}")
