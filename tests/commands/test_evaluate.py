import hashlib
import json
import re
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

from lit_offrl.commands.evaluate import main, split_policy_options
from lit_offrl.common.errors import ConfigError, EvaluationError, FileError
from lit_offrl.common.files import file_sha256
from lit_offrl.datasets.environments import ENVIRONMENTS
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.evaluation.evaluate import evaluate_module, require_policy_options
from lit_offrl.evaluation.record import EvaluationRecord
from lit_offrl.modules import LDCQStage2Module
from lit_offrl.modules.base import CHECKPOINT_KEY
from lit_offrl.modules.bc import BCModule

HOPPER = ENVIRONMENTS["HopperBulletEnv-v0"]


def a_module(**changes):
    torch.manual_seed(0)
    module = BCModule(15, 3, [-1.0] * 3, [1.0] * 3, hidden=[8])
    references = {
        "ref_min_score": HOPPER.ref_min_score,
        "ref_max_score": HOPPER.ref_max_score,
        "ref_source": HOPPER.ref_source,
    }
    facts = {"env_id": HOPPER.env_id, "sha256": "ab" * 32, **references, **changes}
    module.spec = DatasetSpec("some-data", 15, 3, **facts)
    return module


def save(module, path, origin=None):
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    if origin:
        checkpoint[CHECKPOINT_KEY]["mlflow"] = origin
    torch.save(checkpoint, path)
    return str(path)


QUICK = ["--episodes", "3", "--max_episode_steps", "20", "--num_envs", "2"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_command_writes_a_full_record_and_repeats(tmp_path, capfd):
    path = save(a_module(), tmp_path / "last.ckpt")
    assert main(["--ckpt_path", path, "--seed", "4", *QUICK]) == 0
    out, err = capfd.readouterr()
    assert "normalised score" in out and "bullet build" not in out + err and "argv" not in out
    name = f"evaluations/{tmp_path.name}-last-HopperBulletEnv-v0-seed4"
    record = EvaluationRecord.load(f"{name}.json")
    assert record.method == "BCModule" and record.dataset == "some-data"
    assert record.checkpoint_rule == "last"
    with open(path, "rb") as file:
        assert record.checkpoint_sha256 == hashlib.sha256(file.read()).hexdigest()
    low, high = HOPPER.ref_min_score, HOPPER.ref_max_score
    expected = [100 * (value - low) / (high - low) for value in record.returns]
    assert record.scores == pytest.approx(expected)
    assert record.command.startswith("lit-offrl evaluate --ckpt_path")
    assert main(["--ckpt_path", path, "--seed", "4", *QUICK]) == 0
    assert not Path(f"{name}-2.json").exists()  # it is the same evaluation
    again = ["--ckpt_path", path, "--seed", "4", *QUICK, "--output", "again.json"]
    assert main(again) == 0
    assert EvaluationRecord.load("again.json").returns == record.returns
    assert main([*again[:3], "5", *again[4:]]) == 0
    assert EvaluationRecord.load("again.json").returns != record.returns


def test_the_record_of_another_checkpoint_is_not_replaced(tmp_path):
    path = save(a_module(), tmp_path / "last.ckpt")
    assert main(["--ckpt_path", path, *QUICK]) == 0
    name = f"evaluations/{tmp_path.name}-last-HopperBulletEnv-v0-seed0"
    before = Path(f"{name}.json").read_bytes()
    save(a_module(), path, origin={"run_id": "0" * 32, "tracking_uri": "sqlite:///gone.db"})
    assert main(["--ckpt_path", path, *QUICK, "--no-mlflow"]) == 0
    assert Path(f"{name}.json").read_bytes() == before
    assert EvaluationRecord.load(f"{name}-2.json").checkpoint_sha256 == file_sha256(path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gamma", "nan"], "--gamma: invalid number in [0, 1] value: 'nan'"),
        (["--gamma", "2"], "--gamma: invalid number in [0, 1]"),
        (["--video", "film.txt"], "--video: invalid name of an .mp4 value"),
        (["--episodes", "0"], "--episodes: invalid positive integer"),
    ],
)
def test_options_out_of_range_are_refused_at_once(options, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        main(["--ckpt_path", "a.ckpt", *options])


def test_another_environment_brings_its_own_references():
    module = a_module(env_id="Elsewhere-v0", ref_min_score=0.0, ref_max_score=1.0)
    options = {"episodes": 1, "seed": 0, "num_envs": 1, "max_episode_steps": 3}
    record = evaluate_module(module, env_id=HOPPER.env_id, **options)
    assert record.ref_max_score == HOPPER.ref_max_score
    with pytest.raises(EvaluationError, match="no environment 'Elsewhere-v0'"):
        evaluate_module(module, **options)
    with pytest.raises(EvaluationError, match="the module was trained for"):
        evaluate_module(module, env_id="AntBulletEnv-v0", **options)
    with pytest.raises(EvaluationError, match="name it with --env"):
        evaluate_module(a_module(env_id=None), **options)
    record = evaluate_module(a_module(ref_min_score=None), **options)
    assert record.scores is None and len(record.returns) == 1


def test_maze2d_also_has_the_score_of_a_point_that_stays():
    module = BCModule(4, 2, [-1.0] * 2, [1.0] * 2, hidden=[8])
    module.spec = DatasetSpec("walk", 4, 2, env_id="Elsewhere-v0")
    for env_id in ("lit_offrl/maze2d-open-v1", "lit_offrl/maze2d-umaze-v1"):
        record = evaluate_module(module, env_id=env_id, episodes=8, seed=0)
        assert record.reached is not None and record.scores_if_stayed is not None
        limit, span = record.lengths[0], record.ref_max_score - record.ref_min_score
        for reached, score in zip(record.reached, record.scores_if_stayed, strict=True):
            stays = limit - reached + 1 if reached else 0
            assert score == pytest.approx(100 * (stays - record.ref_min_score) / span)
    record = evaluate_module(a_module(), episodes=1, seed=0, num_envs=1, max_episode_steps=3)
    assert record.reached is None and record.scores_if_stayed is None


def test_the_module_and_the_global_generator_are_as_before():
    module = a_module().train()
    module.actor.eval()
    state = torch.get_rng_state()
    evaluate_module(module, episodes=1, seed=0, num_envs=1, max_episode_steps=3)
    assert module.training and not module.actor.training
    assert torch.equal(torch.get_rng_state(), state)


def test_policy_options():
    argv = ["--seed", "1", "--policy.samples", "4", "--policy.mode=best", "--policy.on", "true"]
    assert split_policy_options(argv) == (
        ["--seed", "1"],
        {"samples": 4, "mode": "best", "on": True},
    )
    with pytest.raises(ConfigError, match="needs a value"):
        split_policy_options(["--policy.samples", "--seed"])
    with pytest.raises(ConfigError, match="BCModule has no option 'samples'"):
        evaluate_module(a_module(), episodes=1, seed=0, policy_options={"samples": 4})


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("plan", "False", "true or false"),  # not JSON's: text, which would count as true
        ("guidance", "two", "a number"),
        ("guidance", None, "a number"),
        ("execute_steps", 2.5, "a whole number or null"),
        ("num_latents", True, "a whole number"),
        ("sampler", 3, "text"),
        ("goal", 1.0, "a list or text"),
    ],
)
def test_values_of_policy_options_of_another_type_are_refused(option, value, wanted):
    with pytest.raises(ConfigError, match=f"'{option}' of the policy .* is .*: give {wanted}.$"):
        require_policy_options(LDCQStage2Module, {option: value})


def test_values_of_policy_options_of_their_types_are_taken():
    good = {"plan": True, "guidance": 2, "execute_steps": None, "num_latents": np.int64(3)}
    require_policy_options(LDCQStage2Module, {**good, "goal": np.zeros(2), "against": "state"})


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no such checkpoint"):
        main(["--ckpt_path", "none.ckpt"])
    path = save(a_module(), tmp_path / "a.ckpt")
    mistakes = {"--epsiodes 3": "--episodes", "--video_size 9": "even", "--device tpu9": "'tpu9'"}
    for wrong, expected in mistakes.items():
        with pytest.raises(ConfigError, match=expected) as caught:
            main(["--ckpt_path", path, *wrong.split()])
        assert "\n" not in str(caught.value)


def test_a_place_for_the_record_is_tried_before_the_episodes(tmp_path, monkeypatch):
    path = save(a_module(), tmp_path / "a.ckpt")
    monkeypatch.setattr("lit_offrl.evaluation.evaluate.evaluate_module", None)
    with pytest.raises(FileError, match="cannot be written"):
        main(["--ckpt_path", path, "--output", f"{path}/score.json"])


def test_the_record_goes_to_the_run_of_the_training(tmp_path, empty_store, capsys, monkeypatch):
    shutil.copy(empty_store, tmp_path / "runs.db")
    uri = f"sqlite:///{tmp_path}/runs.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("tests", artifact_location=str(tmp_path / "artifacts"))
    run_id = client.create_run(experiment).info.run_id
    origin = {"run_id": run_id, "tracking_uri": uri}
    path = save(a_module(), tmp_path / "a.ckpt", origin)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(["--ckpt_path", path, *QUICK, "--output", "r.json"]) == 0
    with open("r.json") as file:
        scores = json.load(file)["scores"]
    logged = client.get_run(run_id).data.metrics
    assert logged["eval/score"] == pytest.approx(sum(scores) / 3)
    assert [item.path for item in client.list_artifacts(run_id, "evaluate")] == ["evaluate/r.json"]
    capsys.readouterr()

    moved = save(a_module(), tmp_path / "b.ckpt", {**origin, "tracking_uri": "sqlite:///old.db"})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///gone.db")
    assert main(["--ckpt_path", moved, *QUICK]) == 0  # the record matters more than the store
    assert re.search("not logged to MLflow run .*gone.db is not here", capsys.readouterr().err)
    assert not (tmp_path / "gone.db").exists()
    assert main(["--ckpt_path", moved, *QUICK, "--mlflow"]) == 1  # asked for
    capsys.readouterr()
    assert main(["--ckpt_path", moved, *QUICK, "--no-mlflow"]) == 0
    assert capsys.readouterr().err == ""
    assert mlflow.active_run() is None
