"""An answer over HTTP: in time, only from http and https, or an error that says which it is."""

from __future__ import annotations

import contextlib
import datetime
import email.message
import email.utils
import http.client
import socket
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import Future
from typing import Any

from lit_offrl.common.errors import reason

_TIMEOUT = 30.0  # seconds without a byte
_ANSWER = 30.0  # seconds until the answer's head is there
_LASTING = (socket.gaierror, ssl.SSLCertVerificationError, ConnectionRefusedError, TimeoutError)


class BrokenOff(Exception):
    """The connection failed or ended early; what has come stays for the next attempt.

    Attributes:
        again: Whether another attempt may succeed.
        after: Seconds that the server asks to wait before another attempt.
    """

    def __init__(self, said: str, *, again: bool = True, after: float | None = None) -> None:
        super().__init__(said)
        self.again, self.after = again, after


class Refused(Exception):
    """Trying again would not help."""


def open_url(request: urllib.request.Request) -> Any:
    """Return the response to a request.

    A server that sends a byte a second keeps a connection alive, so whoever waits for its answer
    does so in a thread, which ends with the process where the time has passed.

    Raises:
        BrokenOff: there is none, or not in time.
        HTTPError: it is an error.
    """
    answer: Future[Any] = Future()
    threading.Thread(target=_ask, args=(request, answer), daemon=True).start()
    try:
        return answer.result(_ANSWER)
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        if not answer.done():
            raise BrokenOff(f"no answer within {_ANSWER:g} s", again=False) from None
        cause = getattr(error, "reason", None) or error
        may_pass = isinstance(cause, OSError | http.client.RemoteDisconnected)
        said = printable(str(cause) or type(cause).__name__)
        raise BrokenOff(
            f"no connection ({said})", again=may_pass and not isinstance(cause, _LASTING)
        ) from None


def _ask(request: urllib.request.Request, answer: Future[Any]) -> None:
    try:
        opener = urllib.request.build_opener(_Redirects)
        answer.set_result(opener.open(request, timeout=_TIMEOUT))
    except BaseException as error:
        answer.set_exception(error)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        before, after = req.type, urllib.parse.urlsplit(newurl).scheme.lower()
        if after not in ("http", "https"):
            raise Refused(f"it redirects to {printable(newurl)}, which is not an http address")
        if (before, after) == ("https", "http"):
            raise Refused(f"it redirects from https to {printable(newurl)}, which is not secure")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def retry_after(headers: email.message.Message) -> float | None:
    """Return the seconds that a server asks to wait, which it may write as a date."""
    text = (headers.get("Retry-After") or "").strip()
    if text.isdecimal():
        return float(text)
    with contextlib.suppress(ValueError, TypeError):
        date = email.utils.parsedate_to_datetime(text)
        return max((date - datetime.datetime.now(datetime.UTC)).total_seconds(), 0.0)
    return None


def printable(text: str) -> str:
    """Return a server's message in one line, without what a terminal would act on."""
    return reason(Exception("".join(c if c.isprintable() else " " for c in text)))
