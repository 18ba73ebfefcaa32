"""What commands add to the MLflow run that a checkpoint came from."""

import shutil

import pytest
from mlflow.entities import Param
from mlflow.tracking import MlflowClient

from lit_offrl.evaluation.runs import runs_from_mlflow
from lit_offrl.tracking.results import OwnRun, add_to_run, log_to_origin, results


def test_finite_numbers_and_files_go_to_the_run(folder, empty_store):
    shutil.copy(empty_store, folder / "runs.db")
    uri = f"sqlite:///{folder}/runs.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("tests", artifact_location=str(folder / "artifacts"))
    run_id = client.create_run(experiment).info.run_id
    (folder / "ope.json").write_text("{}")
    metrics = {"ope/spearman": 0.5, "ope/none": float("nan")}
    add_to_run(run_id, uri, results(metrics, [folder / "ope.json"], "ope"))
    assert client.get_run(run_id).data.metrics == {"ope/spearman": 0.5}
    assert [item.path for item in client.list_artifacts(run_id, "ope")] == ["ope/ope.json"]


def test_a_run_of_its_own_says_what_was_trained_and_is_compared_by_its_tags(
    folder, empty_store, made_record
):
    shutil.copy(empty_store, folder / "runs.db")
    uri = f"sqlite:///{folder}/runs.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("tests", artifact_location=str(folder / "artifacts"))
    tags = {"lit_offrl.stage": "stage1"}
    trained = client.create_run(experiment, tags=tags).info.run_id
    for first in (0, 100):  # 120 parameters, more than MLflow takes at once
        numbers = range(first, min(first + 100, 120))
        params = [Param(f"option{number}", str(number)) for number in numbers]
        client.log_batch(trained, params=params)
    client.log_metric(trained, "data/score_mean", 7.0)  # as earlier versions did
    client.log_param(trained, "data/return_mean", "70.0")
    client.log_metric(trained, "train/loss", 1.0)
    client.set_terminated(trained)
    origin = {"run_id": trained, "tracking_uri": uri}
    for method in ("ldcq", "ldcp"):
        path = folder / method / "evaluation.json"
        made_record(50.0, 3).save(path)
        run = OwnRun(f"{method}-seed3", {"lit_offrl.method": method})
        files, metrics = [path], {"eval/score": 50.0}
        words = (origin, "evaluate", metrics, files)
        assert log_to_origin(*words, tracking_uri=uri, run=run, step=500)
    found = runs_from_mlflow(uri, ["tests"])
    assert found.left_out == ()  # the stage's own run has no record, and needs none
    assert {(run.method, run.seed) for run in found.runs} == {("ldcq", 3), ("ldcp", 3)}
    assert found.runs[0].data == {"score_mean": 7.0, "return_mean": 70.0}
    assert found.runs[0].params["option119"] == "119"
    own = client.search_runs([experiment], "tags.`lit_offrl.method` = 'ldcq'")[0]
    assert own.data.tags["lit_offrl.trained_by"] == trained
    assert own.data.metrics == {"data/score_mean": 7.0, "eval/score": 50.0}
    assert client.get_metric_history(own.info.run_id, "eval/score")[0].step == 500


@pytest.mark.parametrize(
    ("origin", "logged"),
    [(None, True), ({"run_id": "1", "tracking_uri": "sqlite:///gone.db"}, False)],
)
def test_a_run_that_is_not_there_is_said_and_costs_nothing(folder, capsys, origin, logged):
    assert log_to_origin(origin, "ope", {}, []) is logged
    said = capsys.readouterr().err
    assert ("mlflow.db is not here; the run was in sqlite:///gone.db" in said) is not logged
    assert not (folder / "gone.db").exists() and not (folder / "mlflow.db").exists()
