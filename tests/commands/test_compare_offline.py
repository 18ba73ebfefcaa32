"""``lit-offrl compare`` on runs that were never rolled out."""

import csv
import json
import shutil

import pytest
from mlflow.tracking import MlflowClient
from scipy import stats

from lit_offrl.__main__ import main
from lit_offrl.common.errors import ConfigError
from lit_offrl.evaluation.offline import direction

RUNS = {  # name: (seed, val/loss/actor, val/loss/critic, ope/fqe, gamma of that)
    "bc-0": (0, 0.5, 0.1, 10.0, 0.9),
    "bc-1": (1, 0.7, 0.1, 14.0, 0.9),
    "iql-0": (0, 0.4, 0.4, 30.0, 0.9),
    "late-0": (0, None, None, 40.0, 0.99),
}


def ope_record(*policies, gamma=0.9, date="2026-01-01"):
    """What ``ope`` writes of policies, (method, seed, value) each."""
    entries = [
        {"method": method, "training_seed": seed, "checkpoint": f"{method}-{seed}.ckpt"}
        | {"fqe": {"mean": value}}
        for method, seed, value in policies
    ]
    return json.dumps({"policies": entries, "gamma": gamma, "dataset": "robot", "date": date})


@pytest.fixture(scope="module")
def store(tmp_path_factory, empty_store):
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(empty_store, folder / "runs.db")
    uri = f"sqlite:///{folder}/runs.db"
    client = MlflowClient(uri)
    made = client.create_experiment("robot", artifact_location=str(folder / "artifacts"))
    for name, (seed, actor, critic, value, gamma) in RUNS.items():
        method = name[:-2].upper()
        tags = {"method": method, "dataset": "robot"}
        run_id = client.create_run(made, run_name=name, tags=tags).info.run_id
        client.log_param(run_id, "seed", seed)
        if actor is not None:
            client.log_metric(run_id, "val/loss/actor", 9.0, step=10)  # the last one counts
            client.log_metric(run_id, "val/loss/actor", actor, step=20)
            client.log_metric(run_id, "val/loss/critic", critic, step=20)
        client.log_metric(run_id, "ope/fqe", value)
        client.log_text(run_id, ope_record((method, seed, value), gamma=gamma), "ope/ope.json")
        client.set_terminated(run_id, "FINISHED")
    return uri


@pytest.fixture
def compare(store, capsys):
    def run(*options):
        words = ["compare", "--tracking_uri", store, "--experiment", "robot", "--seeds"]
        code = main([*words, *options])
        said = capsys.readouterr()
        assert code == 0 or said.err.count("\n") == 1
        return said.out if code == 0 else said.err

    return run


def test_losses_of_validations_are_compared(compare, tmp_path):
    said = compare("--metric", "val/loss/actor", "--output", str(tmp_path))
    assert "val/loss/actor: lower is better" in said and "0: 0.5, 1: 0.7" in said
    assert "(late-0): has no val/loss/actor" in said
    assert "Losses of different methods are different quantities" in said
    with (tmp_path / "table.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    low, high = stats.t.interval(0.95, 1, 0.6, stats.sem([0.5, 0.7]))
    assert float(rows["BC"]["mean"]) == pytest.approx(0.6) and rows["IQL"]["low"] == ""
    assert float(rows["BC"]["low"]) == pytest.approx(low, rel=0.05)
    assert float(rows["BC"]["high"]) == pytest.approx(high, rel=0.05)
    assert rows["BC"]["better"] == "lower"
    with (tmp_path / "results.csv").open() as file:
        assert [row["val/loss/actor"] for row in csv.DictReader(file)] == ["0.5", "0.7", "0.4"]
    assert "0: 0.6, 1: 0.8" in compare("--metric", "val/loss")  # the sum of the losses


def test_values_by_ope_are_compared_where_they_were_made_alike(compare):
    said = compare("--metric", "ope/fqe")
    assert "robot: 'gamma' is 0.9 in" in said and "and 0.99 in" in said
    said = compare("--metric", "ope/fqe", "--allow_unequal")
    assert "ope/fqe: higher is better" in said and "0: 10, 1: 14" in said and "'gamma' is" in said


def test_records_of_ope_need_no_mlflow(folder, capsys):
    (folder / "a.json").write_text(ope_record(("BC", 0, 1.0), ("BC", 1, 3.0), ("IQL", 0, 5.0)))
    words = ["compare", "--records", "a.json", "--metric", "ope/fqe", "--seeds"]
    assert main(words) == 0
    assert "0: 1, 1: 3" in capsys.readouterr().out
    (folder / "b.json").write_text(ope_record(("BC", 0, 2.0), date="2026-01-02"))
    both = ["compare", "--records", ".", "--metric", "ope/fqe", "--seeds"]
    assert main(both) == 2
    assert "BC on robot has seed 0 twice" in capsys.readouterr().err
    assert main([*both, "--latest"]) == 0
    assert "0: 2, 1: 3" in capsys.readouterr().out
    assert main(["compare", "--records", "a.json", "--metric", "val/loss/actor"]) == 2
    assert "have ope/fqe alone" in capsys.readouterr().err
    (folder / "c.json").write_text("{}")
    assert main(["compare", "--records", "c.json", "--metric", "ope/fqe"]) == 2
    assert "c.json: is no record of ope" in capsys.readouterr().err


def test_mistakes_are_one_line(compare, capsys):
    said = compare("--metric", "val/loss/actr")
    assert "no run has it. Did you mean 'val/loss/actor'? They have ope/fqe, val/loss, val" in said
    assert "give --better lower or --better higher" in compare("--metric", "val/entropy")
    assert "--better is only for offline metrics" in compare("--better", "lower")
    assert "invalid metric (score, return, or a name of MLflow's" in compare("--metric", "scores")


def test_which_values_are_better():
    for name in ("val/loss/actor", "val/loss", "val/actor/squared_error", "ope/fqe_error"):
        assert direction(name) == "lower"
    for name in ("ope/fqe", "eval/score", "ope/dvf_spearman"):
        assert direction(name) == "higher"
    with pytest.raises(ConfigError, match="does not tell which values are better"):
        direction("train/advantage")
