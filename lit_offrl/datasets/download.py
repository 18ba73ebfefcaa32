"""Download a catalogue entry: to a temporary name, resumed where it broke off, verified, moved.

NAME.hdf5.part        the bytes so far
NAME.hdf5.part.json   which version of the file they are of (its ETag or date)
NAME.hdf5.lock        held while a process downloads, so that a second one waits
NAME.hdf5             in place only once it is whole and verified
NAME.hdf5.json        its sha256, for the next time
"""

from __future__ import annotations

import datetime
import fcntl
import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from lit_offrl.datasets.catalog import CatalogEntry, default_data_dir
from lit_offrl.datasets.hdf5 import read_header
from lit_offrl.datasets.sidecar import is_as_recorded, read_sidecar, sidecar_path, write_sidecar
from lit_offrl.errors import DatasetError, DownloadError
from lit_offrl.files import file_sha256

_TIMEOUT = 30.0  # seconds without a byte
_ATTEMPTS = 3  # each goes on where the last one broke off
_BLOCK = 1 << 18


class _BrokenOff(Exception):
    """The connection ended early; what has come stays for the next attempt."""


class _Refused(Exception):
    """Trying again would not help."""


def download(
    entry: CatalogEntry,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    progress: bool = True,
) -> Path:
    """Bring a dataset's file to disk, unless it is there as it was verified before.

    Args:
        entry: of the catalogue.
        data_dir: where to; ``default_data_dir()`` unless given.
        force: download anew whatever is there.
        progress: show a bar on stderr.

    Returns:
        The verified file.

    Raises:
        DownloadError: in one line: the cause, and the command that collects an equivalent. Nothing
            else is put in its place.
    """
    folder = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    path = folder / f"{entry.name}.hdf5"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if path.exists() and not force and _verified_before(path, entry):
                return path
            part = path.with_name(path.name + ".part")
            if force:
                _discard(part)
            validator = _fetch_with_retries(entry.url, part, entry.name, progress)
            try:
                _verify(part, entry)
            except _Refused:
                _discard(part)  # whole but wrong: nothing to resume
                raise
            digest = file_sha256(part)
            sidecar_path(path).unlink(missing_ok=True)
            part.replace(path)
            sidecar_path(part).unlink(missing_ok=True)
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            write_sidecar(
                path,
                {"url": entry.url, "sha256": digest, "version": validator, "downloaded": now},
            )
            return path
    except (_BrokenOff, _Refused) as error:
        raise DownloadError(_advice(entry, str(error))) from None
    except OSError as error:
        raise DownloadError(_advice(entry, f"{folder}: {error.strerror or error}")) from None


def _advice(entry: CatalogEntry, cause: str) -> str:
    host = urllib.parse.urlsplit(entry.url).netloc
    said = f"{entry.name} could not be downloaded from {host}: {cause}."
    if entry.collect_command is None:
        return f"{said} Fetch {entry.url} elsewhere and put it there as {entry.name}.hdf5"
    return f"{said} An equivalent, under a name of its own, is made by `{entry.collect_command}`"


def _verified_before(path: Path, entry: CatalogEntry) -> bool:
    """Say whether the file may be used: as recorded, or of unchanged bytes, or ours to record."""
    record = read_sidecar(path)
    if record and is_as_recorded(path):
        return True
    digest = file_sha256(path)
    if record.get("sha256") not in (None, digest):
        raise _Refused(
            f"{path} is there but has changed since it was downloaded (say --force to replace it)"
        )
    _verify(path, entry)  # put there by hand, or copied without its time of change
    write_sidecar(path, {"url": entry.url, **record, "sha256": digest})
    return True


def _verify(path: Path, entry: CatalogEntry) -> None:
    try:
        read_header(
            path,
            require=("actions", "rewards", "terminals"),
            format=entry.format,
            env_id=entry.env_id,
        )
    except DatasetError as error:
        raise _Refused(f"what came is no such dataset ({error})") from None


def _fetch_with_retries(url: str, part: Path, name: str, progress: bool) -> str | None:
    for attempt in range(1, _ATTEMPTS + 1):
        before = _size(part)
        try:
            return _fetch(url, part, name, progress)
        except _BrokenOff:
            # Nothing came, and nothing was thrown away: the next attempt would fare no better.
            if attempt == _ATTEMPTS or _size(part) == before:
                raise
    raise AssertionError("unreachable")


def _fetch(url: str, part: Path, name: str, progress: bool) -> str | None:
    """Append to ``part`` what is missing, or start anew; return the version's validator."""
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise _Refused(f"{url} is not an http address")
    begun = read_sidecar(part)
    if _size(part) and begun.get("url") == url and begun.get("version"):
        request.add_header("Range", f"bytes={_size(part)}-")
        request.add_header("If-Range", begun["version"])
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            return _receive(response, url, part, name, progress)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing lies beyond the bytes so far
            if error.headers.get("Content-Range") == f"bytes */{_size(part)}":
                return begun["version"]
            _discard(part)
            raise _BrokenOff("the server cannot resume it; run the command again") from None
        raise _Refused(f"HTTP status {error.code} {error.reason}".strip()) from None
    except (urllib.error.URLError, TimeoutError, http.client.HTTPException) as error:
        raise _BrokenOff(f"no connection ({getattr(error, 'reason', None) or error})") from None


def _receive(
    response: http.client.HTTPResponse, url: str, part: Path, name: str, progress: bool
) -> str | None:
    kind = response.headers.get_content_type()
    if kind in ("text/html", "application/xhtml+xml"):
        raise _Refused(f"the server sent a page ({kind}) instead of the file")
    length = response.headers.get("Content-Length")
    expected = int(length) if length and length.isdigit() else None
    have = 0
    if response.status == 206:
        found = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        have = _size(part)
        if not found or int(found[1]) != have:
            _discard(part)
            raise _BrokenOff("the server resumed it at the wrong place; run the command again")
        expected = None if expected is None else have + expected
    elif response.status != 200:
        raise _Refused(f"HTTP status {response.status} {response.reason}")
    version = _validator(response.headers)
    if have == 0:
        part.write_bytes(b"")
        sidecar_path(part).write_text(json.dumps({"url": url, "version": version}), "utf-8")
    bar = tqdm(
        total=expected,
        initial=have,
        unit="B",
        unit_scale=True,
        desc=name,
        disable=not progress,
        dynamic_ncols=True,
    )
    with bar, part.open("ab") as file:
        for block in _blocks(response):
            file.write(block)
            bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())
    if expected is not None and _size(part) != expected:
        raise _BrokenOff(
            f"the connection ended after {_size(part):,} of {expected:,} bytes; run the command "
            "again to resume"
        )
    return version


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Read on; a fault here is the connection's, while one in writing is the disk's."""
    try:
        while block := response.read(_BLOCK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        reason = f"{error or type(error).__name__}"
        raise _BrokenOff(
            f"the connection broke off ({reason}); run the command again to resume"
        ) from None


def _validator(headers: http.client.HTTPMessage) -> str | None:
    """Return what If-Range may name; a weak ETag it may not."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time work on a file; the lock ends with the process, however it ends."""
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    sidecar_path(part).unlink(missing_ok=True)
