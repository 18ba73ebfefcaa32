"""What MLflow holds after a fit, and after one that was interrupted and resumed."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import pytest
import yaml
from filelock import FileLock
from mlflow.tracking import MlflowClient

from lit_offrl import __version__
from lit_offrl.__main__ import main
from lit_offrl.callbacks import mlflow_run
from lit_offrl.callbacks.mlflow_run import MLflowRun
from lit_offrl.callbacks.progress import StepProgress
from lit_offrl.commands import mlflow as mlflow_command
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import file_sha256
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.tracking import store
from lit_offrl.tracking.provenance import code_tags
from lit_offrl.tracking.store import absolute_uri, open_client, require_store
from lit_offrl.tracking.system import SystemMetrics


@pytest.fixture
def fit(command, mlflow_tables):
    """Run a fit with MLflow's default store; returns the exit code."""

    def run(*options):
        words = command("--trainer.log_every_n_steps", "2", *options)
        position = words.index("--trainer.logger")
        del words[position : position + 2]
        return main(words)

    return run


def artifacts(client, run_id, folder=None):
    found = set()
    for item in client.list_artifacts(run_id, folder):
        found |= artifacts(client, run_id, item.path) if item.is_dir else {item.path}
    return found


def read_columns(path):
    with h5py.File(path) as file:
        names = ("observations", "actions", "rewards", "terminals", "timeouts")
        return {name: file[name][()] for name in names}


def test_a_run_and_its_resumption_are_one_run_that_holds_everything(fit, folder, d4rl_file):
    long = "--model.init_args.hidden=" + str([8] * 100)  # longer than MLflow keeps a parameter
    options = (long, "--evaluation.episodes", "1", "--trainer.val_check_interval", "3")
    assert fit(*options) == 0
    path = "checkpoints/BCModule-pendulum-seed0/last.ckpt"
    assert fit(*options, "--trainer.max_steps", "10", "--ckpt_path", path) == 0

    assert (folder / "mlflow.db").is_file()
    client = MlflowClient(absolute_uri("sqlite:///mlflow.db"))
    experiment = client.get_experiment_by_name("lit-offrl")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "BCModule-pendulum-seed0" and run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "0.0003" and run.data.params["seed"] == "0"
    assert run.data.params["data/init_args/batch_size"] == "64"
    assert not [name for name in run.data.params if name.startswith("_")]

    steps = [p.step for p in client.get_metric_history(run.info.run_id, "train/loss/actor")]
    assert steps == [2, 4, 6, 8, 10]
    assert run.data.params["data/episodes"] == "20"  # all of them, held out or not
    rewards = OfflineDataset.from_columns(read_columns(d4rl_file)).episode_returns()
    assert float(run.data.params["data/return_mean"]) == pytest.approx(rewards.mean())
    assert "data/score_mean" not in run.data.params  # Pendulum has no references
    assert "val/loss/actor" in run.data.metrics and "eval/return_mean" in run.data.metrics
    assert not [name for name in run.data.metrics if name.startswith("data/")]
    facts = {"method": "BCModule", "dataset": "pendulum", "seed": "0", "precision": "32-true"}
    assert facts.items() <= run.data.params.items() and facts.items() <= run.data.tags.items()
    assert run.data.params["max_steps"] == "6" and run.data.tags["max_steps"] == "10"
    assert run.data.params["dataset_sha256"] == file_sha256(d4rl_file)

    # the table's column of datasets, once for both fits, and its filter
    (taken,) = run.inputs.dataset_inputs
    assert (taken.dataset.name, taken.dataset.digest) == ("pendulum", file_sha256(d4rl_file)[:12])
    assert {tag.key: tag.value for tag in taken.tags} == {"mlflow.data.context": "training"}
    profile, source = json.loads(taken.dataset.profile), json.loads(taken.dataset.source)
    assert (profile["rows"], profile["episodes"], source["uri"]) == (600, 20, str(d4rl_file))
    assert profile["return_mean"] == pytest.approx(rewards.mean())
    features = json.loads(json.loads(taken.dataset.schema)["mlflow_tensorspec"]["features"])
    shapes = {one["name"]: one["tensor-spec"] for one in features}
    assert shapes["observations"] == {"dtype": "float32", "shape": [-1, 3]}
    assert shapes["terminals"] == {"dtype": "bool", "shape": [-1]}
    where = f"dataset.name = 'pendulum' AND dataset.digest = '{taken.dataset.digest}'"
    assert len(client.search_runs([experiment.experiment_id], where)) == 1
    assert not client.search_runs([experiment.experiment_id], "dataset.name = 'hopper'")

    # what it was made by, and how it was scored, in words
    tags = run.data.tags
    assert tags["lit_offrl.version"] == __version__
    assert tags["lit_offrl.command"].startswith("lit-offrl fit ")
    assert "--trainer.max_steps 10 --ckpt_path" in tags["lit_offrl.command"]
    note = tags["mlflow.note.content"]
    assert note.startswith("**BCModule** on `pendulum`") and "10 steps" in note
    assert "Return -" in note and "1 episodes a run, evaluation seed 0; checkpoint: last" in note

    assert artifacts(client, run.info.run_id) == {
        "config.yaml",
        "config-resumed.yaml",
        "evaluation.json",
        "figures/training_curves.png",
        "checkpoints/last.ckpt",
    }
    config = client.download_artifacts(run.info.run_id, "config.yaml", str(folder))
    hidden = yaml.safe_load(Path(config).read_text())["model"]["init_args"]["hidden"]
    assert hidden == [8] * 100


def test_a_run_that_was_asked_to_stop_is_killed_and_not_failed(fit, folder, monkeypatch):
    from lit_offrl.modules import BCModule

    def status():
        client = MlflowClient(absolute_uri("sqlite:///mlflow.db"))
        (run,) = client.search_runs([client.get_experiment_by_name("lit-offrl").experiment_id])
        return run.info.status

    options = ("--evaluation.episodes", "0", "--trainer.max_steps", "3")
    with monkeypatch.context() as patched:
        patched.setattr(BCModule, "after_step", lambda self: signal.raise_signal(signal.SIGTERM))
        assert fit(*options) == 128 + signal.SIGTERM
    assert status() == "KILLED"
    path = "checkpoints/BCModule-pendulum-seed0/last.ckpt"
    assert fit(*options, "--ckpt_path", path) == 0
    assert status() == "FINISHED"


def test_the_commit_is_a_tag_where_the_folder_is_of_a_repository(folder):
    assert "mlflow.source.git.commit" not in code_tags("lit-offrl fit")
    for words in (["init"], ["commit", "--allow-empty", "-m", "first"]):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *words], check=True, capture_output=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert code_tags("lit-offrl fit")["mlflow.source.git.commit"] == commit.strip()


def test_the_machines_load_goes_the_way_of_all_metrics(fit, monkeypatch):
    monkeypatch.setattr(SystemMetrics.__init__, "__defaults__", (0.01,))
    monkeypatch.setattr(StepProgress, "on_train_start", lambda *_: time.sleep(0.2))
    own = ["--trainer.logger", "lit_offrl.callbacks.MLflowRun"]
    option = "--trainer.logger.init_args.log_system_metrics"
    assert fit(*own, option, "true", "--evaluation.episodes", "0") == 0
    run, steps = the_run()
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 1
    assert "system/cpu_utilization_percentage" in run.data.metrics and steps == [2, 4, 6]
    assert "system metrics" not in [thread.name for thread in threading.enumerate()]


def test_a_store_that_cannot_be_used_is_said_at_once(folder, monkeypatch):
    with pytest.raises(ConfigError, match="cannot be written"):
        require_store("sqlite:////no/such/folder/mlflow.db")
    with pytest.raises(ConfigError, match="cannot be reached"):
        MLflowRun("http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="MLflow at foo://bar refuses"):
        MLflowRun("foo://bar")
    (folder / "garbage.db").write_bytes(b"no database" * 100)
    (folder / "folder.db").mkdir()
    for name in ("garbage", "folder"):
        with pytest.raises(ConfigError, match=f"{name}.db cannot be used"):
            MLflowRun(f"sqlite:///{name}.db")
    with contextlib.closing(sqlite3.connect("other.db")) as other:
        other.execute("CREATE TABLE t (x)")
        with pytest.raises(ConfigError, match="the database of another program"):
            MLflowRun("sqlite:///other.db")
        monkeypatch.setattr(store, "_LOCKED_SECONDS", 0.01)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ConfigError, match="database is locked"):
            MLflowRun("sqlite:///other.db")
    assert absolute_uri("sqlite:///mlflow.db") == f"sqlite:///{folder.resolve()}/mlflow.db"


def the_run(client=None, experiment="lit-offrl"):
    client = client or MlflowClient(absolute_uri("sqlite:///mlflow.db"))
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss/actor")
    return run, [point.step for point in history]


LAST = "checkpoints/BCModule-pendulum-seed0/last.ckpt"


def test_a_store_that_dies_costs_nothing_and_is_made_good_later(fit, folder, monkeypatch, capsys):
    """Dead from the first step to the end; then `sync`, a kill's loss, and a resume."""
    monkeypatch.setattr(mlflow_run, "_LAST_SECONDS", 0.5)
    alive = {}

    def begin(self, trainer, module):
        for name in ("log_batch", "set_terminated", "get_run"):
            alive[name] = getattr(MlflowClient, name)
            monkeypatch.setattr(MlflowClient, name, lambda *args, **kwargs: 1 / 0)

    monkeypatch.setattr(StepProgress, "on_train_start", begin)
    assert fit("--trainer.enable_progress_bar", "true") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "lit-offrl: reached trainer.max_steps at step 6 of 6"
    run_folder = Path(LAST).parent
    assert out.count("MLflow at") <= 2 and "lit-offrl mlflow sync checkpoints/BCM" in out
    assert Path(LAST).is_file() and len(list(run_folder.glob("mlflow-unsent-*.json"))) == 1
    for name, call in alive.items():
        monkeypatch.setattr(MlflowClient, name, call)
    assert the_run()[1] == [] and the_run()[0].info.status == "RUNNING"

    assert main(["mlflow", "sync", str(run_folder)]) == 0
    run, steps = the_run()
    assert steps == [2, 4, 6] and run.info.status == "FINISHED"
    assert run.data.params["method"] == "BCModule" and run.data.tags["dataset"] == "pendulum"
    client = MlflowClient(absolute_uri("sqlite:///mlflow.db"))
    assert {"config.yaml", "checkpoints/last.ckpt"} <= artifacts(client, run.info.run_id)
    assert not list(run_folder.glob("mlflow-unsent-*"))
    assert main(["mlflow", "sync", LAST]) == 0
    assert "nothing was missing" in capsys.readouterr().out and the_run()[1] == [2, 4, 6]

    with contextlib.closing(sqlite3.connect("mlflow.db")) as database:  # as a kill -9 would
        database.execute("DELETE FROM metrics WHERE step > 2")
        database.commit()
    assert fit("--trainer.max_steps", "8", "--ckpt_path", LAST) == 0
    assert the_run()[1] == [2, 4, 6, 8]
    with pytest.raises(ConfigError, match="no such folder or checkpoint"):
        mlflow_command.main(["sync", "nowhere"])
    with pytest.raises(ConfigError, match=r"other\.db: give another --tracking_uri"):
        mlflow_command.main(["sync", LAST, "--tracking_uri", "sqlite:///other.db"])


def test_a_run_goes_on_among_loggers_and_in_a_folder_that_was_moved(
    command, tmp_path, capsys, monkeypatch
):
    """The project lies in a folder with an odd name, moves to another, and goes on."""
    before, after = tmp_path / "100%25 a?b#ü", tmp_path / "moved%20 here"
    before.mkdir()
    monkeypatch.chdir(before)
    loggers = [
        {"class_path": "lit_offrl.callbacks.MLflowRun", "init_args": {"experiment_name": "mine"}},
        {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "csv"}},
    ]
    Path("two.yaml").write_text(yaml.safe_dump({"trainer": {"logger": loggers}}))
    words = command("--trainer.log_every_n_steps", "2", "--evaluation.episodes", "1")
    position = words.index("--trainer.logger")
    words[position : position + 2] = ["--config", "two.yaml"]
    assert main(words) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [before.name]
    before.rename(after)
    monkeypatch.chdir(after)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    words[position : position + 2] = []
    assert main([*words, "--trainer.max_steps", "8", "--ckpt_path", LAST]) == 0
    client = open_client("sqlite:///mlflow.db")
    run, steps = the_run(client, "mine")
    assert run.info.run_name == "BCModule-pendulum-seed0" and steps == [2, 4, 6, 8]
    assert client.get_experiment_by_name("lit-offrl") is None
    assert main(["evaluate", "--ckpt_path", LAST, "--episodes", "1", "--output", "r.json"]) == 0
    assert main(["compare", "--experiment", "mine"]) == 0
    assert "BCModule" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == [after.name]  # nothing beside it
    words += ["--trainer.logger", "lit_offrl.callbacks.MLflowRun"]
    words += ["--trainer.logger.init_args.tracking_uri", "sqlite:///other.db"]
    assert main([*words, "--trainer.max_steps", "10", "--ckpt_path", LAST]) == 0
    out = capsys.readouterr().out
    assert f"MLflow run {run.info.run_id} of sqlite:///" in out and "a new run begins there" in out
    assert the_run(open_client("sqlite:///other.db"))[1] == [2, 4, 6, 8, 10]


def test_lightnings_own_logger_goes_on_in_its_run(command, folder):
    words = command("--trainer.log_every_n_steps", "2")
    words[words.index("--trainer.logger") + 1] = "MLFlowLogger"
    name = "--trainer.logger.init_args."
    words += [f"{name}tracking_uri", "sqlite:///own.db", f"{name}experiment_name", "own"]
    assert main(words) == 0
    assert main([*words, "--trainer.max_steps", "8", "--ckpt_path", LAST]) == 0
    run, steps = the_run(open_client("sqlite:///own.db"), "own")
    assert run.info.run_name == "BCModule-pendulum-seed0" and steps == [2, 4, 6, 8]


def test_what_a_launcher_sets_counts_where_nothing_is_given(fit, folder, monkeypatch):
    client = open_client("sqlite:///mlflow.db")
    run_id = client.create_run(client.create_experiment("launched"), run_name="given").info.run_id
    with monkeypatch.context() as patched:
        patched.setenv("MLFLOW_RUN_ID", run_id)
        assert fit() == 0
        patched.setenv("MLFLOW_RUN_ID", "0" * 32)
        with pytest.raises(ConfigError, match=r"MLflow at .* refuses: .*0000"):
            assert MLflowRun().experiment
        given = MLflowRun(experiment_name="launched")
        assert given.run_id not in (run_id, "0" * 32)
        given.finalize()
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("given", "FINISHED")
    assert run.data.tags["seed"] == "0"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by-name")
    by_name = MLflowRun()
    assert client.get_experiment(by_name.experiment_id).name == "by-name"
    by_name.finalize()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", run.info.experiment_id)
    by_id = MLflowRun()
    assert by_id.experiment_id == run.info.experiment_id
    by_id.finalize()


@pytest.mark.slow
def test_runs_begun_at_once_share_a_new_store(tmp_path):
    code = "import sys; from lit_offrl.callbacks.mlflow_run import MLflowRun as Run; "
    code += "input(); print(Run('sqlite:///mlflow.db').experiment and 'made')"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("\n")
        run.stdin.flush()
    for run in runs:
        out, err = run.communicate(timeout=600)
        assert run.returncode == 0 and out.strip() == "made", err
    names = [e.name for e in MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_experiments()]
    assert sorted(names) == ["Default", "lit-offrl"]


def test_a_store_held_by_another_process_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_offrl.tracking.store._LOCK_SECONDS", 0.1)
    store = tmp_path / "mlflow.db"
    with FileLock(f"{store}.lock"), pytest.raises(ConfigError, match=r"mlflow\.db\.lock is held"):
        MLflowRun(f"sqlite:///{store}")
