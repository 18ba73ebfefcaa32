"""``lit-offrl figures`` on checkpoints of tiny modules."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from itertools import product

import pytest
import torch
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient
from scipy import stats

from lit_offrl.__main__ import main
from lit_offrl.commands.figures import FIGURES
from lit_offrl.common.files import file_sha256
from lit_offrl.modules import BCModule
from lit_offrl.modules.base import CHECKPOINT_KEY
from tests.studies.conftest import car_file, maze_file, save  # noqa: F401  fixtures


def figures(*words):
    return main(["figures", *[str(word) for word in words]])


def numbers(path, name):
    found = json.loads((path / f"{name}.json").read_text())
    assert (path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return found


def test_the_list_names_every_figure(capsys):
    assert figures() == 0
    said = capsys.readouterr().out
    for name, entry in FIGURES.items():
        assert re.search(rf"^  {name} +{re.escape(entry.line)}$", said, re.MULTILINE)


@pytest.mark.parametrize("name", ["maze2d-policies", "maze2d-gamma"])
def test_maze2d(tmp_path, save, maze_file, name, capsys):  # noqa: F811
    path, data = save(4, 2, train="occupancy"), maze_file()
    words = [name, "--ckpt_path", path, "--data", data, "--samples", "30", "--output", tmp_path]
    assert figures(*words) == 0
    found = numbers(tmp_path, name)
    protocol = found["protocol"]
    assert protocol["checkpoint_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert protocol["dataset_sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()
    assert protocol["command"].startswith(f"lit-offrl figures {name} --ckpt_path")
    assert protocol["seed"] == 0 and protocol["environment"] == "lit_offrl/maze2d-umaze-v1"
    assert "torch" in protocol["versions"]
    said = capsys.readouterr().out
    assert found["metrics"] and all(metric in said for metric in found["metrics"])
    assert figures(*words, "--no-mlflow") == 0
    again = numbers(tmp_path, name)
    assert again["metrics"] == found["metrics"] and again["numbers"] == found["numbers"]


def test_mountain_car_of_a_folder_and_of_a_file(tmp_path, save, car_file):  # noqa: F811
    for step in (50, 100):
        path = save(2, 1, name=f"run/step-{step}.ckpt")
    words = ["--data", car_file, "--starts", "2", "--states", "2", "--samples", "4"]
    assert figures("mountain-car", "--ckpt_path", path.parent, *words, "--output", tmp_path) == 0
    found = numbers(tmp_path, "mountain-car")
    assert [row["step"] for row in found["numbers"]["by_step"]] == [50, 100]
    assert found["protocol"]["checkpoint"] == str(path)
    assert "spearman_return_value" in found["metrics"]
    assert figures("mountain-car", "--ckpt_path", path, *words, "--output", tmp_path / "b") == 0
    one = numbers(tmp_path / "b", "mountain-car")["numbers"]["by_step"]
    assert len(one) == 1 and one[0]["value"] == found["numbers"]["by_step"][1]["value"]


def test_values_and_curves(tmp_path, save, car_file, made_record):  # noqa: F811
    path = save(2, 1, policy_representation="sequential", history=2)
    words = ["--states", "20", "--samples", "2", "--output", tmp_path]
    assert figures("value-against-return", "--ckpt_path", path, "--data", car_file, *words) == 0
    found = numbers(tmp_path, "value-against-return")["numbers"]
    assert len(found["values"]) == len(found["returns"]) == 20 and max(found["returns"]) == 100
    checkpoint = torch.load(path, weights_only=True)
    curves = {"train/loss/reward": [[10, 2.0], [20, 1.0]]}
    torch.save({**checkpoint, "callbacks": {"Curves": {"history": curves}}}, path)
    assert figures("training-curves", "--ckpt_path", path, "--output", tmp_path) == 0
    assert numbers(tmp_path, "training-curves")["numbers"]["history"] == curves
    # What ended the fit is beside the checkpoint; another checkpoint's evaluation does not count.
    record = made_record(30.0, 0, training_steps=20)
    for sha256, added in (("0" * 64, {}), (file_sha256(path), {"eval/return_mean": [[20, 300.0]]})):
        replace(record, scores=None, checkpoint_sha256=sha256).save(tmp_path / "evaluation.json")
        assert figures("training-curves", "--ckpt_path", path, "--output", tmp_path) == 0
        found = numbers(tmp_path, "training-curves")["numbers"]["history"]
        assert found == curves | added


def test_figure_and_numbers_go_to_the_run_of_the_training(
    tmp_path, save, maze_file, empty_store, monkeypatch  # noqa: F811
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path / "runs.db")
    uri = f"sqlite:///{tmp_path}/runs.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("tests", artifact_location=str(tmp_path / "artifacts"))
    run_id = client.create_run(experiment).info.run_id
    path = save(4, 2)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint[CHECKPOINT_KEY]["mlflow"] = {"run_id": run_id, "tracking_uri": uri}
    torch.save(checkpoint, path)
    words = ["maze2d-policies", "--ckpt_path", path, "--data", maze_file(), "--samples", "20"]
    assert figures(*words, "--tracking_uri", uri) == 0
    found = numbers(tmp_path / "figures", "maze2d-policies")["metrics"]
    logged = client.get_run(run_id).data.metrics
    assert logged["figures/maze2d-policies/distance"] == pytest.approx(found["distance"])
    names = [item.path for item in client.list_artifacts(run_id, "figures")]
    assert names == ["figures/maze2d-policies.json", "figures/maze2d-policies.png"]


def test_mistakes_are_one_line(tmp_path, save, maze_file, car_file, capsys):  # noqa: F811
    data = maze_file()
    maze, scalar = "maze2d-policies", save(4, 2, name="scalar.ckpt")
    plain = save(4, 2, name="plain.ckpt", policy_representation="none")
    states = save(2, 1, name="states.ckpt", train="occupancy")
    cloned = save(4, 2, name="bc.ckpt", kind=BCModule, hidden=[8])
    car = save(2, 1, name="car.ckpt")
    cases = [
        (["maze2d-polices"], "Did you mean 'maze2d-policies'?"),
        ([maze, "--ckpt_path", "no.ckpt"], "no.ckpt: no such checkpoint"),
        ([maze, "--ckpt_path", plain, "--data", data], "policy_representation scalar"),
        ([maze, "--ckpt_path", cloned, "--data", data], "is a BCModule; this figure is of a DVF"),
        ([maze, "--ckpt_path", scalar], "does not say what it was trained on: give --data"),
        ([maze, "--ckpt_path", scalar, "--data", car_file], "this figure is of maze2d"),
        ([maze, "--ckpt_path", car, "--data", data], "was trained on states of 2 numbers"),
        (
            [maze, "--ckpt_path", scalar, "--data", data, "--gamma", "1"],
            "gamma is 1.0: give a number",
        ),
        (["maze2d-gamma", "--ckpt_path", scalar, "--gammas", "2"], "gammas is 2.0: give a number"),
        (["mountain-car", "--ckpt_path", states, "--data", car_file], "train 'occupancy' and has"),
        (["mountain-car", "--ckpt_path", car, "--data", data], "this figure is of Mountain Car"),
        (["training-curves", "--ckpt_path", car], "keeps no curves"),
        (["value-against-return", "--ckpt_path", cloned], "has no values: give a DVFModule"),
    ]
    for words, said in cases:
        assert figures(*words, *(["--output", tmp_path] if len(words) > 1 else [])) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and said in line, line
    for words, said in (
        (["--device", "tpu9"], "device of this machine"),
        (["--dpi", "0"], "--dpi: invalid positive integer value: '0'"),
    ):
        assert figures(maze, "--ckpt_path", scalar, *words) == 2
        assert said in capsys.readouterr().err


def test_figures_are_drawn_of_what_says_little():
    from lit_offrl.figures.mountain_car import mountain_car

    constant = {"spearman": None, "pearson": float("nan")}
    row = {"step": 0, "value": [1.0, 1.0], "reward": [0.0, 0.0]}
    row["correlations"] = {name: constant for name in ("return_value", "value_reward")}
    drawn = mountain_car(
        {
            "gamma": 0.9,
            "policies": [0, 1],
            "return": [2.0, 2.0],
            "by_step": [row, {**row, "step": 5}],
        }
    )
    assert isinstance(drawn, Figure) and drawn.axes[0].get_title() == "constant"


@pytest.fixture
def runs(tmp_path, made_record):
    """Records of two methods, one with an option of its policy at three values, two seeds each."""
    for seed in (0, 1):
        for omega in (0.0, 3.0, 10.0):
            record = made_record(10 * omega + seed, seed, method="ACD")
            record = replace(record, policy_options={"omega": omega})
            record.save(tmp_path / "records" / f"acd-{omega}-{seed}.json")
        made_record(5.0 + seed, seed, method="BC").save(tmp_path / "records" / f"bc-{seed}.json")
    return tmp_path / "records"


def test_scores_by_method(tmp_path, runs):
    assert figures("scores", "--records", runs, "--output", tmp_path / "out") == 0
    found = numbers(tmp_path / "out", "scores")
    bars = {bar["method"]: bar for bar in found["numbers"]["bars"]}
    assert bars["BC"]["value"] == 5.5 and bars["BC"]["runs"] == [5.0, 6.0]
    assert bars["ACD (policy.omega=3.0)"]["value"] == 30.5
    assert any(
        "20 episodes" in line or "episodes" in line for line in found["protocol"]["protocol"]
    )


def test_scores_against_an_option(tmp_path, runs, capsys):
    words = ["score-against", "--records", runs, "--output", tmp_path / "out"]
    assert figures(*words, "--option", "policy.omega") == 0
    points = numbers(tmp_path / "out", "score-against")["numbers"]["points"]
    assert [(p["method"], p["option"], p["value"]) for p in points] == [
        ("ACD", "0.0", 0.5),
        ("ACD", "3.0", 30.5),
        ("ACD", "10.0", 100.5),  # by size, not by letters
    ]
    assert figures(*words, "--option", "omega") != 0
    assert "--option omega: no run has it. Did you mean 'policy.omega'?" in capsys.readouterr().err


def test_scores_against_an_option_have_the_intervals_of_compare(tmp_path, made_record):
    """They end at what episodes of any run on the dataset earn, not of the runs at one value."""
    for seed, omega in product((0, 1, 2), (0.0, 3.0)):
        scores = tuple(50.0 + 4 * seed + 10 * omega + each for each in (-1, -0.5, 0.5, 1))
        record = made_record(0.0, seed, scores=scores, returns=scores, episodes=(0, 1, 2, 3))
        record = replace(record, seeds=(1, 2, 3, 4), lengths=(3,) * 4, terminated=(True,) * 4)
        record = replace(record, policy_options={"omega": omega})
        record.save(tmp_path / "records" / f"{omega}-{seed}.json")
    words = ["--records", tmp_path / "records", "--no-mlflow", "--output", tmp_path / "out"]
    assert figures("score-against", *words, "--option", "policy.omega") == 0
    assert figures("scores", *words) == 0
    points = numbers(tmp_path / "out", "score-against")["numbers"]["points"]
    bars = numbers(tmp_path / "out", "scores")["numbers"]["bars"]
    assert [p["low"] for p in points] == [bar["low"] for bar in bars]
    assert points[0]["high"] == bars[0]["high"] == pytest.approx(54 + 4 / 3**0.5 * 4.303, abs=0.3)


@pytest.fixture
def grid(folder, empty_store):
    """A store with an experiment, its client, and the words that choose it."""
    shutil.copy(empty_store, "runs.db")
    uri = f"sqlite:///{folder}/runs.db"
    client = MlflowClient(uri)
    made = client.create_experiment("grid", artifact_location=str(folder / "artifacts"))
    return client, made, ["--tracking_uri", uri, "--experiment", "grid"]


@pytest.fixture
def curve(grid):
    """Add a run of BC on hopper with scores by step."""
    client, made, _ = grid

    def add(seed, scores, params=(), texts=()):
        tags = {"lit_offrl.method": "bc", "lit_offrl.dataset": "hopper"}
        run_id = client.create_run(made, run_name=f"bc-{seed}", tags=tags).info.run_id
        for name, value in {"seed": seed, **dict(params)}.items():
            client.log_param(run_id, name, value)
        for step, score in scores.items():
            client.log_metric(run_id, "eval/score", score, step=step)
        for path, record in dict(texts).items():
            client.log_text(run_id, record.to_json(), path)
        client.set_terminated(run_id)

    return add


@pytest.mark.parametrize(
    ("sha256", "evaluation_seed", "afterwards", "fact"),
    [
        ("bb", 0, False, "sha256 of the data"),
        ("aa", 7, False, "evaluation seed during training"),
        ("aa", 0, True, "evaluated after training"),
        ("aa", 0, False, None),
    ],
)
def test_learning_curves_refuse_other_data_and_other_evaluations(
    folder, grid, curve, made_record, capsys, sha256, evaluation_seed, afterwards, fact
):
    first, second = made_record(1.0, 0), made_record(1.0, 0, seed=evaluation_seed)
    curve(0, {5: 1.0}, {"dataset_sha256": "aa"}, {"evaluation-step-5.json": first})
    files = {"evaluation-step-5.json": second} | ({"evaluate/a.json": second} if afterwards else {})
    curve(1, {5: 2.0}, {"dataset_sha256": sha256}, files)
    words = ["learning-curves", *grid[2], "--no-mlflow", "--output", folder / "out"]
    assert figures(*words) == (2 if fact else 0)
    said = capsys.readouterr().err
    assert f"hopper: '{fact}' is" in said if fact else not said


def test_learning_curves_say_how_many_seeds_the_last_point_has(folder, grid, curve):
    curve(0, {5: 1.0, 10: 3.0})
    curve(1, {5: 2.0, 10: float("nan")})
    words = ["learning-curves", *grid[2], "--no-mlflow", "--output", folder / "out"]
    assert figures(*words) == 0
    found = numbers(folder / "out", "learning-curves")
    assert found["metrics"] == {"hopper: bc, 1 of 2 seeds": 3.0}
    assert [p["runs"] for p in found["numbers"]["points"]] == [[1.0, 2.0], [3.0]]


def test_learning_curves_refuse_a_seed_that_is_there_twice(folder, grid, curve, capsys):
    curve(0, {5: 1.0})
    curve(0, {5: 2.0})
    words = ["learning-curves", *grid[2], "--no-mlflow", "--output", folder / "out"]
    assert figures(*words) == 2
    said = capsys.readouterr().err
    assert "bc on hopper has seed 0 twice" in said and said.endswith("with --filter.\n")


@pytest.fixture
def fits(folder, grid):
    """Runs of two methods on two datasets, evaluated after 500 and 1,000 steps, two seeds."""
    client, made, words = grid
    for method, dataset, seed in product(("bc", "iql"), ("a", "b"), (0, 1)):
        if (method, dataset) == ("iql", "b"):
            continue
        tags = {"lit_offrl.method": method, "lit_offrl.dataset": dataset}
        run_id = client.create_run(
            made, run_name=f"{method}-{dataset}-{seed}", tags=tags
        ).info.run_id
        client.log_param(run_id, "seed", seed)
        base = {"a": 10.0, "b": 40.0}[dataset] + 2 * seed
        client.log_metric(run_id, "eval/score", base, step=500, timestamp=1)
        client.log_metric(run_id, "eval/score", -99.0, step=1000, timestamp=2)
        client.log_metric(run_id, "eval/score", base + 5, step=1000, timestamp=3)  # this one counts
        client.set_terminated(run_id)
    bare = client.create_run(made, run_name="bare").info.run_id
    client.set_terminated(bare)
    return words


def test_learning_curves_are_of_seeds_and_of_all_datasets(folder, fits, capsys):
    assert figures("learning-curves", *fits, "--no-mlflow", "--output", folder / "out") == 0
    found = numbers(folder / "out", "learning-curves")
    points = {
        (p["dataset"], p["method"], p["option"]): (p["value"], p["runs"])
        for p in found["numbers"]["points"]
    }
    assert points == {
        ("a", "bc", "500"): (11.0, [10.0, 12.0]),
        ("a", "bc", "1000"): (16.0, [15.0, 17.0]),
        ("a", "iql", "500"): (11.0, [10.0, 12.0]),
        ("a", "iql", "1000"): (16.0, [15.0, 17.0]),
        ("b", "bc", "500"): (41.0, [40.0, 42.0]),
        ("b", "bc", "1000"): (46.0, [45.0, 47.0]),
        ("all datasets", "bc", "500"): (26.0, []),  # IQL was not run on b
        ("all datasets", "bc", "1000"): (31.0, []),
    }
    assert found["metrics"]["all datasets: bc"] == 31.0
    (line,) = found["protocol"]["left_out"]
    assert "(bare): was not evaluated during training: has no finite eval/score" in line
    one = found["numbers"]["points"][0]
    half = stats.t.ppf(0.975, 1)  # the standard error of 10 and 12 is 1
    assert (one["low"], one["high"]) == pytest.approx(
        (11 - half, 11 + half), abs=0.3
    )  # by resampling


def test_learning_curves_need_a_store_with_evaluations(folder, fits, runs, capsys):
    words = ["learning-curves", "--output", folder / "out"]
    assert figures(*words, *fits, "--metric", "return") == 2
    assert "has no finite eval/return_mean" in capsys.readouterr().err
    assert figures(*words, "--records", runs) == 2
    assert "--records: files of records have one score of a run" in capsys.readouterr().err


def test_scores_of_unequal_protocols_are_not_drawn_against_an_option(
    tmp_path, runs, made_record, capsys
):
    other = replace(made_record(0.0, 0, method="ACD", seed=9), policy_options={"omega": 30.0})
    other.save(runs / "acd-30.json")
    words = ["score-against", "--records", runs, "--output", tmp_path / "out"]
    assert figures(*words, "--option", "policy.omega") == 2
    assert "evaluation seed 9 instead of 0" in capsys.readouterr().err
