"""A fit and its resumption on a server that asks for a password; the server is made up."""

import json
import threading
import urllib.parse
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lit_offrl.__main__ import main
from lit_offrl.common.errors import ConfigError
from lit_offrl.tracking import store
from lit_offrl.tracking.store import (
    absolute_uri,
    client_uri,
    redacted,
    require_store,
    runs_address,
    sqlite_file,
    store_uri,
)

USER, PASSWORD = "ada", "s3cret p@ss/word"
LAST = "checkpoints/BCModule-pendulum-seed0/last.ckpt"


class Handler(BaseHTTPRequestHandler):
    """The part of MLflow's REST interface that a fit uses, for one experiment and its runs."""

    def do_GET(self):
        self.answer({})

    def do_POST(self):
        self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, body):
        url = urllib.parse.urlsplit(self.path)
        expected = "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") != expected:
            return self.reply(401, {"error_code": "UNAUTHENTICATED", "message": "who are you?"})
        query = dict(urllib.parse.parse_qsl(url.query))
        what = url.path.rpartition("/mlflow/")[2]
        code, found = self.server.runs_of(what, {**query, **body})
        return self.reply(code, found)

    def reply(self, code, found):
        data = json.dumps(found).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, artifacts):
        super().__init__(("127.0.0.1", 0), Handler)
        self.artifacts, self.runs = artifacts, {}

    def runs_of(self, what, asked):
        if what == "experiments/get-by-name":
            return 200, {"experiment": {"experiment_id": "7", "name": asked["experiment_name"]}}
        if what == "runs/create":
            run_id = f"{len(self.runs):032x}"
            self.runs[run_id] = {"tags": asked["tags"], "params": [], "metrics": [], "status": ""}
            asked["run_id"] = run_id
        run = self.runs.get(asked.get("run_id"))
        if run is None:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"no {what}"}
        if what == "runs/log-batch":
            for kind in ("tags", "params", "metrics"):
                run[kind] += asked.get(kind, [])
        elif what == "runs/update":
            run["status"] = asked["status"]
        elif what == "metrics/get-history":
            return 200, {"metrics": [m for m in run["metrics"] if m["key"] == asked["metric_key"]]}
        info = {"run_id": asked["run_id"], "experiment_id": "7", "lifecycle_stage": "active"}
        info |= {"artifact_uri": self.artifacts, "status": run["status"] or "RUNNING"}
        data = {kind: run[kind] for kind in ("tags", "params", "metrics")}
        return 200, {"run": {"info": info, "data": data}, "run_info": info}


@pytest.fixture
def server(tmp_path_factory, monkeypatch):
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    with Server(tmp_path_factory.mktemp("artifacts").as_uri()) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def test_a_password_lets_in_and_stands_nowhere(server, command, folder, capfd, monkeypatch):
    port = server.server_address[1]
    user = f"{USER}:{urllib.parse.quote(PASSWORD, safe='')}"
    words = command("--trainer.log_every_n_steps", "2")
    at = words.index("--trainer.logger")
    words[at + 1] = "lit_offrl.callbacks.MLflowRun"
    uri = "--trainer.logger.init_args.tracking_uri"
    assert main([*words, uri, f"http://{user}@127.0.0.1:{port}"]) == 0
    # The same server by another name, the password from the environment.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{user}@localhost:{port}")
    assert main([*words, "--trainer.max_steps", "8", "--ckpt_path", LAST]) == 0
    (run,) = server.runs.values()
    curve = [metric["step"] for metric in run["metrics"] if metric["key"] == "train/loss/actor"]
    assert curve == [2, 4, 6, 8] and run["status"] == "FINISHED"
    count = len(run["metrics"])
    assert main(["mlflow", "sync", LAST]) == 0 and len(run["metrics"]) == count
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:wrong-word@127.0.0.1:{port}")
    assert main([*words, "--checkpoint.dirpath", "other"]) == 2
    printed = "".join(capfd.readouterr())
    assert "does not let you in (401)" in printed
    secrets = [PASSWORD, urllib.parse.quote(PASSWORD, safe=""), "wrong-word"]
    for secret in secrets:
        assert secret not in printed and secret not in json.dumps(server.runs)
        for path in folder.rglob("*"):
            assert path.is_dir() or secret.encode() not in path.read_bytes(), path


def test_uris_are_named_alike_everywhere(folder, monkeypatch):
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    assert absolute_uri("https://ada:a%40bc@host:1/path") == "https://host:1/path"
    assert store.os.environ["MLFLOW_TRACKING_PASSWORD"] == "a@bc"
    assert redacted("GET https://ada:x@host/?p=a%40bc failed: a@bc") == (
        "GET https://host/?p=*** failed: ***"
    )
    odd = folder / "50% & what?#" / "m.db"
    uri = f"sqlite:///{odd}"
    assert client_uri(uri) == f"sqlite+pysqlite:///{urllib.parse.quote(str(odd))}"
    assert absolute_uri(client_uri(uri)) == uri and sqlite_file(uri) == odd
    assert client_uri(f"sqlite:///{folder}/a b.db") == f"sqlite:///{folder}/a b.db"
    page = "#/experiments/3?workflowType=machine_learning"
    assert runs_address("http://host:1/", "3") == f"http://host:1/{page}"
    said = runs_address(store_uri("sqlite:///mlflow.db"), "3")
    assert said.startswith("mlflow ui --backend-store-uri sqlite:///mlflow.db and then http://")
    with pytest.raises(ConfigError, match=r"server http://127\.0\.0\.1:9 cannot be reached"):
        require_store("http://ada:word@127.0.0.1:9")
