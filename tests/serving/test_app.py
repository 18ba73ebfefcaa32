"""The server over a socket: right answers, and one line for whatever is wrong with a request."""

import contextlib
import http.client
import json
import socket
import threading
import time

import numpy as np
import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.modules.policies import NetworkPolicy
from lit_offrl.serving import app as pages
from lit_offrl.serving.app import App
from lit_offrl.serving.clients import Clients
from lit_offrl.serving.server import Server, address_of, open_socket, read_token

JSON = {"Content-Type": "application/json"}
TOKEN = "0123456789abcdef"


def doubling(act=lambda rows: 2 * rows):
    return lambda: NetworkPolicy(act, torch.device("cpu"))


@contextlib.contextmanager
def serving(make=doubling(), patience=5.0, **options):
    """Serve a policy of two numbers in a thread; give its port and its application."""
    app = App(Clients(make), 2, {"method": "Doubling", "bound": float("inf")}, **options)
    with open_socket("127.0.0.1", 0, None) as bound:
        server = Server(app.asgi, patience)
        thread = threading.Thread(target=server.serve_until_stopped, args=(bound,))
        port = bound.getsockname()[1]
        thread.start()
        try:
            yield port, app, server
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def port():
    with serving(max_body=2000, max_rows=3, body_seconds=0.3) as (port, *_):
        yield port


def ask(port, body=None, path="/act", method="POST", headers=JSON):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        if isinstance(body, dict):
            body = json.dumps(body)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def test_observations_become_actions(port):
    status, found = ask(port, {"observations": [[1, 2.5], [-3, 0]], "client": "a", "reset": True})
    assert (status, found) == (200, {"actions": [[2, 5], [-6, 0]]})
    assert ask(port, method="GET", path="/health") == (200, {"status": "ok"})
    assert ask(port, method="GET", path="/metadata") == (
        200,
        {"method": "Doubling", "bound": None, "clients": 0},
    )


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ('{"observations": [[1]]}', "'observations' row 0 has 1 numbers: give 2 in each row."),
        ('{"observations": [[1, 2], [1]]}', "'observations' row 1 has 1 numbers"),
        ('{"observations": []}', "'observations': List should have at least 1 item"),
        ('{"observations": [1, 2]}', "'observations.0': Input should be a valid array"),
        ('{"observations": [[NaN, 1]]}', "'observations.0.0': Input should be a finite number"),
        ('{"observations": [[1, 1e999]]}', "'observations.0.1': Input should be a finite number"),
        ('{"observations": [[1, 1e300]]}', "row 0 has a number too large: number 1"),
        ('{"observations": [["1", 2]]}', "'observations.0.0': Input should be a valid number"),
        ('{"observations": [[true, 2]]}', "'observations.0.0': Input should be a valid number"),
        ("{}", "'observations': Field required"),
        ('{"observation": [[1, 2]]}', "'observations': Field required"),
        ('{"observations": [[1, 2]], "rest": 1}', "no field 'rest'. Did you mean 'reset'?"),
        ('{"observations": [[1, 2]], "reset": 1}', "'reset': Input should be a valid boolean"),
        ('{"observations": [[1, 2]], "reset": [true, false]}', "'reset' has 2 entries for 1"),
        ('{"observations": [[1, 2]], "goals": [[1]]}', "takes no 'goals'"),
        ('{"observations": [[1, 2]], "rewards": [1]}', "takes no 'rewards'"),
        ('{"observations": [[1, 2]], "client": "../x"}', "'client': String should match"),
        ("[" * 1500, "Invalid JSON: recursion limit"),
        ("{", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        ("", "Invalid JSON"),
    ],
)
def test_a_wrong_body_is_refused_in_one_line(port, body, line):
    status, found = ask(port, body)
    assert status == 400 and line in found["error"] and "\n" not in found["error"]


def test_wrong_requests_are_refused_in_one_line(port):
    assert ask(port, path="/act/../../etc/passwd")[0] == 404
    assert ask(port, path="/act/")[0] == 404
    assert ask(port, path="//")[0] == 404
    assert ask(port, method="GET")[0] == 405
    assert ask(port, "{}", headers={})[0] == 415
    assert ask(port, method="GET", path="/metadata", headers={"Host": "evil.com"})[0] == 403
    assert ask(port, {"observations": [[1, 2]]}, headers={**JSON, "Host": "evil.com:80"})[0] == 403
    assert ask(port, {"observations": [[1, 2]] * 4}) == (
        413,
        {"error": "'observations' has 4 rows, more than 3."},
    )
    assert ask(port, {"observations": [[1, 2]]})[0] == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_and_the_connection_goes_on(port, chunked):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        body = iter([b" " * 10**6] * 20) if chunked else b" " * 20 * 10**6
        connection.request("POST", "/act", body, JSON, encode_chunked=chunked)
        response = connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read())["error"] == "the body has more than 2000 bytes."
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200


def test_a_chunked_body_is_as_good_as_any(port):
    parts = iter([b'{"observa', b'tions": [[1, ', b"2]]}"])
    assert ask(port, parts) == (200, {"actions": [[2, 4]]})


def raw(port, *parts):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
        found = b""
        while received := connection.recv(4096):
            found += received
        return found


def test_a_body_that_does_not_come_is_waited_for_only_so_long(port):
    head = b"POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    found = raw(port, head, b"Content-Length: 50\r\n\r\n{")
    assert found.startswith(b"HTTP/1.1 408 ") and b"not there within 0.3 s" in found
    assert raw(port, head, b"Content-Length: -5\r\n\r\n{}").startswith(b"HTTP/1.1 400 ")
    assert raw(port, b"garbage\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_a_connection_that_asks_for_nothing_is_closed_and_one_that_asks_is_not():
    with serving(patience=0.4) as (port, *_):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as idle:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            idle.sendall(b"POST /act HT")
            for _ in range(8):
                connection.request("GET", "/health")
                assert connection.getresponse().read()
                own = connection.sock.getsockname()
                time.sleep(0.1)
            assert own == connection.sock.getsockname()  # the same connection all the time
            with contextlib.suppress(ConnectionResetError):
                assert idle.recv(10) == b""
            connection.close()


def test_a_token_is_required_where_there_is_one():
    with serving(token=TOKEN) as (port, *_):
        body = {"observations": [[1, 2]]}
        for wrong in ({}, {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}x"}):
            status, found = ask(port, body, headers=JSON | wrong)
            assert status == 401 and TOKEN not in found["error"]
        assert ask(port, method="GET", path="/metadata")[0] == 401
        right = {"Authorization": f"Bearer {TOKEN}", "Host": "robots.example"}
        assert ask(port, body, headers=JSON | right)[0] == 200
        assert ask(port, method="GET", path="/health")[0] == 200


def test_a_policy_that_fails_fails_one_request_and_the_server_lives(caplog):
    def act(rows):
        if rows[0, 0] > 5:
            raise RuntimeError("out of memory at 0x1234")
        return rows

    with serving(doubling(act)) as (port, *_):
        status, found = ask(port, {"observations": [[6, 0]]})
        assert status == 500 and "0x1234" not in found["error"]
        assert ask(port, {"observations": [[1, 0]]}) == (200, {"actions": [[1, 0]]})
    assert "out of memory" in caplog.text


def test_requests_that_wait_are_answered_together_and_to_whom_they_are_due(monkeypatch):
    monkeypatch.setattr(pages, "_MOST_ROWS", 6)
    calls, first = [], threading.Event()

    def act(rows):
        calls.append(len(rows))
        first.wait(10)
        return 2 * rows

    found = {}

    def client(number):
        found[number] = ask(port, {"observations": [[number, 0]] * 2})

    with serving(doubling(act)) as (port, app, _):
        threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        while app._under_way < 8:
            time.sleep(0.01)
        first.set()
        for thread in threads:
            thread.join()
        assert app.answered == 8
    assert found == {n: (200, {"actions": [[2 * n, 0]] * 2}) for n in range(8)}
    assert sum(calls) == 16 and max(calls) == 6 and len(calls) < 6


def test_too_many_requests_at_once_are_sent_away(monkeypatch):
    monkeypatch.setattr(pages, "_MOST_WAITING", 1)
    asked, go_on = threading.Event(), threading.Event()

    def act(rows):
        asked.set()
        go_on.wait(10)
        return rows

    found = []
    body = {"observations": [[1, 2]]}
    with serving(doubling(act)) as (port, *_):
        thread = threading.Thread(target=lambda: found.append(ask(port, body)))
        thread.start()
        assert asked.wait(10)
        assert ask(port, body) == (503, {"error": "1 requests are waiting: try again."})
        assert ask(port, method="GET", path="/health")[0] == 200  # also while the policy acts
        go_on.set()
        thread.join()
    assert found == [(200, {"actions": [[1, 2]]})]


def test_what_is_under_way_is_answered_when_the_server_ends():
    asked = threading.Event()

    def act(rows):
        asked.set()
        time.sleep(0.4)
        return 2 * rows

    found = []
    with serving(doubling(act)) as (port, _, server):
        thread = threading.Thread(
            target=lambda: found.append(ask(port, {"observations": [[1, 2]]}))
        )
        thread.start()
        assert asked.wait(10)
        server.should_exit = True
    thread.join()
    assert found == [(200, {"actions": [[2, 4]]})]
    with pytest.raises(ConnectionRefusedError):
        ask(port)


def test_a_port_that_cannot_be_had_and_an_address_for_all_are_refused():
    with open_socket("127.0.0.1", 0, None) as bound:
        port = bound.getsockname()[1]
        assert address_of(bound) == f"http://127.0.0.1:{port}"
        with pytest.raises(ConfigError, match=rf"port {port} of 127.0.0.1 cannot be had \(Address"):
            open_socket("127.0.0.1", port, None)
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(ConfigError, match=r"must name a token: put one into \$LIT_OFFRL_SERVE"):
            open_socket(host, 0, None)
    with pytest.raises(ConfigError, match="no such host: is no address"):
        open_socket("no such host", 0, None)
    open_socket("0.0.0.0", 0, TOKEN).close()


def test_a_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    assert read_token(None) is None
    monkeypatch.setenv("LIT_OFFRL_SERVE_TOKEN", TOKEN)
    assert read_token(None) == TOKEN
    file = tmp_path / "token"
    file.write_text("another-0123456789\n")
    assert read_token(file) == "another-0123456789"
    for text in ("short", "with blanks 0123456789", "umläut-0123456789", ""):
        file.write_text(text)
        with pytest.raises(ConfigError, match="--token_file") as refused:
            read_token(file)
        assert not text or text not in str(refused.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "none")


def test_actions_are_float32_exactly(port):
    number = float(np.float32(0.1))
    assert ask(port, {"observations": [[0.1, 0]]})[1]["actions"] == [[2 * number, 0]]
