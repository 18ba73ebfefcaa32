"""d4rl-pybullet's layout: a guess is said and kept, and an option goes before it."""

from __future__ import annotations

import numpy as np
import pytest

from lit_offrl.__main__ import main
from lit_offrl.commands.datasets import main as datasets
from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.datamodules import D4RLDataModule, OfflineDataModule, PyBulletDataModule
from lit_offrl.datasets.catalog import resolve
from lit_offrl.datasets.entries import CATALOG
from lit_offrl.datasets.hdf5 import read_hdf5

EPISODES, STEPS = 20, 50


@pytest.fixture
def stop(tmp_path, raw):
    """Steps of a robot that is told to stop at each episode's end, as columns of (N, 1)."""
    step = np.tile(np.arange(STEPS), EPISODES)
    end = step == STEPS - 1
    actions = np.random.default_rng(0).uniform(-1, 1, (len(step), 2)).astype(np.float32)
    actions[end] = 0
    columns = {
        "observations": np.stack([np.repeat(np.arange(EPISODES), STEPS), step], 1).astype("f4"),
        "actions": actions,
        "rewards": step[:, None].astype(np.float32),
        "terminals": end[:, None],
    }
    return raw(tmp_path / "stop.hdf5", columns, action_low=-1.0, action_high=1.0)


@pytest.mark.parametrize("kind", [OfflineDataModule, PyBulletDataModule, D4RLDataModule])
def test_fit_says_that_the_layout_is_a_guess_and_takes_an_option(kind, stop, tmp_path, capsys):
    more = {"cache_dir": str(tmp_path / "cache")} if kind is D4RLDataModule else {}
    for _ in range(2):  # the second time from the cache
        data = kind(str(stop), **more)
        data.setup("fit")
        said = capsys.readouterr().out
        assert said.startswith("lit-offrl: stop: layout: guessed to be d4rl-pybullet's: each row's")
        assert "20 extra rows left out" in said and "give format 'd4rl'" in said
        assert len(data.dataset) == 980 and len(data.spec.handling) == 1  # which records keep
    data = kind(str(stop), format="d4rl", **more)
    data.setup("fit")
    assert capsys.readouterr().out == "" and data.spec.handling == ()
    assert len(data.dataset) == 1000
    assert data.dataset.columns["rewards"][:4].tolist() == [0, 1, 2, 3]


def test_check_warns_of_a_guess_and_takes_an_option(stop, capsys):
    assert datasets(["check", str(stop)]) == 0
    assert "warning: layout: guessed to be d4rl-pybullet's" in capsys.readouterr().out
    assert datasets(["check", str(stop), "--format", "pybullet"]) == 0
    said = capsys.readouterr().out
    assert "guessed" not in said and "layout: d4rl-pybullet's: each row's reward" in said
    assert datasets(["check", str(stop), "--format", "d4rl"]) == 0
    said = capsys.readouterr().out
    assert "layout:" not in said and "1,000" in said
    assert datasets(["info", str(stop), "--format", "d4rl"]) == 0
    with pytest.raises(ConfigError, match="--format: unknown choice 'bullet'"):
        datasets(["check", str(stop), "--format", "bullet"])


def test_states_alone_are_refused_with_the_option_that_decides(stop, tmp_path, raw, capsys):
    whole = read_hdf5(stop, format="d4rl").columns
    states = {k: whole[k] for k in ("observations", "terminals")}
    path = raw(tmp_path / "states.hdf5", {**states, "terminals": states["terminals"][:, None]})
    with pytest.raises(DatasetError, match=r"--data\.init_args\.format.*datasets check --format"):
        read_hdf5(path, require=())
    assert len(read_hdf5(path, require=(), format="d4rl")) == 1000
    words = ["validate", "--model", "DVFModule", "--data", "PyBulletDataModule"]
    words += ["--data.init_args.dataset", str(path), "--data.init_args.format"]
    assert main([*words, "bullet"]) == 2
    assert "data.init_args.format" in "".join(capsys.readouterr())


def test_the_catalogue_knows_its_layout_without_a_word(tmp_path, raw, shifted):
    name = next(name for name, entry in CATALOG.items() if entry.format == "pybullet")
    entry = CATALOG[name]
    shifted["observations"] = np.repeat(shifted["observations"], entry.observation_dim, axis=1)
    shifted["actions"] = np.repeat(shifted["actions"], entry.action_dim, axis=1)
    raw(tmp_path / f"{name}.hdf5", shifted)
    data = resolve(name, tmp_path).read()
    assert data.spec.handling == () and len(data) == 5
    with pytest.raises(ConfigError, match="format goes only with HDF5 files"):
        D4RLDataModule("minari:some/data-v0", format="d4rl")
