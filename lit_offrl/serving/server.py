"""The server's socket, its patience with connections, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvicorn

from lit_offrl.common import signals
from lit_offrl.common.errors import ConfigError, reason

TOKEN_VARIABLE = "LIT_OFFRL_SERVE_TOKEN"
"""Environment variable with the token that requests must name."""

_SHORTEST = 16  # letters of a token
_PATIENCE_SECONDS = 15.0  # with a connection that asks for nothing
_STOPPING_SECONDS = 30  # for the requests under way
_MOST_CONNECTIONS = 512


def read_token(file: Path | None) -> str | None:
    """Return the token from a file, or else from the environment; None where there is none.

    Raises:
        ConfigError: It cannot be read, is too short, or has other letters than a header can have.
    """
    if file is not None:
        try:
            where, token = f"--token_file {file}", file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--token_file {file}: cannot be read ({reason(error)}).") from None
    else:
        where, token = f"${TOKEN_VARIABLE}", os.environ.get(TOKEN_VARIABLE, "")
        if not token:
            return None
    if len(token) < _SHORTEST or not all("!" <= letter <= "~" for letter in token):
        raise ConfigError(
            f"{where}: a token has at least {_SHORTEST} letters of ASCII and no blanks; make one "
            "by: openssl rand -hex 32."
        )
    return token


def open_socket(host: str, port: int, token: str | None) -> socket.socket:
    """Return a socket that is bound, so that nothing is loaded for a port that cannot be had.

    Args:
        host: An address, or a name of this machine's.
        port: Its number; 0 takes a free one.
        token: The token that requests must name, if any.

    Raises:
        ConfigError: It cannot be bound, or others can reach it and there is no token.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host}: is no address ({reason(error)}).") from None
    family, *_, address = found[0]
    if token is None and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise ConfigError(
            f"--host {host}: other machines can reach it, so requests must name a token: put one "
            f"into ${TOKEN_VARIABLE} or a --token_file."
        )
    try:
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        why = reason(error) if error.errno is None else os.strerror(error.errno)
        raise ConfigError(
            f"port {port} of {host} cannot be had ({why}): choose another --port."
        ) from None


def address_of(bound: socket.socket) -> str:
    """Return where a bound socket is reached: ``http://127.0.0.1:8000``."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if bound.family == socket.AF_INET6 else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Serves an application until a signal comes, and then answers what is under way.

    Args:
        application: An ASGI application.
        patience: Seconds that a connection may be open without asking for anything, so that those
            which never ask take no room for long.
    """

    def __init__(self, application: Any, patience: float = _PATIENCE_SECONDS) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_graceful_shutdown=_STOPPING_SECONDS,
            )
        )
        self._patience = patience
        self._asked: Mapping[Any, tuple[Any, float]] = {}

    def serve_until_stopped(self, bound: socket.socket) -> None:
        """Serve on a bound socket, which is closed in the end.

        Raises:
            Interrupted: A signal has stopped it.
        """
        with bound, signals.held():
            self.run([bound])

    def capture_signals(self) -> Any:
        """Leave signals to the library's own handler."""
        return contextlib.nullcontext()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: end at a signal, and close what asks for nothing."""
        now = asyncio.get_running_loop().time()
        asked: dict[Any, tuple[Any, float]] = {}
        connections: list[Any] = list(self.server_state.connections)  # all of H11Protocol
        for connection in connections:
            cycle = connection.cycle  # of the last request, new with each
            last, since = self._asked.get(connection, (cycle, now))
            if last is not cycle or not (cycle is None or cycle.response_complete):
                since = now
            if now - since > self._patience:
                connection.transport.abort()
            asked[connection] = cycle, since
        self._asked = asked
        return await super().on_tick(counter) or bool(signals.received())
