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
    assert main(["claims", "--results", "more/*.csv", "--claims", "mine.yaml"]) == 0
    said = capsys.readouterr().out
    assert "hold in 0 evaluated runs" in said
    assert "| car | dvf: 2.500 (2.000, 3.000), to be above 1 | 1.500 |" in said
    assert "| 50.0% |" in said and "| ant |" not in said


HOLDS = "- {paper: P, where: w, says: s, above: {row: acg, rivals: [bc]}}"


@pytest.fixture
def judged(folder, capsys):
    """Judge the claim that ACG is above BC, and return the page, or the line of an error."""
    (folder / "mine.yaml").write_text(f"claims:\n{HOLDS}\n")

    def judge(*words):
        code = main(["claims", "--claims", "mine.yaml", *words])
        said = capsys.readouterr()
        assert code == 0 or said.err.count("\n") == 1
        return said.out if code == 0 else said.err

    return judge


@pytest.fixture
def compared(folder, made_record):
    """Write records of two seeds of a method, and what ``compare --output`` makes of them."""

    def write(method, score, **changes):
        for seed in range(2):
            record = made_record(score + seed, seed, method=method, **changes)
            record.save(f"records/{method}-{seed}.json")
        words = ["--records", f"records/{method}-*.json", "--output", method]
        assert main(["compare", *words]) == 0

    return write


@pytest.mark.parametrize(
    "change",
    [
        {"max_episode_steps": 7},
        {"ref_max_score": 2000.0},
        {"dataset_handling": ("rewards scaled",)},
        {"environment_differences": ("no wind",)},
        {"versions": {"python": "3.12"}},
    ],
)
def test_results_keep_the_whole_protocol(judged, compared, change):
    compared("ACGModule", 60.0)
    compared("BCModule", 10.0)
    assert "| holds |" in judged("--results", "ACGModule", "BCModule")
    compared("BCModule", 10.0, **change)
    assert "Not measured" in judged("--results", "ACGModule", "BCModule")


def test_a_run_counts_once_wherever_it_is_read(judged, compared, folder):
    compared("ACGModule", 60.0)
    compared("BCModule", 10.0)
    split = judged("--results", "ACGModule", "--records", "records/BCModule*")
    assert "hold in 4 evaluated runs" in split and "| holds |" in split
    shutil.copy("BCModule/results.csv", "copy.csv")
    both = judged("--results", "*/results.csv", "copy.csv", "--records", "records")
    assert split.partition("##")[2] == both.partition("##")[2]
    assert "hold in 4 evaluated runs" in both


def test_the_results_of_a_folder_are_its_results_csv(judged, compared, folder):
    compared("ACGModule", 60.0)
    assert "hold in 2 evaluated runs" in judged("--results", "ACGModule")  # not its table.csv
    (folder / "empty").mkdir()
    assert "--results empty: has no file results.csv" in judged("--results", "ACGModule", "empty")


def test_a_seed_that_is_twice_in_results_is_refused(judged, folder):
    rows = ["acg,ant,0,50", "acg,ant,0,50", "bc,ant,0,1", "acg,ant,0,90"]
    (folder / "r.csv").write_text("\n".join(["method,dataset,seed,score", *rows]))
    assert "acg on ant has seed 0 twice, in r.csv, row 2 and in r.csv, row 5: leave" in judged(
        "--results", "r.csv"
    )


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
        (GOOD.replace("5.0", "5,0"), "row 2: has 6 cells where the first line has 5 names: give"),
        (GOOD.replace(",5.0", ""), "row 2: has 4 cells where the first line has 5 names: give"),
        (GOOD.replace("5.0", '5.0\n\nbc,ant,"a\n=1",1,2\nx,'), "r.csv, row 6: has 2 cells"),
        (GOOD.replace("options", "seed"), "r.csv: has the column 'seed' twice: leave one out."),
        (
            "method,dataset,seed,score,date\nbc,ant,0,5.0,1.2.2026\n",
            "row 2: 'date' is '1.2.2026', but has to be such as 2026-01-31",
        ),
        ("", "r.csv: cannot be read as CSV: it is empty."),
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


METRIC = "figures/mountain-car/spearman_return_value"


def test_metrics_are_judged_without_evaluations_and_by_the_results_of_compare(
    folder, empty_store, capsys
):
    """The budget, the data and the options of a run are those of its MLflow run."""
    shutil.copy(empty_store, "metrics.db")
    client = MlflowClient("sqlite:///metrics.db")
    experiment = client.create_experiment("car", artifact_location=str(folder / "artifacts"))
    for option in ("0.0", "1.0"):
        for seed, data in enumerate("aaab"):
            tags = {"lit_offrl.method": "dvf", "lit_offrl.dataset": "car"}
            tags |= {"lit_offrl.option.omega": option}
            run = client.create_run(experiment, tags=tags).info.run_id
            for name, value in (("seed", seed), ("max_steps", 250), ("dataset_sha256", data)):
                client.log_param(run, name, value)
            client.log_metric(run, METRIC, 0.9 + seed / 100)
            client.set_terminated(run)
    words = ["--tracking_uri", "sqlite:///metrics.db", "--experiment", "car"]
    assert main(["claims", *words]) == 0
    said = capsys.readouterr().out
    assert "hold in 0 evaluated runs" in said
    for option in ("0.0", "1.0"):
        line = f"| car | dvf (omega={option}): "
        assert f"{line}0.910 (0.900, 0.910, 0.920), to be above 0.8 |" in said
        assert f"{line}0.930, to be above 0.8 | 0.130 | – | 50.0% |" in said
    unequal = ["--metric", METRIC, "--better", "higher", "--output", "o"]
    assert main(["compare", *words, *unequal]) == 2
    assert "car: 'dataset_sha256' is a in" in capsys.readouterr().err
    assert main(["compare", *words, *unequal, "--allow_unequal"]) == 0
    capsys.readouterr()
    assert main(["claims", "--results", "o"]) == 0
    again = capsys.readouterr().out
    assert again.partition("## DVF")[2] == said.partition("## DVF")[2]
    assert main(["claims", "--results", "o", *words]) == 0
    assert capsys.readouterr().out.partition("## DVF")[2] == said.partition("## DVF")[2]


def test_metrics_are_read_from_mlflow(folder, empty_store, made_record, capsys):
    shutil.copy(empty_store, "runs.db")
    client = MlflowClient("sqlite:///runs.db")
    experiment = client.create_experiment("car", artifact_location=str(folder / "artifacts"))
    for seed, value in enumerate((0.95, 0.97, 0.99)):
        tags = {"lit_offrl.method": "dvf", "lit_offrl.dataset": "car"}
        run = client.create_run(experiment, run_name=f"dvf-{seed}", tags=tags).info.run_id
        client.log_param(run, "seed", seed)
        client.log_param(run, "max_steps", 250)
        client.log_metric(run, METRIC, value)
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
