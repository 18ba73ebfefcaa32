"""`lit-offrl serve`: a checkpoint acts until a signal comes."""

import http.client
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_offrl.__main__ import main
from lit_offrl.commands import options, serve
from lit_offrl.commands.evaluate import split_policy_options
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import file_sha256
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.modules import BCModule
from lit_offrl.modules.checkpoints import load_module
from lit_offrl.serving import server
from lit_offrl.serving.clients import Clients, Step

DOCS = Path(__file__).parents[2] / "docs" / "serving.md"


def save(module, path):
    module.spec = DatasetSpec("some-data", module.observation_dim, 3, action_low=(-np.inf,) * 3)
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


@pytest.fixture
def checkpoint(folder):
    torch.manual_seed(0)
    return save(BCModule(15, 3, [-1.0] * 3, [1.0] * 3, hidden=[8]), folder / "last.ckpt")


def test_a_checkpoint_acts_over_http_until_a_signal_comes(checkpoint, monkeypatch, capsys):
    given = {}
    opened = server.open_socket

    def open_socket(*args):
        given["socket"] = opened(*args)
        return given["socket"]

    def client():
        connection = http.client.HTTPConnection(*given["socket"].getsockname(), timeout=60)
        body = json.dumps({"observations": given["rows"].tolist()})
        try:
            connection.request("POST", "/act", body, {"Content-Type": "application/json"})
            given["actions"] = json.loads(connection.getresponse().read())["actions"]
            connection.request("GET", "/metadata")
            given["facts"] = json.loads(connection.getresponse().read())
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def load(path, device):
        thread = threading.Thread(target=client)
        thread.start()
        given["thread"] = thread
        return load_module(path, device)

    monkeypatch.setattr(server, "open_socket", open_socket)
    monkeypatch.setattr("lit_offrl.modules.checkpoints.load_module", load)
    given["rows"] = np.random.default_rng(0).normal(size=(3, 15)).astype(np.float32)
    assert main(["serve", "--ckpt_path", str(checkpoint), "--port", "0"]) == 128 + signal.SIGTERM
    given["thread"].join()
    expected = load_module(checkpoint).policy().act(given["rows"])
    assert np.array(given["actions"], np.float32) == pytest.approx(expected, abs=1e-6)
    facts = given["facts"]
    assert facts["method"] == "BCModule" and facts["checkpoint_sha256"] == file_sha256(checkpoint)
    assert facts["spec"]["name"] == "some-data" and facts["spec"]["action_low"] == [None] * 3
    out, err = capsys.readouterr()
    assert re.search(r"acts at http://127.0.0.1:\d+/act, without a token", out)
    assert "1 requests for actions answered" in out
    assert err == "lit-offrl: stopped by SIGTERM.\n"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--ckpt_path", "none.ckpt"], "none.ckpt: no such checkpoint"),
        (["--ckpt_path", "last.ckpt", "--policy.omega", "3"], "has no option 'omega'"),
        (["--ckpt_path", "last.ckpt", "--host", "0.0.0.0"], "must name a token"),
        (["--ckpt_path", "last.ckpt", "--port", "70000"], "port is 70000: give a number in"),
        (["--ckpt_path", "last.ckpt", "--max_clients", "0"], "invalid positive integer value: '0'"),
        (["--ckpt_path", "last.ckpt", "--idle_seconds", "0"], "idle_seconds is 0.0"),
        ([], "serve takes one of --ckpt_path, a checkpoint, and --policy"),
        (["--ckpt_path", "last.ckpt", "--policy", "p.onnx"], "serve takes one of --ckpt_path"),
        (["--policy", "p.onnx"], "p.onnx: no such exported policy"),
        (["--policy", "p.onnx", "--policy.omega", "3"], "--policy.omega is an option of a check"),
    ],
)
def test_what_cannot_be_served_is_one_line(checkpoint, given, line, capsys):
    if "--port" not in given:
        given = [*given, "--port", "0"]
    assert main(["serve", *given]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said


def test_without_its_packages_the_command_names_the_extra(checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)
    from lit_offrl.commands.serve import main

    with pytest.raises(ConfigError, match=r"serve needs starlette: `pip install -e .\[serve\]`"):
        main(["--ckpt_path", str(checkpoint)])


def test_an_exported_policy_is_served_as_its_checkpoint_is(checkpoint, folder):
    load_module(checkpoint).policy().export(folder / "exported")
    rest, _ = split_policy_options(["--policy", "exported/policy.onnx"])
    make, facts = serve._exported(options.parse(serve.ServeOptions, rest, "serve"), {})
    clients = Clients(make)
    assert not clients.remembers and facts["checkpoint_sha256"] == file_sha256(checkpoint)
    rows = np.random.default_rng(0).normal(size=(3, 15)).astype(np.float32)
    found = clients.act([Step(observations=rows[:1]), Step(observations=rows[1:])])
    expected = load_module(checkpoint).policy().act(rows)
    assert np.concatenate(found) == pytest.approx(expected, abs=1e-5)


def console_blocks():
    """The examples of the docs: each command with the lines that it is said to print."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", DOCS.read_text(), re.DOTALL):
        for line in block.replace("\\\n", "").splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            else:
                found[-1][1].append(line)
    return found


@pytest.mark.slow
def test_the_commands_of_the_docs_answer_as_the_docs_say(folder, monkeypatch):
    torch.manual_seed(0)
    save(BCModule(15, 3, [-1.0] * 3, [1.0] * 3, hidden=[8]), folder / "last.ckpt")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    servers, checked = [], 0
    try:
        for command, lines in console_blocks():
            if "lit-offrl serve" in command:
                if servers:
                    servers[-1].send_signal(signal.SIGTERM)
                    assert servers[-1].wait(60) == 143
                assert command.endswith(" &")
                words = shlex.split(command.removesuffix(" &"))
                at = words.index("lit-offrl")
                words[at : at + 1] = [sys.executable, "-m", "lit_offrl"]
                servers.append(subprocess.Popen(words[at:], cwd=folder))
                wait_for(8000)
                continue
            done = subprocess.run(
                ["bash", "-c", command], capture_output=True, text=True, cwd=folder, timeout=60
            )
            assert done.returncode == 0, done.stderr
            for said, found in zip(lines, done.stdout.splitlines(), strict=True):
                pattern = re.escape(said).replace("…", ".*")
                assert re.fullmatch(pattern, found), (command, said, found)
                checked += 1
    finally:
        for each in servers:
            each.terminate()
            each.wait(60)
    assert checked >= 5


def wait_for(port):
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError
