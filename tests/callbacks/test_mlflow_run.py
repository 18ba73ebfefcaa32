"""What MLflow holds after a fit, and after one that was interrupted and resumed."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import yaml
from filelock import FileLock
from mlflow.tracking import MlflowClient

from lit_offrl import mlflow_store
from lit_offrl.__main__ import main
from lit_offrl.callbacks.mlflow_run import MLflowRun
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.errors import ConfigError
from lit_offrl.mlflow_store import absolute_uri, require_store


@pytest.fixture
def fit(command):
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
    assert run.data.metrics["data/episodes"] == 20  # all of them, held out or not
    assert len(client.get_metric_history(run.info.run_id, "data/return_mean")) == 1
    rewards = OfflineDataset.from_columns(read_columns(d4rl_file)).episode_returns()
    assert run.data.metrics["data/return_mean"] == pytest.approx(rewards.mean())
    assert "data/score_mean" not in run.data.metrics  # Pendulum has no references
    assert "val/loss/actor" in run.data.metrics and "eval/return_mean" in run.data.metrics

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
        monkeypatch.setattr(mlflow_store, "_LOCKED_SECONDS", 0.01)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ConfigError, match="database is locked"):
            MLflowRun("sqlite:///other.db")
    assert absolute_uri("sqlite:///mlflow.db") == f"sqlite:///{folder.resolve()}/mlflow.db"


def test_metrics_that_could_not_be_sent_are_sent_later(folder, monkeypatch):
    run = MLflowRun()
    run.log_metrics({"loss": 1.0, "gap": float("nan")}, step=1)
    client = run.experiment
    send = client.log_batch
    monkeypatch.setattr(client, "log_batch", lambda *args, **kwargs: 1 / 0)
    with pytest.warns(UserWarning, match="tried again later: division by zero"):
        run.save()
    monkeypatch.setattr(client, "log_batch", send)
    run.log_metrics({"loss": 0.5}, step=2)
    run.finalize()
    points = client.get_metric_history(run.run_id, "loss")
    assert [(p.step, p.value) for p in points] == [(1, 1.0), (2, 0.5)]


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
        out, err = run.communicate(timeout=120)
        assert run.returncode == 0 and out.strip() == "made", err
    names = [e.name for e in MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_experiments()]
    assert sorted(names) == ["Default", "lit-offrl"]


def test_a_store_held_by_another_process_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_offrl.callbacks.mlflow_run._LOCK_SECONDS", 0.1)
    store = tmp_path / "mlflow.db"
    with FileLock(f"{store}.lock"), pytest.raises(ConfigError, match=r"mlflow\.db\.lock is held"):
        MLflowRun(f"sqlite:///{store}")
