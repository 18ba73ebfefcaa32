"""One file over HTTP into ``FILE.part``: resumed where it broke off, tried again, never for ever.

What a server may do, and what comes of it:

    status 408, 429, 500, 502, 503, 504     tried again, after as long as Retry-After says
    the connection is reset or ends early   tried again, from the bytes that are there
    less than 1 kB/s for half a minute      given up; the next command resumes
    an answer that does not begin           given up after half a minute
    more bytes than the file can have       refused
    a redirect to ftp:, file:, or from https to http        refused
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from lit_offrl.common.files import free_bytes
from lit_offrl.datasets.answers import BrokenOff, Refused, open_url, printable, retry_after
from lit_offrl.datasets.sidecar import read_sidecar, sidecar_path

_WINDOW = 30.0  # seconds over which the speed is measured
_SLOWEST = 1000.0  # bytes a second
_ATTEMPTS = 5  # each goes on where the last one broke off
_PAUSE = 1.0  # seconds before the second attempt; twice as long before each further one
_LONGEST_PAUSE = 60.0  # of those that a server may ask for
_BLOCK = 1 << 18
_PASSING = (408, 429, 500, 502, 503, 504)  # statuses that may be others a little later


class Fetched(NamedTuple):
    """What is known of a file that has come: its ETag or date; if the server said its length."""

    version: str | None
    length_known: bool


def fetch(url: str, part: Path, name: str, limit: int, progress: bool) -> Fetched:
    """Bring the rest of a file, or all of it, to ``part``.

    Args:
        url: Address, http or https.
        part: File for the bytes. A sidecar beside it says which version they belong to.
        name: Name shown in the progress bar.
        limit: Largest possible size of the file in bytes.
        progress: Show a progress bar on stderr.

    Raises:
        BrokenOff: it did not come whole in several attempts.
        Refused: it cannot be had, or is too large.
        OSError: the disk cannot be written.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return _fetch(url, part, name, limit, progress)
        except BrokenOff as error:
            if not error.again or attempt == _ATTEMPTS - 1:
                raise
            if (error.after or 0) > _LONGEST_PAUSE:
                raise Refused(f"{error}, and asks to come again in {error.after:,.0f} s") from None
            _wait(_PAUSE * 2**attempt if error.after is None else error.after)
    raise AssertionError("unreachable")


def discard(part: Path) -> None:
    """Remove what has come of a file."""
    part.unlink(missing_ok=True)
    sidecar_path(part).unlink(missing_ok=True)


def _wait(seconds: float) -> None:
    time.sleep(seconds)


def _fetch(url: str, part: Path, name: str, limit: int, progress: bool) -> Fetched:
    """Append to ``part`` what is missing, or start again."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise Refused(f"{url} is not an http address")
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    begun = read_sidecar(part)
    if _size(part) and begun.get("url") == url and begun.get("version"):
        request.add_header("Range", f"bytes={_size(part)}-")
        request.add_header("If-Range", begun["version"])
    try:
        response = open_url(request)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing lies beyond the bytes so far
            if error.headers.get("Content-Range") == f"bytes */{_size(part)}":
                return Fetched(begun["version"], length_known=True)
            discard(part)
            raise BrokenOff("the server cannot resume it; run the command again") from None
        said = printable(f"HTTP status {error.code} {error.reason}")
        if error.code in _PASSING:
            raise BrokenOff(said, after=retry_after(error.headers)) from None
        raise Refused(said) from None
    with response:
        return _receive(response, url, part, name, limit, progress)


def _receive(
    response: http.client.HTTPResponse, url: str, part: Path, name: str, limit: int, progress: bool
) -> Fetched:
    kind = response.headers.get_content_type()
    if kind in ("text/html", "application/xhtml+xml"):
        raise Refused(f"the server sent a page ({kind}) instead of the file")
    length = response.headers.get("Content-Length")
    expected = int(length) if length and length.isdecimal() else None
    have = 0
    if response.status == 206:
        found = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        have = _size(part)
        if not found or int(found[1]) != have:
            discard(part)
            raise BrokenOff("the server resumed it at the wrong place; run the command again")
        expected = None if expected is None else have + expected
    elif response.status != 200:
        raise Refused(printable(f"HTTP status {response.status} {response.reason}"))
    _require_room(part.parent, expected, have, limit)
    tag = response.headers.get("ETag", "")
    # what If-Range may name, which a weak ETag is not
    version = response.headers.get("Last-Modified") if tag[:2] in ("", "W/") else tag
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
            have += len(block)
            if have > limit:
                break
            file.write(block)
            bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())
    if have > limit:
        discard(part)
        raise Refused(f"more than {limit:,} bytes came, which the file cannot have")
    if expected is None and have == 0:
        raise BrokenOff("the answer was empty")
    if expected is not None and _size(part) != expected:
        raise BrokenOff(
            f"the connection ended after {_size(part):,} of {expected:,} bytes; run the command "
            "again to resume"
        )
    return Fetched(version, length_known=expected is not None)


def _require_room(folder: Path, expected: int | None, have: int, limit: int) -> None:
    if expected is None:
        return
    if expected > limit:
        raise Refused(f"it is said to have {expected:,} bytes, and can have {limit:,} at most")
    if expected - have > free_bytes(folder):
        raise OSError(
            errno.ENOSPC,
            f"the disk has {free_bytes(folder):,} bytes left and {expected - have:,} are to come",
        )


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Read on; a fault here is the connection's, while one in writing is the disk's."""
    begun, came = time.monotonic(), 0
    try:
        while block := response.read1(_BLOCK):  # what is there, be it a single byte
            came += len(block)
            passed = time.monotonic() - begun
            if passed >= _WINDOW and came < _SLOWEST * passed:
                raise BrokenOff(
                    f"only {came:,} bytes came in {passed:,.1f} s; run the command again to resume",
                    again=False,
                )
            if passed >= _WINDOW:
                begun, came = time.monotonic(), 0
            yield block
    except (OSError, http.client.HTTPException) as error:
        said = printable(str(error) or type(error).__name__)
        raise BrokenOff(
            f"the connection broke off ({said}); run the command again to resume"
        ) from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
