"""Earlier stages: loaded, frozen, refused where they disagree, and kept by later checkpoints."""

import hashlib
import shutil
from dataclasses import replace

import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.modules import LDCQStage1Module
from lit_offrl.modules.bc import BCModule
from lit_offrl.modules.ldcq.stages import is_same_data, load_stage, require_same_data
from lit_offrl.tracking.references import checkpoint_path

SMALL = {"horizon": 4, "width": 8, "gru_layers": 1, "latent_dim": 2}


@pytest.fixture
def trained(save):
    torch.manual_seed(0)
    module = LDCQStage1Module(2, 1, (-1.0,), (1.0,), **SMALL)
    return module, save(module, 2)


def test_a_stage_comes_back_frozen_with_its_record(trained):
    module, path = trained
    stage, record = load_stage(
        str(path), LDCQStage1Module, horizon=4, observation_dim=2, action_dim=1
    )
    assert not stage.training and not any(p.requires_grad for p in stage.parameters())
    for name, value in module.state_dict().items():
        assert torch.equal(stage.state_dict()[name], value), name
    assert record["path"] == str(path.resolve())
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["class_path"].endswith("LDCQStage1Module")
    assert record["hyper_parameters"]["horizon"] == 4
    assert record["spec"]["sha256"] == module.spec.sha256 == stage.spec.sha256
    require_same_data(record, module.spec)

    # a later checkpoint has the weights: the record alone builds the module, without the file
    path.unlink()
    built, same = load_stage(record, LDCQStage1Module, horizon=4, observation_dim=2)
    assert same == record and built.spec == stage.spec
    built.load_state_dict(stage.state_dict())
    assert not built.training and not any(p.requires_grad for p in built.parameters())


@pytest.mark.parametrize(
    ("name", "there", "here"),
    [("horizon", 4, 5), ("observation_dim", 2, 3), ("action_dim", 1, 2)],
)
def test_a_stage_of_another_size_is_refused_in_one_line(trained, name, there, here):
    _, path = trained
    with pytest.raises(ConfigError) as caught:
        load_stage(str(path), LDCQStage1Module, **{name: here})
    said = str(caught.value)
    assert said.startswith(f"{path}: has {name} {there}, this stage {here}")
    assert len(said.splitlines()) == 1


def test_a_stage_of_other_data_is_refused(trained):
    module, path = trained
    own, other = module.spec.sha256[:12], "ab" * 32
    _, record = load_stage(str(path), LDCQStage1Module)
    with pytest.raises(ConfigError, match=f"sha256 {own}…, this stage {other[:12]}…"):
        require_same_data(record, replace(module.spec, sha256=other))
    with pytest.raises(ConfigError, match=f"sha256 {own}…, this stage None"):
        require_same_data(record, replace(module.spec, sha256=None))
    parts = replace(module.spec, handling=("observations: position",))
    with pytest.raises(ConfigError, match="handling none, this stage observations: position:"):
        require_same_data(record, parts)
    rewarded = replace(module.spec, handling=("rewards: r - 1",))
    require_same_data(record, rewarded)
    assert is_same_data(record, rewarded) and not is_same_data(record, parts)


def test_what_is_no_such_stage_is_refused(trained, save):
    cloned = save(BCModule(2, 1, hidden=(4,)), 1, name="bc.ckpt")
    with pytest.raises(ConfigError, match=r"checkpoint of BCModule, where one of LDCQStage1Module"):
        load_stage(str(cloned), LDCQStage1Module)
    with pytest.raises(ConfigError, match="no such checkpoint"):
        load_stage("nowhere.ckpt", LDCQStage1Module)

    _, path = trained
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"]["width"] = 16
    torch.save(checkpoint, path)
    with pytest.raises(ConfigError, match="does not fit LDCQStage1Module"):
        load_stage(str(path), LDCQStage1Module)


def test_a_stage_is_found_by_its_mlflow_run(trained, empty_store, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient  # seconds to import

    _, path = trained
    shutil.copy(empty_store, tmp_path / "runs.db")
    uri = f"sqlite:///{tmp_path}/runs.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    experiment = client.create_experiment("made", artifact_location=f"file://{tmp_path}/artifacts")
    run = client.create_run(experiment).info.run_id
    with pytest.raises(ConfigError, match="has no checkpoint yet"):
        checkpoint_path(run)
    client.log_artifact(run, str(path.rename(tmp_path / "last.ckpt")), "checkpoints")
    (tmp_path / "step-1.ckpt").write_bytes(b"not the last")
    client.log_artifact(run, str(tmp_path / "step-1.ckpt"), "checkpoints")
    for source in (run, f"runs:/{run}"):
        stage, record = load_stage(source, LDCQStage1Module)
        assert stage.horizon == 4 and record["path"] == source
    assert checkpoint_path(f"runs:/{run}/checkpoints/step-1.ckpt").read_bytes() == b"not the last"
    with pytest.raises(ConfigError, match=r"cannot be read"):
        checkpoint_path(f"runs:/{run}/checkpoints/step-2.ckpt")
    with pytest.raises(ConfigError, match=r"cannot be read") as caught:
        checkpoint_path("0" * 32)
    assert len(str(caught.value).splitlines()) == 1
