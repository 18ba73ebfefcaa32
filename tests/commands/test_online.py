"""``lit-offrl online``: rounds, the end of a killed run, and what cannot be."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_offrl.__main__ import main
from lit_offrl.collecting import rounds as rounds_of
from lit_offrl.commands import online
from lit_offrl.datasets.hdf5 import read_hdf5
from lit_offrl.evaluation.record import EvaluationRecord
from lit_offrl.modules import DVFModule
from lit_offrl.tracking.store import absolute_uri

CAR = "lit_offrl/mountain-car-v0"
TINY = {
    "policy_representation": "scalar",
    "value_policy": "latest",
    "width": "8",
    "blocks": "1",
    "heads": "2",
    "latents": "2",
    "diffusion_steps": "4",
    "sampling_steps": "2",
    "num_samples": "2",
    "hidden": "[8]",
    "warmup_steps": "2",
    "values": "cached",
}


@pytest.fixture
def run(folder):
    """Run tiny rounds of Mountain Car in this process; returns the exit code."""

    def go(output: str, *more: str, rounds: int = 2, logger: str = "false", **options: str) -> int:
        words = ["online", "--env", CAR, "--output", output, "--rounds", str(rounds)]
        words += ["--steps_per_round", "90", "--max_episode_steps", "40", "--hold", "4"]
        words += ["--episodes", "2", "--num_envs", "2", "--seed", "5"]
        words += ["--model", "DVFModule", "--data", "OfflineDataModule"]
        words += ["--data.init_args.validation_fraction", "0", "--data.init_args.batch_size", "16"]
        words += ["--trainer.max_steps", "4", "--trainer.accelerator", "cpu"]
        words += ["--trainer.logger", logger, "--trainer.enable_progress_bar", "false"]
        words += ["--trainer.enable_model_summary", "false"]
        for name, value in {**TINY, **options}.items():
            words += [f"--model.init_args.{name}", value]
        return main([*words, *more])

    return go


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def state(folder: str) -> dict:
    return json.loads((Path(folder) / "online.json").read_text())


@pytest.mark.slow
def test_rounds_and_a_killed_run_that_goes_on(run, same_state, monkeypatch, capsys):
    handlers = [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)]
    assert run("whole") == 0
    assert handlers == [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)]
    one, two = state("whole")["rounds"]
    assert [one["round"], two["round"]] == [0, 1]
    assert [one["environment_steps"], two["environment_steps"]] == [90, 180]
    dataset = read_hdf5("whole/whole.hdf5")
    assert dataset.columns["policy"].tolist() == [0.0] * 90 + [1.0] * 90
    for number, rows in ((0, 90), (1, 180)):
        record = EvaluationRecord.load(f"whole/round-{number}/evaluation.json")
        assert record.env_id == CAR and record.max_episode_steps == 40
        assert record.checkpoint_rule == "last" and len(record.returns) == 2
        assert np.mean(record.returns) == state("whole")["rounds"][number]["return_mean"]
        fitted = torch.load(f"whole/round-{number}/last.ckpt", weights_only=True)
        assert fitted["global_step"] == 4 and len(fitted["dvf_cached_values"]) == rows
        seen = dataset.columns["observations"][:rows]
        np.testing.assert_array_equal(fitted["state_dict"]["normalizer.low"], seen.min(0))
    assert Path("whole/curve.png").stat().st_size > 1000
    acted = read_hdf5("whole/round-1.hdf5").provenance["policy"]
    assert acted == "whole/round-0/last.ckpt"
    assert "180" in capsys.readouterr().out

    # killed while round 0's file is written; between fit and evaluation; and inside round 1's fit
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rounds_of, "write_hdf5", killed)
        assert run("killed/whole") == 130
    assert [path.name for path in Path("killed/whole").iterdir()] == ["online.json"]
    with monkeypatch.context() as patch:
        patch.setattr(online.Online, "_evaluate", killed)
        assert run("killed/whole") == 130
    assert state("killed/whole")["rounds"] == []

    step = DVFModule.after_step

    def stopped(self):
        step(self)
        if self.latest_policy == 1.0 and self.trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(DVFModule, "after_step", stopped)
        assert run("killed/whole") == 143
    assert "stopped in round 1; the same command goes on" in capsys.readouterr().err
    assert len(state("killed/whole")["rounds"]) == 1
    at = torch.load("killed/whole/round-1/last.ckpt", weights_only=True)["global_step"]
    assert 2 <= at < 4

    assert run("killed/whole") == 0
    assert state("killed/whole") == state("whole")
    assert sha256(Path("killed/whole/whole.hdf5")) == sha256(Path("whole/whole.hdf5"))
    for number in (0, 1):
        last = Path(f"whole/round-{number}/last.ckpt")
        same_state(last, "killed" / last)
    left = {path.name for path in Path("killed").rglob(".*") if path.is_file()}
    assert left <= {".fit.lock"}

    # finished rounds are left alone, other options refused
    stamp = Path("whole/round-1/last.ckpt").stat().st_mtime_ns
    assert run("whole") == 0
    assert Path("whole/round-1/last.ckpt").stat().st_mtime_ns == stamp
    capsys.readouterr()
    assert run("whole", "--noise", "0.7") == 2
    assert "whole was begun with --noise 0.3, not 0.7" in capsys.readouterr().err
    assert run("whole", width="16") == 2
    width = "--model.init_args.width"
    said = f"whole was begun with {width} 8 where there is {width} 16 now: give the same"
    assert said in capsys.readouterr().err


def test_mlflow_gets_the_curve(run):
    from mlflow.tracking import MlflowClient

    assert run("car", rounds=1, logger="MLflowRun") == 0
    client = MlflowClient(absolute_uri("sqlite:///mlflow.db"))
    (found,) = client.search_runs([client.get_experiment_by_name("lit-offrl").experiment_id])
    (point,) = client.get_metric_history(found.info.run_id, "online/return_mean")
    assert point.step == 90 and point.value == state("car")["rounds"][0]["return_mean"]
    assert found.data.metrics["eval/return_mean"] == point.value
    assert found.data.tags["lit_offrl.online"] == "car"
    logged = {item.path for item in client.list_artifacts(found.info.run_id, "online")}
    assert logged == {"online/online.json", "online/curve.png"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--env", "CartPole-v1"], "CartPole-v1' has the action space Discrete"),
        (["--env", "lit_offrl/mountain-car-v9"], "There is no environment"),
        (["--noise", "-1"], "noise is -1.0: give at least 0"),
        (["--seed_everything", "1"], "--seed_everything is not for online: give --seed"),
        (["--ckpt_path=x.ckpt"], "--ckpt_path is not for online: rounds resume"),
        (["--trainer.devices", "2"], "--trainer.devices is not for online: one process"),
    ],
)
def test_what_cannot_be_is_one_line(run, capsys, more, said):
    assert run("wrong", *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1 and said in lines[0]
    assert not Path("wrong/round-0.hdf5").exists()


def test_options_that_were_refused_are_not_those_that_a_folder_began_with(run, capsys):
    for wrong in (["--env", "CartPole-v1"], ["--hold", "nan"], ["--hold", "0"]):
        assert run("wrong", *wrong) == 2
        assert "was begun with" not in capsys.readouterr().err
    assert run("wrong", rounds=1) == 0
    assert run("wrong", "--noise", "0.1") == 2
    assert "wrong was begun with --noise 0.3, not 0.1" in capsys.readouterr().err


def test_a_module_without_a_scalar_policy_is_refused(run, capsys):
    wrong = {"policy_representation": "none", "value_policy": "own"}
    assert run("wrong", **wrong) == 2
    said = capsys.readouterr().err
    assert "DVFModule with policy_representation 'none' has no scalar φ(π)" in said
    assert run("wrong", rounds=1) == 0  # the rows collected serve the right one


def test_a_broken_state_is_said(run, capsys):
    Path("wrong").mkdir()
    Path("wrong/online.json").write_text("{")
    assert run("wrong") == 2
    assert "wrong/online.json: cannot be used" in capsys.readouterr().err


def test_a_config_that_changed_is_refused(run, capsys):
    Path("own.yaml").write_text("model: {init_args: {awr_temperature: 1.0}}")
    assert run("changed", "--config", "own.yaml", rounds=1) == 0
    assert run("changed", "--config", "own.yaml", rounds=1) == 0
    Path("own.yaml").write_text("model: {init_args: {awr_temperature: 2.0}}")
    capsys.readouterr()
    assert run("changed", "--config", "own.yaml", rounds=2) == 2
    said = capsys.readouterr().err
    assert said.count("--config own.yaml (sha256 ") == 2 and "changed was begun with" in said
