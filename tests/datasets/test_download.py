"""Downloads from a server on this machine that misbehaves in the ways that servers do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from lit_offrl.datasets import download as download_module
from lit_offrl.datasets.catalog import CATALOG, resolve
from lit_offrl.datasets.download import download
from lit_offrl.errors import DownloadError

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
    requests: list[tuple[str | None, int]]  # the Range asked for, the status given


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
        server.requests.append((asked, status))
        self.send_response(status)
        for key, value in extra.items():
            self.send_header(key, value)
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Type", server.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.break_after is not None and server.breaks > 0:
            server.breaks -= 1
            body = body[: server.break_after]
        self.wfile.write(body)
        self.close_connection = True

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
        serving.content, serving.requests = path.read_bytes(), []
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


@pytest.fixture
def entry(server):
    return replace(CATALOG[NAME], url=f"http://127.0.0.1:{server.server_port}/{NAME}.hdf5?dl=1")


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
    server.break_after, server.breaks = 3000, 3
    with pytest.raises(DownloadError, match=r"ended after 9,000 of .*again to resume") as caught:
        download(entry, tmp_path, progress=False)
    assert "lit-offrl collect --env HopperBulletEnv-v0 --kind mixed" in str(caught.value)
    assert "hopper-bullet-mixed-regenerated.hdf5" in str(caught.value)
    assert names(tmp_path) == {f"{NAME}.hdf5.part", f"{NAME}.hdf5.part.json"}
    assert download(entry, tmp_path, progress=False).read_bytes() == server.content
    assert server.requests[-1] == ("bytes=9000-", 206)
    assert names(tmp_path) == DONE


@pytest.mark.parametrize("how", ["changed", "no-ranges", "no-validator", "weak", "other-address"])
def test_one_that_cannot_be_resumed_starts_anew(tmp_path, server, entry, how):
    server.break_after, server.breaks = 3000, 1
    server.etag = {"no-validator": None, "weak": 'W/"one"'}.get(how, server.etag)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download_module, "_ATTEMPTS", 1)
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
