"""Policies as MLflow's models: logged with their scores, found, registered, served."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from lit_offrl.__main__ import main
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import file_sha256
from lit_offrl.modules import load_module
from lit_offrl.tracking import models
from lit_offrl.tracking.models import logged_model
from lit_offrl.tracking.outbox import Outbox, load_outbox
from lit_offrl.tracking.references import checkpoint_path
from lit_offrl.tracking.results import add_to_run
from lit_offrl.tracking.sending import Delivery

LAST = Path("checkpoints/BCModule-pendulum-seed0/last.ckpt")


@pytest.fixture
def fitted(command, mlflow_tables, folder):
    """A fit's run in MLflow's default store; returns the client, the store and the run."""
    assert main(command("--trainer.logger", "lit_offrl.callbacks.MLflowRun")) == 0
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("lit-offrl").experiment_id])
    return client, uri, run


def no_export(*args):
    raise ConfigError("its policy remembers.")


def test_a_model_arrives_once_with_metrics_by_which_the_best_is_found(
    fitted, folder, monkeypatch, capsys
):
    client, uri, run = fitted
    monkeypatch.setattr(models, "write_policy", no_export)
    module, id = load_module(LAST), run.info.run_id
    boxes = []
    for score in (10.0, 30.0, 20.0):
        place = folder / f"model-{score:g}"
        metrics = {"eval/score": score, "eval/none": float("nan")}
        boxes.append(Outbox(models=[logged_model(module, LAST, place, metrics)]))
    assert "without a policy that it can serve: its policy remembers" in capsys.readouterr().out

    # killed between the files and the end, and sent again from the run's folder
    first = boxes[0].copy()
    first.save(folder, id)
    delivery = Delivery(client, uri, id, boxes[0], ask=False)
    with monkeypatch.context() as patched:
        patched.setattr(client, "finalize_logged_model", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            delivery.send(lambda size: None, end=True)
    assert boxes[0].models
    add_to_run(id, uri, load_outbox(folder, id))
    for box in (*boxes[1:], first.copy()):
        add_to_run(id, uri, box)
        assert not box.models

    place = run.info.experiment_id
    order = {"field_name": "metrics.eval/score", "ascending": False}
    order |= {"dataset_name": "pendulum", "dataset_digest": module.spec.sha256[:12]}
    found = client.search_logged_models([place], order_by=[order])
    scores = [{m.key: (m.value, m.dataset_name, m.step) for m in one.metrics} for one in found]
    assert [s["eval/score"] for s in scores] == [(v, "pendulum", 6) for v in (30.0, 20.0, 10.0)]
    assert {one.source_run_id for one in found} == {id} and "eval/none" not in scores[0]
    assert found[0].params["learning_rate"] == "0.0003" and str(found[0].status) == "READY"
    outputs = client.get_run(id).outputs.model_outputs
    assert sorted(each.model_id for each in outputs) == sorted(one.model_id for one in found)
    assert checkpoint_path(f"models:/{found[0].model_id}", uri).read_bytes() == LAST.read_bytes()


def test_a_policy_acts_on_raw_observations_and_is_registered(fitted, capsys, monkeypatch, recwarn):
    import mlflow

    client, uri, run = fitted
    assert main(["models", "list"]) == 0
    assert "No model is registered" in capsys.readouterr().out
    few = ["--episodes", "1", "--max_episode_steps", "5", "--mlflow", "--log_model"]
    recwarn.clear()
    assert main(["evaluate", "--ckpt_path", str(LAST), *few]) == 0
    assert not [each for each in recwarn if "type hints" in str(each.message)]
    register = ["models", "register", run.info.run_id, "--name", "swing"]
    assert main([*register, "--alias", "champion"]) == 0
    assert main([*register, "--alias", "second"]) == 0  # of the same model no second version
    out = capsys.readouterr().out
    assert out.count("swing version 1: of the MLflow run") == 2
    assert "models:/swing@champion is version 1" in out
    assert main(["models", "alias", "swing/1", "third"]) == 0
    assert capsys.readouterr().out == "models:/swing@third is version 1\n"
    assert main(["models", "list"]) == 0
    listed = capsys.readouterr().out
    for word in ("swing", "champion", "second", "third", "pendulum"):
        assert word in listed
    returned = client.get_run(run.info.run_id).data.metrics["eval/return_mean"]
    assert f"{returned:.1f}" in listed

    # what is served needs this library no more, and acts as its policy does
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    served = mlflow.pyfunc.load_model("models:/swing@champion")
    kept = checkpoint_path("models:/swing@champion").parent
    names = {each.name for each in kept.rglob("*")}
    assert {"policy.onnx", "served_policy.py", "last.ckpt", "MLmodel"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle"))]
    assert "lit_offrl" not in (kept / "requirements.txt").read_text()
    observations = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    acted = load_module("models:/swing@champion").policy().act(observations)
    np.testing.assert_allclose(served.predict(observations), acted, atol=1e-5)
    observations[7, 1] = np.nan
    with pytest.raises(MlflowException, match="row 7 has a number that is not finite"):
        served.predict(observations)
    with pytest.raises(MlflowException, match="shape"):
        served.predict(observations[:, :2])

    # mistakes are one line each
    for words, said in (
        (["register", "0" * 32, "--name", "x"], f"has no run '{'0' * 32}'"),
        (["register", run.info.run_id, "--name", "a/b"], "Invalid model name"),
        (["alias", "swin/1", "x"], "no registered model 'swin'. Did you mean 'swing'?"),
        (["alias", "swing/2", "x"], "has no version 2. It has 1."),
        (["alias", "swing/1", "latest"], "MLflow at"),
        (["list", "--tracking_uri", "sqlite:///gone.db"], "There is no MLflow store"),
    ):
        assert main(["models", *words]) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1


def test_a_run_without_a_model_gets_one_as_it_is_registered(fitted, monkeypatch, capsys):
    client, _, run = fitted
    monkeypatch.setattr(models, "write_policy", no_export)
    client.log_metric(run.info.run_id, "eval/score", 12.5)
    assert main(["models", "register", str(LAST.parent), "--name", "swing"]) == 0
    assert "serve it" not in capsys.readouterr().out  # there is no policy to be served
    (version,) = client.search_model_versions("name = 'swing'")
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    assert {one.key: one.value for one in model.metrics} == {"eval/score": 12.5}
    assert model.tags["lit_offrl.checkpoint_sha256"] == file_sha256(LAST)
    assert checkpoint_path("models:/swing/1").read_bytes() == LAST.read_bytes()


@pytest.mark.slow
def test_mlflow_serves_a_registered_policy(fitted, folder):
    _, uri, run = fitted
    register = ["models", "register", run.info.run_id, "--name", "swing", "--alias", "champion"]
    assert main(register) == 0
    port = "5987"
    words = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/swing@champion"]
    words += ["--env-manager", "local", "--host", "127.0.0.1", "--port", port]
    # As where the environment is activated: MLflow starts uvicorn by its bare name.
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": "", "PATH": path}

    def ask(body):
        text = body if isinstance(body, str) else json.dumps(body)
        address = f"http://127.0.0.1:{port}/invocations"
        request = urllib.request.Request(
            address, text.encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    with open("serve.log", "wb") as log:
        server = subprocess.Popen(
            words, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=folder
        )
        try:
            for _ in range(600):
                assert server.poll() is None, Path("serve.log").read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.5)
            observations = [[1.0, 0.0, 0.5], [0.0, 1.0, -0.5]]
            code, answer = ask({"inputs": observations})
            assert code == 200
            acted = load_module(LAST).policy().act(np.array(observations, np.float32))
            np.testing.assert_allclose(answer["predictions"], acted, atol=1e-5)
            for body in (
                {"inputs": [[1.0, 2.0]]},
                {"inputs": [[1.0, 2.0, 3.0, 4.0]]},
                {"inputs": [["a", "b", "c"]]},
                {"inputs": [[1.0, 2.0], [1.0]]},
                '{"inputs": [[1.0, NaN, 0.0]]}',
                "{",
                "",
            ):
                code, answer = ask(body)
                assert 400 <= code < 500 and answer["message"], body
            assert ask({"inputs": observations})[0] == 200  # it lives
        finally:
            if server.poll() is None:
                os.killpg(server.pid, 15)
            server.wait(60)
