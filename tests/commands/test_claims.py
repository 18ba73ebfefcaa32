"""``lit-offrl claims`` writes a page of all claims, those without runs included."""

import math
import shutil
from dataclasses import replace

import pytest
import yaml
from mlflow.tracking import MlflowClient

from lit_offrl.__main__ import main
from lit_offrl.commands.claims import _meaning
from lit_offrl.experiments.claims import Finding


def test_a_page_from_records(folder, made_record, capsys):
    for method, base in (("ACGModule", 60.0), ("BCModule", 10.0)):
        for seed in range(3):
            made_record(base + seed, seed, method=method).save(f"{method}-{seed}.json")
    assert main(["claims", "--records", ".", "--output", "holds.md"]) == 0
    assert capsys.readouterr().out == "written: holds.md\n"
    page = (folder / "holds.md").read_text()
    assert "lit-offrl claims --records . --output holds.md" in page
    assert "| ACD, Table 1 | ACG is above behaviour cloning. | 1 | 0 | 0 |" in page
    assert "| ACD, Table 1 | ACG is above AWR. | not measured | |  |" in page
    line = "| hopper | ACGModule: 61.0 (60.0, 61.0, 62.0); BCModule: 11.0 (10.0, 11.0, 12.0) |"
    assert f"{line} 50.0 | 47.7 … 52.3 | 0.1% | holds |" in page
    told = (
        "the claim can guide a choice on hopper. The smallest budget is 0.1% of the paper's steps."
    )
    assert f"What it means for your choice: {told}" in page


def test_results_of_compare_give_the_findings_of_their_records(folder, made_record, capsys):
    """The intervals, the pairs of evaluations of one checkpoint and the budget are the same."""
    for seed in range(3):
        for omega, base in ((3.0, 60.0), (0.0, 50.0 - 2 * seed)):
            record = made_record(
                base + seed, seed, method="ACDModule", checkpoint_sha256=f"c{seed}"
            )
            options = {} if omega == 3.0 else {"omega": omega}
            replace(record, policy_options=options).save(f"records/acd-{omega}-{seed}.json")
        made_record(10.0 + 3 * seed, seed, method="BCModule").save(f"records/bc-{seed}.json")
    assert main(["claims", "--records", "records"]) == 0
    page = capsys.readouterr().out
    assert main(["compare", "--records", "records", "--output", "out"]) == 0
    capsys.readouterr()
    assert main(["claims", "--results", "out/results.csv"]) == 0
    again = capsys.readouterr().out
    strip = "lit-offrl claims --{} {}\n"
    assert again.replace(strip.format("results", "out/results.csv"), "") == page.replace(
        strip.format("records", "records"), ""
    )
    assert page.count("| 12.0 | 7.0 … 17.0 |") == 1  # 10, 12, 14 seed by seed, not Welch's
    assert page.count("| holds |") == 2


def test_results_have_metrics_too(folder, capsys):
    """A claim on a metric, and one on the excess of a metric over another."""
    heads = "method,dataset,seed,training_steps,figures/a/distance,figures/b/distance"
    rows = ["dvf,car,0,500,3.0,1.0", "dvf,car,1,500,4.0,1.0", "dvf,ant,0,500,4.0,"]
    (folder / "more").mkdir()
    (folder / "more" / "own.csv").write_text("\n".join([heads, *rows]))
    metric = {"name": "figures/a/distance", "minus": "figures/b/distance", "above": 1.0}
    claims = [{"paper": "P", "where": "w", "says": "s", "steps": 1000, "metric": metric}]
    (folder / "mine.yaml").write_text(yaml.safe_dump({"claims": claims}))
    assert main(["claims", "--results", "more", "--claims", "mine.yaml"]) == 0
    said = capsys.readouterr().out
    assert "hold in 0 evaluated runs" in said
    assert "| car | dvf: 2.500 (2.000, 3.000), to be above 1 | 1.500 |" in said
    assert "| 50.0% |" in said and "| ant |" not in said


GOOD = "method,dataset,options,seed,score\nbc,ant,a=1; b=x,0,5.0\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD.replace("score", "scor"), "r.csv: unknown column 'scor'. Did you mean 'score'?"),
        (GOOD.replace("dataset", "source"), "r.csv: has no column 'dataset'."),
        (GOOD.replace("5.0", "high"), "r.csv, row 2: 'score' is 'high', but has to be a number."),
        (GOOD.replace("5.0", "nan"), "r.csv, row 2: 'score' is 'nan', but has to be a number."),
        (GOOD.replace(",0,", ",one,"), "row 2: 'seed' is 'one', but has to be a whole number."),
        (GOOD.replace("bc,", ","), "row 2: 'method' is '', but has to be a name."),
        (GOOD.replace("b=x", "b"), "'options' is 'a=1; b', but has to be NAME=VALUE"),
        ("", "r.csv: cannot be read as CSV: "),
        ('method,dataset,seed\n"bc', "r.csv: cannot be read as CSV: "),
    ],
)
def test_a_line_says_what_is_wrong_with_results(folder, capsys, text, expected):
    (folder / "r.csv").write_text(text)
    assert main(["claims", "--results", "r.csv"]) == 2
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1


def test_a_meaning_names_the_datasets_of_each_verdict():
    def finding(dataset, verdict, budget=math.nan):
        return Finding(dataset, "", (0.0, 0.0, 0.0), budget, verdict)

    ant = [finding("ant", "does not hold", 0.5), finding("ant", "holds"), finding("ant", "holds")]
    assert _meaning([*ant, finding("car", "holds", 2.0)]) == (
        "the claim can guide a choice on ant (2 of 3 rows), car; expect the opposite of the claim "
        "on ant (1 of 3 rows). The smallest budget is 50.0% of the paper's steps."
    )
    assert _meaning([finding("car", "not decidable", 1.0)]) == (
        "these seeds neither support nor contradict the claim on car."
    )


def test_metrics_are_read_from_mlflow(folder, empty_store, made_record, capsys):
    shutil.copy(empty_store, "runs.db")
    client = MlflowClient("sqlite:///runs.db")
    experiment = client.create_experiment("car", artifact_location=str(folder / "artifacts"))
    for seed, value in enumerate((0.95, 0.97, 0.99)):
        tags = {"lit_offrl.method": "dvf", "lit_offrl.dataset": "car"}
        run = client.create_run(experiment, run_name=f"dvf-{seed}", tags=tags).info.run_id
        client.log_param(run, "seed", seed)
        client.log_param(run, "max_steps", 250)
        client.log_metric(run, "figures/mountain-car/spearman_return_value", value)
        client.log_text(run, made_record(1.0, seed).to_json(), "evaluation.json")
        client.set_terminated(run)
    words = ["--tracking_uri", "sqlite:///runs.db", "--experiment", "car"]
    assert main(["claims", *words]) == 0
    said = capsys.readouterr().out
    line = "| car | dvf: 0.970 (0.950, 0.970, 0.990), to be above 0.8 | 0.170 | 0.120 … 0.220 |"
    assert f"{line} 50.0% | holds |" in said  # the paper's steps are 500
    made_record(1.0, 0, method="BCModule").save("more.json")
    assert main(["claims", *words, "--records", "more.json"]) == 0
    assert line in capsys.readouterr().out
    (folder / "mine.yaml").write_text("claims: []\n")
    assert main(["claims", *words, "--claims", "mine.yaml"]) == 2
    assert "mine.yaml: claims: [] is given; give a list of claims." in capsys.readouterr().err
