"""A real training, killed and gone on with by sweeps; MLflow has one run of it."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml

from lit_offrl import __version__
from lit_offrl.__main__ import main
from lit_offrl.experiments.job import State
from lit_offrl.experiments.process import Children
from lit_offrl.experiments.run import Choices, Runner
from lit_offrl.experiments.sweep import read_sweep
from lit_offrl.tracking.store import absolute_uri


@pytest.mark.slow
def test_a_cell_killed_twice_ends_as_an_unbroken_run(lit, folder, d4rl_file, here, same_state):
    from mlflow.tracking import MlflowClient

    options = {
        "model.init_args.hidden": [8],
        "data.init_args.batch_size": 64,
        "trainer.max_steps": 1000,  # some seconds: the kill comes before their end
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": False,
        "trainer.enable_model_summary": False,
        "evaluation.episodes": 0,
        "checkpoint.every_n_train_steps": 100,
    }
    Path("bc.yaml").write_text("model: BCModule\ndata: PyBulletDataModule\n")
    content = {"methods": {"bc": {"config": "bc.yaml"}}, "datasets": {"tiny": str(d4rl_file)}}
    content |= {"seeds": [0], "options": {k: v for k, v in options.items() if k[0] != "m"}}
    content["options"]["model"] = {"small": {"model.init_args.hidden": [8]}}
    content["evaluate"] = {"episodes": 2, "max_episode_steps": 5, "log_model": True}
    Path("tiny.yaml").write_text(yaml.safe_dump(content))
    uri = absolute_uri("sqlite:///mlflow.db")
    (cell,) = read_sweep(Path("tiny.yaml"), uri=uri).cells
    fit, _ = cell.jobs

    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("tiny")
    # As if a fit had been killed before its first checkpoint, with a run in MLflow.
    id = fit.begin()
    fit.log.touch()
    lost = client.create_run(experiment, tags={"lit_offrl.cell": id})

    children, results = Children(), []
    thread = threading.Thread(
        target=lambda: results.append(
            Runner(Choices(), children, {"OMP_NUM_THREADS": "1"}).run(fit)
        )
    )
    thread.start()
    while not fit.checkpoint.exists():
        assert thread.is_alive(), fit.log.read_text()
        time.sleep(0.005)
    os.kill(children._running[0].pid, signal.SIGKILL)
    thread.join()
    assert results == ["fit was killed by SIGKILL"] and cell.state() == State.CUT
    assert client.get_run(lost.info.run_id).info.lifecycle_stage == "deleted"

    assert main(["sweep", "--config", "tiny.yaml"]) == 0
    assert cell.state() == State.DONE
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert lit(*words, "--checkpoint.dirpath", "whole") == 0
    same_state("whole/last.ckpt", fit.checkpoint)

    (parent,) = client.search_runs([experiment], "tags.`lit_offrl.children` = 'sweep tiny'")
    where = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    (run,) = client.search_runs([experiment], where)
    assert len(client.search_runs([experiment])) == 2
    assert parent.info.status == "FINISHED" and "return_iqm/tiny/bc" in parent.data.metrics
    assert [d.dataset.name for d in parent.inputs.dataset_inputs] == ["pendulum"]
    assert run.info.status == "FINISHED" and run.info.run_name == "bc-tiny-model=small-seed0"
    tags = {k: v for k, v in run.data.tags.items() if k.startswith("lit_offrl.")}
    assert tags.pop("lit_offrl.cell") == id
    assert tags.pop("lit_offrl.command").startswith("lit-offrl fit ")
    assert tags.pop("lit_offrl.version") == __version__
    assert "BCModule" in run.data.tags["mlflow.note.content"] and tags.pop("lit_offrl.note")
    assert tags == {
        "lit_offrl.sweep": "tiny",
        "lit_offrl.method": "bc",
        "lit_offrl.dataset": "tiny",
        "lit_offrl.option.model": "small",
    }
    (record,) = client.list_artifacts(run.info.run_id, "evaluate")
    assert record.path == "evaluate/evaluation.json"

    # the model of the checkpoint is in the child's run, and there once, whenever evaluate is killed
    evaluation = cell.target
    evaluation.mark.unlink()
    assert cell.state() == State.TRAINED
    assert Runner(Choices(), here).run(evaluation) == "" and cell.state() == State.DONE
    (model,) = client.search_logged_models([experiment])
    assert model.source_run_id == run.info.run_id and model.model_type == "policy"
    scored = [one for one in model.metrics if one.key == "eval/return_mean"]
    assert {one.value for one in scored} == {run.data.metrics["eval/return_mean"]}
    assert {one.dataset_name for one in scored} == {"pendulum"}
