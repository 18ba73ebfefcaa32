"""Policies that are held out: in no batch, whatever else is held out."""

import shutil

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.datamodules import D4RLDataModule, OfflineDataModule, PyBulletDataModule
from lit_offrl.datasets.views import FutureStates

CLASSES = [OfflineDataModule, PyBulletDataModule, D4RLDataModule]
POLICIES = 5  # 20 episodes in turn: 0, 1, 2, 3, 4, 0, …


@pytest.fixture(scope="module")
def several(d4rl_file, tmp_path_factory):
    """The small dataset as the episodes of five policies in turn, one of them 0.1."""
    path = tmp_path_factory.mktemp("several") / "several.hdf5"
    shutil.copy(d4rl_file, path)
    with h5py.File(path, "a") as file:
        policy = np.repeat(np.arange(20) % POLICIES, 30).astype(np.float32)
        file["policy"] = np.where(policy == 4, np.float32(0.1), policy)
    return str(path)


def ready(kind, path, **options):
    data = kind(path, FutureStates(gamma=0.9, history=2), batch_size=50, **options)
    data.setup("fit")
    return data


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(CLASSES),
    held=st.sets(st.sampled_from([0, 1, 2, 3, 0.1]), max_size=4),
    fraction=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 5),
)
def test_no_batch_holds_a_row_of_them(several, kind, held, fraction, seed):
    data = ready(
        kind, several, hold_out_policies=sorted(held), validation_fraction=fraction, seed=seed
    )
    wanted = np.float32(sorted({0, 1, 2, 3, 0.1} - held))
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    rows = [[batch.rows.numpy() for batch in loader] for loader in loaders]
    policy = data.dataset.columns["policy"]
    for seen in (part for parts in rows for part in parts):
        assert np.isin(policy[seen], wanted).all()
    left = int(np.isin(policy, wanted).sum())
    kept = [data.train_set, *([data.held_out] if fraction else [])]
    assert sum(len(part) for part in kept) == left == len(data.dataset) - 120 * len(held)
    assert len(data.train_column("observations")) == len(data.train_set)
    assert set(np.unique(data.train_set.columns["policy"])) <= set(wanted)
    said = [sentence for sentence in data.spec.handling if "held out" in sentence]
    assert len(said) == bool(held)


def test_they_stand_in_the_spec_that_records_take_over(several):
    data = ready(D4RLDataModule, several, hold_out_policies=[1, 0.1], rewards="return_range")
    assert data.spec.handling[-1] == "episodes of the policies 1, 0.1 were held out"
    assert len(data.spec.handling) == 2 and data.spec == data.dataset.spec


@pytest.mark.parametrize("kind", CLASSES)
def test_mistakes(several, d4rl_file, kind):
    with pytest.raises(DatasetError, match="has no column 'policy'"):
        ready(kind, str(d4rl_file), hold_out_policies=[1])
    with pytest.raises(DatasetError, match=r"never has the value 7 \(it has 0, 0.1, 1, 2, 3\)"):
        ready(kind, several, hold_out_policies=[1, 7])
    with pytest.raises(ConfigError, match="names every policy"):
        ready(kind, several, hold_out_policies=[0, 1, 2, 3, 0.1])
    with pytest.raises(ConfigError, match="leaves none to train on"):
        ready(kind, several, hold_out_policies=[0, 1, 2, 3], validation_fraction=0.9)
