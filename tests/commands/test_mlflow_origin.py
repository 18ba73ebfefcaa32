"""What commands add to the MLflow run that a checkpoint came from."""

import pytest
from mlflow.tracking import MlflowClient

from lit_offrl.commands.mlflow_origin import log_to_origin, log_to_run
from lit_offrl.modules.base import CHECKPOINT_KEY


def test_finite_numbers_and_files_go_to_the_run(folder):
    uri = f"sqlite:///{folder}/runs.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("tests", artifact_location=str(folder / "artifacts"))
    run_id = client.create_run(experiment).info.run_id
    (folder / "ope.json").write_text("{}")
    log_to_run(run_id, uri, "ope", {"spearman": 0.5, "none": float("nan")}, [folder / "ope.json"])
    assert client.get_run(run_id).data.metrics == {"ope/spearman": 0.5}
    assert [item.path for item in client.list_artifacts(run_id, "ope")] == ["ope/ope.json"]


@pytest.mark.parametrize(
    ("origin", "logged"),
    [(None, True), ({"run_id": "1", "tracking_uri": "sqlite:///gone.db"}, False)],
)
def test_a_run_that_is_not_there_is_said_and_costs_nothing(
    folder, capsys, monkeypatch, origin, logged
):
    checkpoint = {CHECKPOINT_KEY: {"mlflow": origin}}
    monkeypatch.setattr("lit_offrl.commands.mlflow_origin.read_checkpoint", lambda _: checkpoint)
    assert log_to_origin(folder / "last.ckpt", "ope", "ope", {}, []) is logged
    assert ("gone.db is not here" in capsys.readouterr().err) is not logged
    assert not (folder / "gone.db").exists()
