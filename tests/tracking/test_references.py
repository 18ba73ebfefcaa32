"""What takes a checkpoint's path takes an MLflow run or a registered model as well."""

import json
import shutil

import pytest
import torch
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.tracking import MlflowClient

from lit_offrl.__main__ import main
from lit_offrl.common.errors import ConfigError
from lit_offrl.evaluation.runs import _same_in_a_cell
from lit_offrl.modules import load_module
from lit_offrl.tracking import references
from lit_offrl.tracking.references import checkpoint_path, is_reference, label

LAST = "checkpoints/BCModule-pendulum-seed0/last.ckpt"


@pytest.fixture
def registered(command, mlflow_tables, folder):
    """A fit's run, whose checkpoint is version 1 of 'walker', the champion, in another store."""
    assert (
        main(
            command("--trainer.logger", "lit_offrl.callbacks.MLflowRun", "--trainer.max_steps", "4")
        )
        == 0
    )
    other = folder / "other"
    other.mkdir()
    shutil.move("mlflow.db", other / "mlflow.db")
    uri = f"sqlite:///{other}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("lit-offrl").experiment_id
    (run,) = client.search_runs([experiment])
    model = client.create_logged_model(experiment, "bc", run.info.run_id)
    client.log_model_artifact(model.model_id, LAST)
    client.finalize_logged_model(model.model_id, "READY")
    client.create_registered_model("walker")
    client.create_model_version("walker", f"models:/{model.model_id}", run.info.run_id)
    client.set_registered_model_alias("walker", "champion", "1")
    return uri, run.info.run_id, model.model_id


def refusal(source, uri):
    with pytest.raises(ConfigError) as caught:
        checkpoint_path(source, uri)
    said = str(caught.value)
    assert len(said.splitlines()) == 1 and "Traceback" not in said
    return said


def test_runs_and_models_stand_for_checkpoints(registered, folder, monkeypatch, capsys):
    uri, run, model = registered
    sources = [run, f"runs:/{run}", f"runs:/{run}/checkpoints/last.ckpt", f"models:/{model}"]
    sources += ["models:/walker@champion", "models:/walker/1"]
    for source in sources:
        assert is_reference(source)
        path = checkpoint_path(source, uri)
        assert path.read_bytes() == (folder / LAST).read_bytes() and path.name == "last.ckpt"
        assert label(path) == (model if "models" in source else run)
        assert not _same_in_a_cell("critic", source)  # seeds of a cell may differ in it
    assert not is_reference(LAST) and label(folder / LAST) == "BCModule-pendulum-seed0"

    assert "has no alias 'chamption'. Did you mean 'champion'?" in refusal(
        "models:/walker@chamption", uri
    )
    assert "has no alias 'x'. It has champion." in refusal("models:/walker@x", uri)
    assert "'walker' at" in refusal("models:/walker/7", uri)
    assert "has no version 7. It has 1." in refusal("models:/walker/7", uri)
    assert "no registered model 'wlker'. Did you mean 'walker'?" in refusal("models:/wlker/1", uri)
    assert "names no version: give models:/NAME@ALIAS" in refusal("models:/walker", uri)
    assert "is no run of MLflow's" in refusal("runs:/1/../../secret", uri)
    assert "cannot be read" in refusal("0" * 32, uri)
    assert "There is no MLflow store" in refusal("models:/walker/1", "sqlite:///gone.db")
    assert not (folder / "gone.db").exists()

    # commands take the store as an option, the interface in Python from the environment
    words = ["evaluate", "--ckpt_path", "models:/walker@champion", "--tracking_uri", uri]
    few = ["--episodes", "1", "--max_episode_steps", "5", "--mlflow"]
    assert main([*words, *few]) == 0
    assert json.loads((folder / f"evaluations/{model}-last-Pendulum-v1-seed0.json").read_text())
    assert main(["evaluate", "--ckpt_path", "models:/walker@x", "--tracking_uri", uri]) == 2
    assert "has no alias 'x'" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    module, same = load_module("models:/walker@champion"), load_module(LAST)
    for name, value in same.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


def test_a_fit_goes_on_from_a_run_in_a_folder_of_its_own(
    registered, command, folder, same_state, monkeypatch
):
    uri, run, _ = registered
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    artifact = checkpoint_path(run)
    before, beside = artifact.read_bytes(), sorted(artifact.parent.iterdir())
    longer = ["--trainer.logger", "lit_offrl.callbacks.MLflowRun", "--trainer.max_steps", "8"]
    assert main(command(*longer, "--ckpt_path", f"runs:/{run}")) == 0
    went_on = folder / "checkpoints/BCModule-pendulum-seed0-2/last.ckpt"
    assert went_on.is_file() and (folder / LAST).read_bytes() == before
    assert main(command(*longer, f"--ckpt_path={LAST}")) == 0
    same_state(went_on, folder / LAST)
    assert sorted(artifact.parent.iterdir()) == beside  # no lock and no file of the fit's
    client = MlflowClient(uri)
    (only,) = client.search_runs([client.get_run(run).info.experiment_id])
    steps = {m.step for m in client.get_metric_history(only.info.run_id, "train/loss/actor")}
    assert max(steps) == 8


def test_a_file_elsewhere_is_copied_to_the_caches(registered, data_directory, monkeypatch):
    uri, run, _ = registered

    class Elsewhere:
        """A store's files that are on no disk of this machine."""

        def __init__(self, *place):
            self.files = LocalArtifactRepository(place[1])

        def list_artifacts(self, folder=None):
            return self.files.list_artifacts(folder)

        def download_artifacts(self, path, folder):
            return shutil.copy(self.files.download_artifacts(path), folder)

    monkeypatch.setattr(references, "artifact_repository", Elsewhere)
    for source, name in ((run, run), ("models:/walker@champion", "walker-1")):
        path = checkpoint_path(source, uri)
        assert path == data_directory / "cache" / "mlflow" / name / "artifacts" / "last.ckpt"
        assert label(path) == name and load_module(path) is not None
        assert [each.name for each in path.parent.iterdir()] == ["last.ckpt"]


def test_a_model_without_a_checkpoint_is_refused(registered, tmp_path):
    uri, run, _ = registered
    client = MlflowClient(uri)
    model = client.create_logged_model(client.get_run(run).info.experiment_id, "other")
    (tmp_path / "weights.bin").write_bytes(b"others'")
    client.log_model_artifact(model.model_id, str(tmp_path / "weights.bin"))
    assert "has no checkpoint of lit-offrl's" in refusal(f"models:/{model.model_id}", uri)
