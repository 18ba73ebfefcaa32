"""D4RLDataModule: sources, options that go with scores, and the second start."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError, DatasetError, EvaluationError
from lit_offrl.datamodules import D4RLDataModule
from lit_offrl.datasets.views import FutureStates
from lit_offrl.evaluation.evaluate import evaluate_module
from lit_offrl.modules import load_module


@pytest.fixture
def write(tmp_path):
    """Write a file of any catalogue entry's shape: 12 runs of 10 rows."""

    def make(name, observations, actions, **columns):
        random, count = np.random.default_rng(0), 120
        found = {
            "observations": random.normal(size=(count, observations)).astype(np.float32),
            "actions": random.uniform(-1, 1, (count, actions)).astype(np.float32),
            "rewards": np.arange(count, dtype=np.float32),
            "terminals": np.zeros(count, bool),
            "timeouts": np.arange(count) % 10 == 9,
        }
        path = tmp_path / f"{name}.hdf5"
        with h5py.File(path, "w") as file:
            for key, values in (found | columns).items():
                if values is not None:
                    file[key] = values
        return path

    return make


def build(tmp_path, dataset, **options):
    data = D4RLDataModule(str(dataset), data_dir=str(tmp_path), **options)
    data.setup("fit")
    return data


def test_a_catalogue_entry_is_scored_by_d4rls_references(tmp_path, write):
    write("hopper-medium-v2", 11, 3)
    data = build(tmp_path, "hopper-medium-v2")
    spec = data.spec
    assert (spec.name, spec.env_id) == ("hopper-medium-v2", "lit_offrl/hopper-v2")
    assert (spec.ref_min_score, spec.ref_max_score) == (-20.272305, 3234.3)
    assert spec.handling == () and len(spec.sha256) == 64
    assert (len(data.train_set.episodes), len(data.held_out.episodes)) == (10, 2)


def test_the_spec_is_known_before_the_file_is_on_disk(tmp_path):
    data = D4RLDataModule("antmaze-large-diverse-v2", data_dir=str(tmp_path))
    assert (data.spec.observation_dim, data.spec.action_dim) == (29, 8)
    with pytest.raises(DatasetError, match="datasets download antmaze-large-diverse-v2"):
        data.setup("fit")


def test_the_second_start_reads_no_file_and_makes_the_same_batches(tmp_path, write, monkeypatch):
    write("hopper-medium-v2", 11, 3)
    options = {"view": FutureStates(gamma=0.9), "batch_size": 16, "rewards": "return_range"}
    first = build(tmp_path, "hopper-medium-v2", **options)

    def never(*_, **__):
        raise AssertionError("the file is read again")

    monkeypatch.setattr(h5py, "File", never)
    monkeypatch.setattr("hashlib.file_digest", never)
    second = build(tmp_path, "hopper-medium-v2", **options)
    assert second.spec == first.spec
    for one, other in zip(first.train_dataloader(), second.train_dataloader(), strict=True):
        pairs = zip(one, other, strict=True)
        assert all(a is None or torch.equal(a, b) for a, b in pairs)


def test_columns_are_shared_and_not_copied_when_episodes_are_held_out(tmp_path, write):
    write("hopper-medium-v2", 11, 3)
    data = build(tmp_path, "hopper-medium-v2")
    mapped = data.dataset.columns["observations"]
    assert isinstance(mapped.base, np.memmap)
    for which in ("train", "held_out"):
        rows = data._bind(which)._rows.columns["observations"]
        assert rows.data_ptr() == mapped.ctypes.data
    train, held = (set(data._bind(which).rows.tolist()) for which in ("train", "held_out"))
    assert not train & held and len(train | held) == 120 - 12  # each run's last row has no next


def test_without_a_cache_nothing_is_kept(tmp_path, write):
    write("hopper-medium-v2", 11, 3)
    data = build(tmp_path, "hopper-medium-v2", cache=False)
    assert len(data.dataset) == 120 and not (tmp_path / "cache").exists()
    elsewhere = build(tmp_path, "hopper-medium-v2", cache_dir=str(tmp_path / "other"))
    assert isinstance(elsewhere.dataset.columns["rewards"].base, np.memmap)
    assert (tmp_path / "other").is_dir() and not (tmp_path / "cache").exists()


def test_what_is_done_to_rewards_is_printed_and_kept(tmp_path, write, capsys):
    count = np.arange(120) % 10 // 3.0
    write("kitchen-mixed-v0", 60, 9, rewards=count, timeouts=None, terminals=count == 3)
    data = build(tmp_path, "kitchen-mixed-v0", rewards="differences")
    said = "rewards: 1 for each rise of the count of solved elements"
    assert f"kitchen-mixed-v0: {said}" in capsys.readouterr().out
    assert data.spec.handling == (said,)
    assert data.dataset.episode_returns().tolist() == [3] * 12
    data.setup("validate")  # a second call neither reads nor prints again
    assert capsys.readouterr().out == ""


def test_sparse_windows_change_the_rows_from_the_start(tmp_path, write):
    paid = np.arange(120) % 10 >= 7
    write("maze2d-large-v1", 4, 2, rewards=paid.astype(np.float32))
    data = build(tmp_path, "maze2d-large-v1", rewards="sparse_windows")
    assert len(data.dataset) == 96 and data.dataset.episode_terminated.all()
    assert "first paid row" in data.spec.handling[0]
    again = D4RLDataModule("maze2d-large-v1", data_dir=str(tmp_path), rewards="sparse_windows")
    assert again.spec == data.spec  # before setup, from the cache


def test_data_that_are_known_to_be_bad(tmp_path, write, capsys):
    write("antmaze-umaze-v0", 29, 8, rewards=np.zeros(120))
    with pytest.raises(DatasetError, match="antmaze-umaze-v0: is refused"):
        build(tmp_path, "antmaze-umaze-v0")
    assert len(build(tmp_path, "antmaze-umaze-v0", accept_faults=True).dataset) == 120
    capsys.readouterr()
    write("antmaze-umaze-diverse-v2", 29, 8, rewards=np.zeros(120))
    build(tmp_path, "antmaze-umaze-diverse-v2")
    assert "single row" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("dataset", "options", "said"),
    [
        ("hopper-medium-v2", {"minari_observations": ["observation"]}, "goes only with minari:ID"),
        ("d4rl:hopper-medium-v2", {"env_id": "Hopper-v5"}, "env_id goes only with files"),
        ("minari:x/y-v0", {"rewards": "sparse_windows"}, "D4RL's antmaze and maze2d"),
        ("hopper-medium-v2", {"rewards": "differences"}, "'differences' is for kitchen"),
        ("hopper-medium-v2", {"rewards": "sparse_windows"}, "is for antmaze and maze2d"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, write, dataset, options, said):
    write("hopper-medium-v2", 11, 3)
    with pytest.raises(ConfigError, match=said):
        build(tmp_path, dataset, **options)


def test_rows_of_the_package_are_taken_once(tmp_path, monkeypatch, columns_of_package):
    calls = []

    def rows(source):
        calls.append((source.name, source._reading))
        return columns_of_package

    monkeypatch.setattr("lit_offrl.datasets.d4rl_package.PackagedSource.rows", rows)
    data = build(tmp_path, "d4rl:hopper-medium-v2", accept_faults=True)
    assert len(data.dataset) == 40 and len(calls) == 1
    assert calls[0][0] == "d4rl:hopper-medium-v2" and calls[0][1].accept_faults


@pytest.fixture
def columns_of_package():
    from lit_offrl.datasets.schema import OfflineDataset

    timeouts = np.arange(40) % 10 == 9
    columns = {"observations": np.zeros((40, 3)), "actions": np.zeros((40, 1))}
    columns |= {"rewards": np.zeros(40), "timeouts": timeouts}
    return OfflineDataset.from_columns(columns, name="hopper-medium-v2")


def test_minari_goes_through_the_same_door(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari", reason="the package minari is not installed")
    from gymnasium.spaces import Box
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    steps, box = 5, Box(-1, 1, (2,), np.float32)
    buffers = [
        EpisodeBuffer(
            id=number,
            observations=np.zeros((steps + 1, 2), np.float32),
            actions=np.zeros((steps, 2), np.float32),
            rewards=np.ones(steps),
            terminations=np.zeros(steps, bool),
            truncations=np.arange(steps) == steps - 1,
        )
        for number in range(10)
    ]
    minari.create_dataset_from_buffers(
        "made/box-v0", buffers, action_space=box, observation_space=box
    )
    data = build(tmp_path, "minari:made/box-v0", batch_size=4)
    assert data.spec.name == "minari:made/box-v0" and len(data.dataset) == 50
    assert next(iter(data.train_dataloader())).next_observations.shape == (4, 2)
    assert isinstance(data.dataset.columns["rewards"].base, np.memmap)


def test_what_is_done_to_rewards_stands_with_the_score(lit, capsys):
    from lit_offrl.evaluation.record import EvaluationRecord

    options = ("--data.init_args.rewards", "return_range", "--evaluation.episodes", "1")
    assert lit(*options, "--checkpoint.dirpath", "run", data="D4RLDataModule") == 0
    (said,) = EvaluationRecord.load("run/evaluation.json").dataset_handling
    assert said.startswith("rewards: r * 1000 / ")
    table = capsys.readouterr().out.split("BCModule in Pendulum-v1")[1]
    assert "rewards: r * 1000 /" in table
    assert load_module("run/last.ckpt").spec.handling == (said,)


def test_of_a_task_without_a_simulator_it_is_said_that_there_is_none(lit, tmp_path, write, capsys):
    write("flow-ring-random-v0", 5, 2)
    data = ("--data.init_args.dataset", "flow-ring-random-v0", "--data.init_args.data_dir")
    options = (*data, str(tmp_path), "--evaluation.episodes", "1", "--checkpoint.dirpath", "run")
    assert lit(*options, data="D4RLDataModule") == 0
    assert "no evaluation: no Flow (SUMO) simulator can be had" in capsys.readouterr().out
    module = load_module("run/last.ckpt")
    with pytest.raises(EvaluationError, match=r"flow-ring-random-v0' cannot .*simulator.*--env"):
        evaluate_module(module, episodes=1, seed=0)
