"""Searches from a file to the best trial, with a stand-in for fit and evaluate."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lit_offrl.__main__ import main
from lit_offrl.experiments import process
from lit_offrl.experiments.search import online_episodes, read_curves
from lit_offrl.experiments.sweep import read_sweep
from tests.helpers import forked

# Its losses fall to (log10(rate) + 3)² + seed: the best learning rate is 1e-3.
OBJECTIVE = """
import json, math, os, signal, sys, time
from pathlib import Path
argv = sys.argv[1:]
def value(name): return argv[argv.index(name) + 1] if name in argv else None
if argv[0] == "evaluate":
    loss = float(Path(value("--ckpt_path")).read_text())
    output = Path(value("--output"))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"scores": [-loss, -loss], "returns": [0, 0]}))
    sys.exit()
run = Path(value("--checkpoint.dirpath"))
run.mkdir(parents=True, exist_ok=True)
rate, seed = float(value("--model.rate")), int(value("--seed_everything"))
with open("calls", "a") as file:
    file.write(json.dumps([rate, seed, "--ckpt_path" in argv]) + "\\n")
loss = (math.log10(rate) + 3) ** 2 + seed
def leave(number, frame):
    (run / "last.ckpt").write_text("stopped")
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, leave)
with (run / "curves.csv").open("w") as file:
    print("step,metric,value", file=file)
    for step in (10, 20):
        print(f"{step},val/loss/actor,{loss + 1 / step}", file=file, flush=True)
        if Path("slow").exists() and loss > float(Path("slow").read_text()):
            Path("waiting").touch()
            time.sleep(60)
if Path("diverge").exists() and rate > 1e-3:
    sys.exit(3)
(run / "last.ckpt").write_text(str(loss))
(run / "finished.json").write_text('{"step": 9, "max_steps": 9, "reason": "max_steps"}')
"""
RATE = {"model.rate": {"log_uniform": [1.0e-5, 1.0e-1]}}
FOLDER = Path("sweeps/grid/m/plain")


@pytest.fixture
def search(sweep, folder, mlflow_tables, monkeypatch):
    """Run a sweep's file of a search with the stand-in; returns the exit code."""
    pytest.importorskip("optuna")
    (folder / "objective.py").write_text(OBJECTIVE)
    program = (sys.executable, "-S", str(folder / "objective.py"))
    monkeypatch.setattr(process, "PROGRAM", program)
    monkeypatch.setattr(process, "WATCH_SECONDS", 0.02)

    def run(*options, axes=RATE, seeds=(0,), evaluate=None, **keys):
        keys = {"sampler": "random", "trials": 4, **keys}
        content = {"search": keys, "options": {"trainer.max_steps": 20, **axes}}
        if evaluate is not None:
            content["evaluate"] = evaluate
        return sweep(*options, seeds=seeds, **content)

    return run


def calls():
    """Learning rate, seed, and whether it was resumed, of each fit so far."""
    return [json.loads(line) for line in Path("calls").read_text().splitlines()]


def study():
    """The sweep's one search."""
    (found,) = read_sweep(Path("grid.yaml")).searches
    return found


def trials():
    """Its trials, as Optuna's ledger has them."""
    return study().open().trials


def outcomes():
    return [trial.state.name for trial in trials()]


def test_tpe_finds_the_best_region(search):
    keys = {"sampler": "tpe", "trials": 20, "metric": "val/loss/actor"}
    assert search(**keys) == 0
    rates = [rate for rate, _, _ in calls()]
    assert len(rates) == 20 and len(set(rates)) == 20
    best = yaml.safe_load((FOLDER / "best.yaml").read_text())
    assert best["seed_everything"] == 0 and best["model"]["width"] == 1
    assert 5e-4 < best["model"]["rate"] < 2e-3
    near = sum(2e-4 < rate < 5e-3 for rate in rates[10:])
    assert near > 5  # of 10; at random there would be 3 or 4
    # Nothing is left to do.
    assert search(**keys) == 0
    assert len(calls()) == 20


def test_cmaes_and_hyperband_with_a_database_for_a_ledger(search, folder, capsys):
    keys = {"sampler": "cmaes", "pruner": "hyperband", "metric": "val/loss/actor", "trials": 5}
    keys["storage"] = f"sqlite:///{folder}/ledger.db"
    assert search("--dry_run", **keys) == 0
    assert "5 trials by cmaes, pruner hyperband; 0 done" in capsys.readouterr().out
    assert search(**keys) == 0
    assert set(outcomes()) <= {"COMPLETE", "PRUNED"} and len(outcomes()) == 5
    assert len({rate for rate, _, _ in calls()}) == 5
    assert not (FOLDER / "search.journal").exists()


def test_an_online_metric_says_how_many_episodes_it_took(search, capsys):
    assert search(trials=2, evaluate={"episodes": 2}) == 0
    assert "2 of 2 trials; the selection used 4 online episodes" in capsys.readouterr().out
    assert study().open().best_value == max(trial.value for trial in trials())


def test_an_offline_metric_is_averaged_over_seeds_and_needs_no_episode(search, capsys):
    assert search(seeds=(0, 2), metric="val/loss/actor") == 0
    out = capsys.readouterr().out
    assert "the selection used 0 online episodes" in out
    assert len(calls()) == 8 and not list(FOLDER.rglob("evaluation.json"))
    for trial in trials():
        points = [
            read_curves(run)["val/loss"][20]
            for run in FOLDER.glob(f"trial={trial.number:04}/*/fit")
        ]
        assert trial.value == pytest.approx(sum(points) / 2) and len(points) == 2


def test_a_trial_is_a_child_of_one_run_in_mlflow(search, folder):
    from mlflow.tracking import MlflowClient

    assert search(trials=2, metric="val/loss/actor") == 0
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    parent = client.get_run(study().parent())
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["search/best"] == min(t.value for t in trials())
    (artifact,) = client.list_artifacts(parent.info.run_id)
    assert artifact.path == "best.yaml"
    argv = (FOLDER / "trial=0001/seed0/fit.log").read_text()
    assert f'"mlflow.parentRunId": "{parent.info.run_id}"' in argv


def test_a_killed_search_goes_on_and_counts_no_trial_twice(search, folder):
    (folder / "slow").write_text("2")
    keys = {"axes": {"model.rate": {"choice": [0.001, 0.1, 0.01, 0.0001]}}, "sampler": "grid"}
    keys["metric"] = "val/loss/actor"
    search("--dry_run", **keys)
    driver = forked(main, ["sweep", "--config", "grid.yaml"], stderr="errors")
    try:
        while not (folder / "waiting").exists():
            assert driver.is_alive(), Path("errors").read_text()
            time.sleep(0.02)
    finally:
        driver.kill()
        driver.join()
    assert "RUNNING" in outcomes() and "WAITING" in outcomes()
    begun = calls()
    (folder / "slow").unlink()
    for pid in _pids(folder):  # the fit that outlives its driver
        os.kill(pid, signal.SIGTERM)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.02)
    assert search(**keys) == 0
    assert outcomes() == ["COMPLETE"] * 4
    again = calls()[len(begun) :]
    assert again[0][0] == begun[-1][0] and again[0][2]  # the same rate, from its checkpoint
    assert len({rate for rate, _, _ in calls()}) == 4


def _pids(folder):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder / "objective.py") in path.read_text():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_processes_share_one_ledger(search, folder):
    codes = []
    search("--dry_run", trials=12, metric="val/loss/actor")
    words = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n"
             "from lit_offrl.experiments import process, run\n"
             f"process.PROGRAM, run.LOOK_SECONDS = {process.PROGRAM!r}, 0.01\n"
             "from lit_offrl.commands import experiments\n"
             "experiments.check_jobs = lambda *args, **kwargs: None\n"
             "from lit_offrl.__main__ import main\n"
             "sys.exit(main(['sweep', '--config', 'grid.yaml']))"]  # fmt: skip
    other = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not (FOLDER / "trial=0000").exists():
        assert other.poll() is None, other.stderr.read()
        time.sleep(0.01)
    codes.append(search(trials=12, metric="val/loss/actor"))
    other.communicate()
    codes.append(other.returncode)
    assert 0 in codes and set(codes) <= {0, 1}  # 1: the other one still works on a trial
    rates = [rate for rate, _, _ in calls()]
    assert len(rates) == len(set(rates)) == 12
    assert outcomes() == ["COMPLETE"] * 12


def test_the_pruner_stops_a_fit_that_keeps_its_checkpoint(search, folder, capsys):
    (folder / "slow").write_text("2")  # whoever is bad waits to be stopped
    axes = {"model.rate": {"choice": [0.001, 0.0011, 0.0012, 0.0009, 0.0008, 0.1]}}
    keys = {"sampler": "grid", "trials": 6, "metric": "val/loss/actor", "pruner": "median"}
    assert search(axes=axes, seeds=(0, 1), evaluate={"episodes": 2}, **keys) == 0
    # The other seeds of the fit are not begun.
    assert [rate for rate, _, _ in calls()].count(0.1) == 1
    pruned = FOLDER / "trial=0005/seed0"
    assert (pruned / "fit/last.ckpt").read_text() == "stopped"
    assert json.loads((pruned / "pruned.json").read_text()) == {"step": 10}
    assert not (pruned / "evaluation.json").exists()
    out = capsys.readouterr().out
    assert "pruned" in out and "6 of 6 trials" in out
    last = trials()[-1]
    assert last.state.name == "PRUNED" and last.intermediate_values == {10: pytest.approx(4.1)}
    assert search(axes=axes, seeds=(0, 1), evaluate={"episodes": 2}, **keys) == 0
    assert [rate for rate, _, _ in calls()].count(0.1) == 1


def test_a_diverged_trial_is_over_and_the_others_go_on(search, folder):
    (folder / "diverge").touch()
    axes = {"model.rate": {"choice": [0.001, 0.01]}}
    assert search(axes=axes, sampler="grid", trials=2, metric="val/loss") == 0
    assert outcomes() == ["COMPLETE", "FAIL"]


def test_a_metric_that_fits_do_not_log_ends_the_search(search, capsys):
    assert search(metric="val/loss/actr") == 1
    assert "has no 'val/loss/actr'. Did you mean 'val/loss/actor'?" in capsys.readouterr().err
    assert len(calls()) == 1


def test_another_search_in_the_same_folder_is_refused(search, capsys):
    assert search(metric="val/loss/actor") == 0
    assert search(metric="val/loss/actor", trials=5) == 0  # more trials are no other search
    assert len(calls()) == 5
    assert search(metric="val/loss") == 2
    assert "metric: val/loss/actor → val/loss: give another 'name:'" in capsys.readouterr().err


def test_ope_values_the_fits_in_place_of_their_evaluations(search, folder):
    program = (folder / "objective.py").read_text()
    ope = (
        'if argv[0] == "ope":\n'
        '    loss = float(Path(value("--ckpt_path")).read_text())\n'
        '    assert value("--fqe_steps") == "7"\n'
        '    output = Path(value("--output")); output.mkdir()\n'
        '    record = {"policies": [{"fqe": {"mean": -loss}}]}\n'
        '    (output / "ope.json").write_text(json.dumps(record))\n'
        "    sys.exit()\n"
    )
    (folder / "objective.py").write_text(
        program.replace('if argv[0] == "eva', ope + 'if argv[0] == "eva')
    )
    assert search(metric="ope", ope={"fqe_steps": 7}, trials=2) == 0
    first = trials()[0]
    loss = float((FOLDER / "trial=0000/seed0/fit/last.ckpt").read_text())
    assert first.value == -loss and online_episodes(FOLDER, study().search) == 0


@pytest.mark.parametrize(
    ("search_keys", "axes", "said"),
    [
        ({"sampler": "tpee"}, RATE, "search.sampler: unknown sampler 'tpee'. Did you mean 'tpe'?"),
        ({}, {"x": {"log_unifrm": [1, 2]}}, "options.x: unknown distribution 'log_unifrm'. Did"),
        (
            {},
            {"x": {"uniform": [2, 2]}},
            "options.x.uniform: [2, 2] is given; give two numbers",
        ),
        ({}, {"x": {"log_uniform": [0, 2]}}, "options.x.log_uniform: [0, 2] is given; give two"),
        ({}, {"x": {"int": [1, 2.5]}}, "options.x.int: [1, 2.5] is given; give two whole"),
        ({}, {"x": {"choice": []}}, "options.x.choice: [] is given; give one value or more"),
        ({}, {}, "search: no option is a distribution"),
        ({"trials": 0}, RATE, "search.trials: 0 is given"),
        ({"metric": "scor"}, RATE, "unknown metric 'scor'. Did you mean 'score'?"),
        ({"sampler": "grid"}, RATE, "options.model.rate: a grid has no end"),
        ({"pruner": "median"}, RATE, "m/plain is not evaluated as it trains: give evaluation."),
        (
            {"metric": "ope", "pruner": "median"},
            RATE,
            "search.pruner: 'median' is given; give none",
        ),
        ({"direction": "up"}, RATE, "search.direction: unknown direction 'up'"),
        ({"storage": "s.db"}, RATE, "search.storage: 's.db' is given; give a database's URL"),
    ],
)
def test_what_cannot_be_is_one_line(search, capsys, search_keys, axes, said):
    assert search(axes=axes, **search_keys) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert "grid.yaml" in err or "m/plain" in err
    assert not Path("calls").exists()


def test_a_distribution_needs_a_search(sweep, capsys):
    assert sweep(options=RATE) == 2
    assert "options.model.rate: a distribution needs 'search:'" in capsys.readouterr().err


def test_the_file_under_sweeps(folder, capsys):
    path = Path(__file__).parents[2] / "sweeps" / "bc_search.yaml"
    assert main(["sweep", "--config", str(path), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# bc-search/bc/hopper-bullet-bundled: minimize val/loss/actor over ")
    assert "12 trials by tpe, pruner median; 0 done" in out
    assert "--model.init_args.hidden '[256, 256]'" in out and "lit-offrl evaluate" not in out


def test_a_real_search_and_the_fit_of_its_best_trial(
    folder, mlflow_tables, d4rl_file, here, monkeypatch, capsys
):
    from mlflow.tracking import MlflowClient

    from lit_offrl.__main__ import main
    from lit_offrl.experiments import run
    from lit_offrl.experiments.executors import local

    pytest.importorskip("optuna")
    monkeypatch.setattr(local, "Children", lambda: here)
    monkeypatch.setattr(run, "LOOK_SECONDS", 0.01)
    Path("bc.yaml").write_text("model: BCModule\ndata: PyBulletDataModule\n")
    options = {
        "model.init_args.learning_rate": {"choice": [1.0e-9, 1.0e-2]},
        "model.init_args.hidden": {"choice": [[8]]},
        "data.init_args.batch_size": 64,
        "data.init_args.validation_fraction": 0.2,
        "trainer.max_steps": 30,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": False,
        "trainer.enable_model_summary": False,
        "trainer.val_check_interval": 10,
        "evaluation.episodes": 0,
    }
    content = {
        "name": "tiny",
        "methods": {"bc": {"config": "bc.yaml"}},
        "datasets": {"tiny": str(d4rl_file)},
        "seeds": [0],
        "options": options,
        "search": {"sampler": "grid", "metric": "val/loss"},
    }
    Path("tiny.yaml").write_text(yaml.safe_dump(content))
    assert main(["sweep", "--config", "tiny.yaml", "--dry_run"]) == 0
    assert (
        "minimize val/loss over model.init_args.hidden, model.init_args.l"
        in capsys.readouterr().out
    )
    assert main(["sweep", "--config", "tiny.yaml"]) == 0
    row = folder / "sweeps/tiny/bc/tiny"
    curve = read_curves(row / "trial=0001/seed0/fit")["val/loss"]
    assert [*curve] == [10, 20, 30] and curve[30] < curve[10]

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'tiny'")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [each for each in runs if "lit_offrl.search" in each.data.tags]
    children = [each for each in runs if each is not parent]
    assert {each.data.tags["mlflow.parentRunId"] for each in children} == {parent.info.run_id}
    assert {each.data.tags["lit_offrl.outcome"] for each in children} == {"complete"}
    values = {c.data.tags["lit_offrl.trial"]: c.data.metrics["search/value"] for c in children}
    assert values["1"] == curve[30] == parent.data.metrics["search/best"] < values["0"]

    assert main(["fit", "--config", str(row / "best.yaml"), "--checkpoint.dirpath", "again"]) == 0
    assert read_curves(Path("again"))["val/loss"] == curve
