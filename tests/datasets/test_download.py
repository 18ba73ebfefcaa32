"""Downloads from a server on this machine that misbehaves in the ways that servers do."""

from __future__ import annotations

import contextlib
import email.utils
import socket
import struct
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from lit_offrl.common.errors import DownloadError
from lit_offrl.datasets import answers, fetching
from lit_offrl.datasets.catalog import CATALOG, resolve
from lit_offrl.datasets.download import download, verification
from lit_offrl.datasets.ogbench_entries import OGBENCH

NAME = "hopper-bullet-mixed-v0"


class Server(ThreadingHTTPServer):
    """Serves ``content``; the other attributes say how it errs."""

    content = b""
    content_type = "application/octet-stream"
    status = 200
    etag: str | None = '"one"'
    break_after: int | None = None  # bytes of a response, then the connection ends
    breaks = 10**9  # how many responses break
    ignore_range = False
    length = True  # whether Content-Length is sent
    extra: dict[str, str]  # headers
    refusals = 0  # how many requests get `refusal` before the rest is served
    refusal: int | str = 503  # a status, "reset", or "cut" within the head
    drip: str | None = None  # "head" or "body": a byte every so often, for ever
    stopped: threading.Event
    requests: list[tuple[str | None, int | str]]  # the Range asked for, the status given


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, body, status = self.server, self.server.content, self.server.status
        asked = self.headers.get("Range")
        fresh = self.headers.get("If-Range") in (None, server.etag)
        extra = {}
        if asked and fresh and not server.ignore_range and status == 200:
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            if begin >= len(body):
                status, extra = 416, {"Content-Range": f"bytes */{len(body)}"}
                body = b""
            else:
                extra = {"Content-Range": f"bytes {begin}-{len(body) - 1}/{len(body)}"}
                status, body = 206, body[begin:]
        if server.refusals > 0:
            server.refusals -= 1
            status, body = server.refusal, b""
        server.requests.append((asked, status))
        if status == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        if status == "cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-")
            self.close_connection = True
            return
        if server.drip == "head":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            return self.drip_on()
        self.send_response(status)
        extra |= server.extra
        for key, value in extra.items():
            self.send_header(key, value)
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Type", server.content_type)
        if server.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.drip == "body":
            return self.drip_on()
        if server.break_after is not None and server.breaks > 0:
            server.breaks -= 1
            body = body[: server.break_after]
        self.wfile.write(body)
        self.close_connection = True

    def drip_on(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):  # until the other side gives up
            while not self.server.stopped.wait(0.01):
                self.wfile.write(b"x")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path_factory, raw) -> Iterator[Server]:
    rng = np.random.default_rng(0)
    columns = {
        "observations": rng.normal(size=(400, 15)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(400, 3)).astype(np.float32),
        "rewards": np.ones((400, 1), np.float32),
        "terminals": np.zeros((400, 1), np.float32),
    }
    columns["terminals"][99::100] = 1
    columns["actions"][99::100] = 0
    path = raw(tmp_path_factory.mktemp("served") / "x.hdf5", columns)
    with Server(("127.0.0.1", 0), Handler) as serving:
        serving.content, serving.requests, serving.extra = path.read_bytes(), [], {}
        serving.stopped = threading.Event()
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.stopped.set()
        serving.shutdown()
        thread.join()


@pytest.fixture
def entry(server):
    return replace(CATALOG[NAME], url=f"http://127.0.0.1:{server.server_port}/{NAME}.hdf5?dl=1")


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Pauses between attempts, which take no time here."""
    taken: list[float] = []
    monkeypatch.setattr(fetching, "_wait", taken.append)
    return taken


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {f"{NAME}.hdf5.lock"}


DONE = {f"{NAME}.hdf5", f"{NAME}.hdf5.json"}


def test_a_download_is_verified_moved_and_not_repeated(tmp_path, server, entry, capfd):
    path = download(entry, tmp_path / "new")
    assert path.read_bytes() == server.content and names(path.parent) == DONE
    assert NAME in capfd.readouterr().err  # the bar
    assert download(entry, tmp_path / "new", progress=False) == path
    assert len(server.requests) == 1
    assert capfd.readouterr().err == ""
    assert len(resolve(NAME, tmp_path / "new").read()) == 396
    download(entry, tmp_path / "new", force=True, progress=False)
    assert len(server.requests) == 2


def test_a_broken_download_is_resumed_where_it_broke_off(tmp_path, server, entry):
    server.break_after, server.breaks = 5000, 2
    path = download(entry, tmp_path, progress=False)
    assert path.read_bytes() == server.content
    assert server.requests == [(None, 200), ("bytes=5000-", 206), ("bytes=10000-", 206)]


def test_one_that_keeps_breaking_says_so_and_goes_on_next_time(tmp_path, server, entry):
    server.break_after, server.breaks = 2000, 5
    with pytest.raises(DownloadError, match=r"ended after 10,000 of .*again to resume") as caught:
        download(entry, tmp_path, progress=False)
    assert "lit-offrl collect --env HopperBulletEnv-v0 --kind mixed" in str(caught.value)
    assert "hopper-bullet-mixed-regenerated.hdf5" in str(caught.value)
    assert names(tmp_path) == {f"{NAME}.hdf5.part", f"{NAME}.hdf5.part.json"}
    assert download(entry, tmp_path, progress=False).read_bytes() == server.content
    assert server.requests[-1] == ("bytes=10000-", 206)
    assert names(tmp_path) == DONE


@pytest.mark.parametrize("how", ["changed", "no-ranges", "no-validator", "weak", "other-address"])
def test_one_that_cannot_be_resumed_starts_anew(tmp_path, server, entry, how):
    server.break_after, server.breaks = 3000, 1
    server.etag = {"no-validator": None, "weak": 'W/"one"'}.get(how, server.etag)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "_ATTEMPTS", 1)
        with pytest.raises(DownloadError):
            download(entry, tmp_path, progress=False)
    if how == "changed":
        server.etag = '"two"'
    server.ignore_range = how == "no-ranges"
    if how == "other-address":
        entry = replace(entry, url=entry.url + "&x")
    assert download(entry, tmp_path, progress=False).read_bytes() == server.content
    assert server.requests[-1][1] == 200
    assert (server.requests[-1][0] is None) == (how not in ("changed", "no-ranges"))


@pytest.mark.parametrize("extra", [0, 7])
def test_a_whole_or_overlong_part_is_no_obstacle(tmp_path, server, entry, extra):
    part = tmp_path / f"{NAME}.hdf5.part"
    part.write_bytes(server.content + b"x" * extra)
    (tmp_path / f"{NAME}.hdf5.part.json").write_text(
        f'{{"url": "{entry.url}", "version": "\\"one\\""}}'
    )
    assert download(entry, tmp_path, progress=False).read_bytes() == server.content
    assert [status for _, status in server.requests] == ([416, 200] if extra else [416])


def not_found(server: Server) -> None:
    server.status, server.content = 404, b"gone"


def page(server: Server) -> None:
    server.content, server.content_type = b"<html>sign in</html>", "text/html; charset=utf-8"


def page_called_a_file(server: Server) -> None:
    server.content = b"<!DOCTYPE html><html>sign in</html>"


def cut(server: Server) -> None:
    server.content = server.content[: len(server.content) // 2]


def nothing(server: Server) -> None:
    server.content = b""


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (not_found, "HTTP status 404"),
        (page, "sent a page"),
        (page_called_a_file, "not an HDF5 file"),
        (cut, "truncated"),
        (nothing, "empty"),
    ],
)
def test_what_is_no_dataset_is_refused_and_leaves_nothing(tmp_path, server, entry, fault, expected):
    fault(server)
    with pytest.raises(DownloadError) as caught:
        download(entry, tmp_path, progress=False)
    message = str(caught.value)
    assert expected in message and "\n" not in message and "lit-offrl collect" in message
    assert message.startswith(f"{NAME} could not be downloaded from 127.0.0.1:")
    assert names(tmp_path) == set()


def test_a_file_without_a_needed_column_is_refused(tmp_path, server, entry, raw, shifted):
    del shifted["rewards"]
    server.content = raw(tmp_path / "x.hdf5", shifted).read_bytes()
    with pytest.raises(DownloadError, match="no column 'rewards'"):
        download(entry, tmp_path / "to", progress=False)
    assert names(tmp_path / "to") == set()


def test_no_server_is_one_line(tmp_path, server, entry):
    unreachable = replace(entry, url="http://127.0.0.1:9/x.hdf5")
    with pytest.raises(DownloadError, match=r"no connection .*lit-offrl collect") as caught:
        download(unreachable, tmp_path, progress=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(DownloadError, match="not an http address"):
        download(replace(entry, url="file:///etc/hostname"), tmp_path, progress=False)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, entry):
    (tmp_path / "taken").touch()
    with pytest.raises(DownloadError, match="taken"):
        download(entry, tmp_path / "taken", progress=False)


def test_a_file_put_there_by_hand_is_verified_and_recorded(tmp_path, server, entry):
    path = tmp_path / f"{NAME}.hdf5"
    path.write_bytes(server.content)
    assert download(entry, tmp_path, progress=False) == path
    assert server.requests == [] and names(tmp_path) == DONE
    path.touch()  # another time, the same bytes
    assert download(entry, tmp_path, progress=False) == path
    path.write_bytes(server.content + b"x")
    with pytest.raises(DownloadError, match=r"has changed since it was downloaded .*--force"):
        download(entry, tmp_path, progress=False)
    assert download(entry, tmp_path, force=True, progress=False).read_bytes() == server.content


def test_two_at_once_download_once(tmp_path, server, entry):
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(download(entry, tmp_path, progress=False)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len(server.requests) == 1


# ---- servers that are slow, busy, endless or point elsewhere ---------------------------------


@pytest.mark.parametrize("refusal", [503, 429, 502, "reset"])
def test_a_passing_refusal_is_tried_again_after_longer_and_longer_pauses(
    tmp_path, server, entry, pauses, refusal
):
    server.refusals, server.refusal = 3, refusal
    assert download(entry, tmp_path, progress=False).read_bytes() == server.content
    assert [status for _, status in server.requests] == [refusal] * 3 + [200]
    assert pauses == [1, 2, 4]


def test_a_lasting_refusal_is_said_after_the_last_attempt(tmp_path, server, entry, pauses):
    server.refusals = 11
    with pytest.raises(DownloadError, match="HTTP status 503 Service Unavailable"):
        download(entry, tmp_path, progress=False)
    assert len(server.requests) == 5 and pauses == [1, 2, 4, 8]
    server.refusal = "reset"
    with pytest.raises(DownloadError, match=r"from 127\.0\.0\.1:\d+: no connection \(.*reset"):
        download(entry, tmp_path, progress=False)
    server.refusal = 404
    begun = len(server.requests)
    with pytest.raises(DownloadError, match="HTTP status 404"):
        download(entry, tmp_path, progress=False)
    assert len(server.requests) == begun + 1  # not tried again
    assert names(tmp_path) == set()


def test_what_a_server_asks_to_wait_is_waited(tmp_path, server, entry, pauses):
    server.refusals, server.extra = 1, {"Retry-After": "7"}
    download(entry, tmp_path, progress=False)
    assert pauses == [7]
    server.refusals, server.extra = 1, {"Retry-After": email.utils.formatdate(time.time() + 30)}
    download(entry, tmp_path, force=True, progress=False)
    assert 0 < pauses[1] <= 30
    server.refusals, server.extra = 1, {"Retry-After": "3600"}
    with pytest.raises(DownloadError, match=r"503 .*asks to come again in 3,600 s"):
        download(entry, tmp_path, force=True, progress=False)
    assert len(pauses) == 2


@pytest.mark.parametrize("length", [True, False])
def test_more_bytes_than_the_file_can_have_are_refused(
    tmp_path, server, entry, monkeypatch, length
):
    assert 1e8 < entry.largest_bytes < 1e9  # 59,345 rows of 15 + 15 + 3 numbers and a few more
    monkeypatch.setattr(type(entry), "largest_bytes", 5000)
    server.length = length
    said = r"can have 5,000 at most" if length else r"more than 5,000 bytes came"
    with pytest.raises(DownloadError, match=said):
        download(entry, tmp_path, progress=False)
    assert len(server.requests) == 1 and names(tmp_path) == set()


def test_a_file_of_unknown_length_comes_whole_and_this_is_said(tmp_path, server, entry):
    server.length = False
    path = download(entry, tmp_path, progress=False)
    assert path.read_bytes() == server.content
    said = verification(path)
    assert "no sha256 of it is published" in said and "as the server said" not in said
    server.length = True
    assert "as the server said" in verification(
        download(entry, tmp_path, force=True, progress=False)
    )


@pytest.mark.parametrize("where", ["head", "body"])
def test_a_server_that_drips_is_given_up(tmp_path, server, entry, monkeypatch, where):
    server.drip = where
    monkeypatch.setattr(answers, "_ANSWER", 0.1)
    monkeypatch.setattr(fetching, "_WINDOW", 0.1)
    said = "no answer within 0.1 s" if where == "head" else r"only \d+ bytes came in"
    with pytest.raises(DownloadError, match=said):
        download(entry, tmp_path, progress=False)
    assert len(server.requests) == 1  # it would be no faster


def test_an_answer_that_ends_within_its_head_is_tried_again(tmp_path, server, entry):
    server.refusals, server.refusal = 2, "cut"
    assert download(entry, tmp_path, progress=False).read_bytes() == server.content
    assert [status for _, status in server.requests] == ["cut", "cut", 200]


@pytest.mark.parametrize("to", ["ftp://127.0.0.1/x.hdf5", "file:///etc/hostname", "data:,x"])
def test_redirects_lead_to_http_alone(tmp_path, server, entry, to):
    server.status, server.extra = 302, {"Location": to}
    with pytest.raises(DownloadError, match=r"redirects to|302 .*not allowed") as caught:
        download(entry, tmp_path, progress=False)
    assert to.partition(":")[0] in str(caught.value) and "\n" not in str(caught.value)
    assert names(tmp_path) == set()


def test_redirects_do_not_leave_https():
    secure = urllib.request.Request("https://example.org/x.hdf5")
    follow = answers._Redirects().redirect_request
    with pytest.raises(answers.Refused, match=r"redirects from https to http://example\.org/y"):
        follow(secure, None, 302, "Found", {}, "http://example.org/y.hdf5")
    assert follow(secure, None, 302, "Found", {}, "https://example.org/y.hdf5") is not None


def test_redirects_without_end_and_within_http(tmp_path, server, entry):
    server.status = 302
    server.extra = {"Location": f"http://127.0.0.1:{server.server_port}/again.hdf5"}
    with pytest.raises(DownloadError, match="HTTP status 302") as caught:
        download(entry, tmp_path, progress=False)
    assert "\n" not in str(caught.value)


def test_a_disk_without_room_is_said_before_a_byte_is_written(tmp_path, server, entry, monkeypatch):
    monkeypatch.setattr(fetching, "free_bytes", lambda _: 1000)
    with pytest.raises(DownloadError, match=r"disk has 1,000 bytes left and [\d,]+ are to come"):
        download(entry, tmp_path, progress=False)
    assert names(tmp_path) == set()


def test_a_file_that_this_machines_memory_cannot_hold_is_kept(tmp_path, server, entry, monkeypatch):
    monkeypatch.setattr("lit_offrl.datasets.hdf5_limits.available_memory", lambda: 1000)
    assert download(entry, tmp_path, progress=False).exists()


def test_ogbenchs_data_are_two_files_that_serve_all_tasks(server, ogbench_files, tmp_path):
    base = "pointmaze-medium-navigate-v0"
    server.content = (ogbench_files() / f"{base}.npz").read_bytes()
    address = f"http://127.0.0.1:{server.server_port}/{base}.npz"
    entries = [replace(entry, url=address) for entry in OGBENCH.values() if entry.base == base]
    assert len(entries) == 7
    for entry in entries:
        assert download(entry, tmp_path, progress=False) == tmp_path / f"{base}.npz"
    assert len(server.requests) == 2  # for one name; the others have the same files
    kept = [each.name for each in sorted(tmp_path.iterdir()) if each.suffix != ".lock"]
    assert kept == [f"{base}{end}" for end in ("-val.npz", "-val.npz.json", ".npz", ".npz.json")]
    assert len(resolve(base, tmp_path).read().episodes) == 8
    server.content = server.content[:-40]
    with pytest.raises(
        DownloadError, match=r"no such dataset .* --env pointmaze-medium-v0 --kind navigate"
    ):
        download(entries[0], tmp_path, force=True, progress=False)
    assert len(resolve(base, tmp_path).read().episodes) == 8
    walker = replace(OGBENCH["antmaze-medium-navigate-v0"], url=address)  # is not made here
    with pytest.raises(DownloadError, match=r"no such dataset .* Fetch http\S*v0\.npz and http"):
        download(walker, tmp_path, force=True, progress=False)
