"""``lit-offrl compare`` on a made-up MLflow store, and what it refuses in one line."""

import csv
import json
import shutil
import subprocess
import sys

import pytest
from matplotlib.image import imread
from mlflow.tracking import MlflowClient

from lit_offrl.__main__ import main
from lit_offrl.commands.compare import _FILES

RUNS = {
    # name: (score, seed, data folder of the record, status)
    "bc-0": (10.0, 0, "evaluate", "FINISHED"),
    "bc-1": (30.0, 1, None, "FINISHED"),
    "dvf-0": (60.0, 0, "evaluate", "FINISHED"),
    "dvf-1": (50.0, 1, "evaluate", "FINISHED"),
    "bc-2": (99.0, 2, "evaluate", "FAILED"),
    "bc-3": (None, 3, None, "FINISHED"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory, empty_store, made_record):
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(empty_store, folder / "runs.db")
    uri = f"sqlite:///{folder}/runs.db"
    client = MlflowClient(uri)
    made = client.create_experiment("grid", artifact_location=str(folder / "artifacts"))
    for name, (score, seed, place, status) in RUNS.items():
        tags = {"lit_offrl.sweep": "s", "lit_offrl.method": name[:-2].upper()}
        tags |= {"lit_offrl.dataset": "hopper"}
        run_id = client.create_run(made, run_name=name, tags=tags).info.run_id
        client.log_param(run_id, "seed", seed)
        client.log_param(run_id, "pretrained", f"stage-{seed}.ckpt")  # is no difference
        client.log_metric(run_id, "data/score_mean", 12.5)
        client.log_metric(run_id, "data/return_mean", 125.0)
        if score is not None:
            # the fit's own evaluation counts only where `evaluate` left none
            fits = made_record(score if place is None else -1.0, seed)
            client.log_text(run_id, fits.to_json(), "evaluation.json")
            step = made_record(-2.0, seed).to_json()
            client.log_text(run_id, step, "evaluation-step-5.json")
        if place:
            client.log_text(run_id, made_record(score, seed).to_json(), f"{place}/last.json")
            client.log_text(run_id, "not read", f"{place}/film.mp4")
        client.set_terminated(run_id, status)
    client.create_experiment("empty", artifact_location=str(folder / "artifacts"))
    return uri


def test_a_made_up_store_gives_a_known_table(store, tmp_path, capsys):
    folder = tmp_path / "out"
    words = ["compare", "--tracking_uri", store, "--experiment", "grid", "--seeds"]
    assert main([*words, "--output", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "0: 10.0, 1: 30.0" in said and "0: 60.0, 1: 50.0" in said
    assert "(bc-2): failed, not finished" in said and "(bc-3): no evaluation record" in said
    with (folder / "table.csv").open() as file:
        means = {row["method"]: float(row["mean"]) for row in csv.DictReader(file)}
    assert means == {"BC": 20, "DVF": 55, "data": 12.5}
    assert "(bc-2): failed" in (folder / "table.md").read_text()
    for name in ("bars", "performance_profiles"):
        assert imread(folder / f"{name}.png").std() > 0.05
    # what is beside the table makes it again without the store
    assert main(["compare", "--records", str(folder / "runs.jsonl"), "--seeds"]) == 0
    again = capsys.readouterr().out
    assert again.split("\nProtocol")[0] in said


def test_a_filter_and_returns(store, capsys):
    words = ["compare", "--tracking_uri", store, "--metric", "return", "--seeds"]
    assert main([*words, "--filter", "tags.\"lit_offrl.method\" = 'DVF'"]) == 0
    said = capsys.readouterr().out
    assert "0: 600.0, 1: 500.0" in said and "BC" not in said and "125.0" in said


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--experiment", "gird"], "MLflow has no experiment 'gird'. Did you mean 'grid'?"),
        (["--experiment", "empty"], "no evaluated run to compare"),
        (["--filter", "nonsense ="], "refuses: Invalid"),
        (["--filter", "tags.x = 'y'"], "no evaluated run to compare"),
        (["--tracking_uri", "sqlite:///none.db"], "no MLflow store"),
        (["--tracking_uri", "sqlite:///broken.db"], "file is not a database"),
        (["--tracking_uri", "http://127.0.0.1:9"], "cannot be reached"),
        (["--records", "none.json"], "no such file or folder"),
        (["--records", "broken.db"], "broken.db: Not an evaluation record"),
    ],
)
def test_mistakes_are_one_line(store, folder, options, expected, capsys):
    (folder / "broken.db").write_text("this is text")
    first = [] if "--tracking_uri" in options else ["--tracking_uri", store]
    assert main(["compare", *first, *options]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and expected in line
    assert not (folder / "none.db").exists()


def test_an_output_that_cannot_be_written_is_one_line(made_record, folder, capsys):
    made_record(10.0, 0).save(folder / "records" / "0.json")
    (folder / "file").write_text("kept")
    (folder / "out" / "bars.png").mkdir(parents=True)
    for place, said in (("file", "file: cannot be made"), ("out", "bars.png: cannot be")):
        assert main(["compare", "--records", "records", "--output", place]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and said in line
    assert (folder / "file").read_text() == "kept"


def test_a_table_takes_the_place_of_an_earlier_one(made_record, folder, monkeypatch, capsys):
    made_record(10.0, 0).save(folder / "records" / "0.json")
    words = ["compare", "--records", "records", "--output", "out"]
    monkeypatch.setattr("lit_offrl.commands.compare.draw", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(words)
    assert not (folder / "out").exists()  # all files or none
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert main(words) == main([*words, "--seeds"]) == 0
    (folder / "out" / "notes.md").write_text("kept")
    assert {path.name for path in (folder / "out").iterdir()} == {*_FILES, "notes.md"}
    policy = {"method": "BC", "training_seed": 0, "checkpoint": "x", "fqe": {"mean": 1.0}}
    values = json.dumps({"policies": [policy], "dataset": "robot", "date": "2026"})
    (folder / "ope.json").write_text(values)
    offline = ["compare", "--metric", "ope/fqe", "--records", "ope.json", "--output", "out"]
    assert main(offline) == 0
    there = {path.name for path in (folder / "out").iterdir()}
    assert there == {"results.csv", "table.csv", "notes.md"}
    assert "written: out/results.csv, out/table.csv" in capsys.readouterr().out
    (folder / "ope.json").write_text(values.replace("1.0", "NaN"))
    assert main(offline) == 2
    assert "ope.json: is no record of ope" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "records", "said"),
    [
        ("results.csv", "records", "results.csv: is there already and is no earlier comparison"),
        ("runs.jsonl", "out/runs.jsonl", "runs.jsonl: is another file of this command"),
    ],
)
def test_what_is_of_no_earlier_table_stays(made_record, folder, name, records, said, capsys):
    record = made_record(10.0, 0)
    record.save(folder / "records" / "0.json")
    path = folder / "out" / name
    path.parent.mkdir()
    path.write_text("mine")
    assert main(["compare", "--records", records, "--output", "out"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and said in line
    assert path.read_text() == "mine" and len(list(path.parent.iterdir())) == 1


def test_records_need_no_mlflow(made_record, folder):
    for seed in range(2):
        made_record(10.0 * seed, seed).save(folder / f"{seed}.json")
    code = "import sys; from lit_offrl.__main__ import main; main(['compare', '--records', '.']); "
    code += "sys.exit('mlflow' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 0


def test_a_figure_of_runs_is_kept_in_their_experiment_and_is_no_run_to_compare(
    store, tmp_path, capsys
):
    options = ["--tracking_uri", store, "--experiment", "grid"]
    for _ in range(2):
        assert main(["figures", "scores", *options, "--output", str(tmp_path)]) == 0
    client = MlflowClient(store)
    (grid,) = [each for each in client.search_experiments() if each.name == "grid"]
    where = "tags.`lit_offrl.figures` = 'scores'"
    (kept,) = client.search_runs([grid.experiment_id], where)
    names = [item.path for item in client.list_artifacts(kept.info.run_id, "figures")]
    assert names == ["figures/scores.json", "figures/scores.png"]
    assert kept.info.status == "FINISHED"
    capsys.readouterr()
    assert main(["compare", *options]) == 0
    assert kept.info.run_id not in capsys.readouterr().out
