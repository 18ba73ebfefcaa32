"""The pages of the server: ``POST /act``, ``GET /health`` and ``GET /metadata``.

    requests --> checked here --> a queue --> one thread, in which the policy acts --> answers

While the policy acts, the steps that arrive wait together; a memoryless policy then answers them
by one call.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lit_offrl.common.errors import LitOffRLError, nearest
from lit_offrl.serving.clients import Clients, Step

_JSON = "application/json"
_MOST_WAITING = 256  # requests
_MOST_ROWS = 256  # that several requests may have together in one call
_LOCAL = ("127.0.0.1", "localhost", "::1")


class StepBody(BaseModel):
    """The body of ``POST /act``, as JSON.

    Attributes:
        observations: Raw observations, a row for each environment.
        client: Name of the client, needed by policies that remember.
        reset: Whether episodes begin here, for all rows or for each.
        goals: Goals of the episodes, a row for each environment.
        rewards: Rewards of the client's last step, one for each environment.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    observations: list[list[float]] = Field(min_length=1)
    client: str | None = Field(None, pattern="^[A-Za-z0-9_.:-]{1,64}$")
    reset: bool | list[bool] = False
    goals: list[list[float]] | None = None
    rewards: list[float] | None = None


class App:
    """The ASGI application around a policy.

    Args:
        clients: Who acts, and what for.
        width: Size o of an observation.
        facts: What the metadata page says, in plain types.
        token: What requests must name as their bearer token; None asks for none, and then only
            requests to this machine's own names are answered, so that no page in a browser gets at
            the server under a name of its own.
        max_body: Number of bytes that a body may have.
        max_rows: Number of observations that a step may have.
        body_seconds: Time in which a body must be there.
    """

    def __init__(
        self,
        clients: Clients,
        width: int,
        facts: Mapping[str, Any],
        *,
        token: str | None = None,
        max_body: int = 2**20,
        max_rows: int = 1024,
        body_seconds: float = 10.0,
    ) -> None:
        self._clients, self._width = clients, width
        self._token, self._body_seconds = token, body_seconds
        self._max_body, self._max_rows = max_body, max_rows
        # JSON knows no infinite bounds: null
        self._facts = json.loads(json.dumps(facts), parse_constant=lambda _: None)
        self._waiting: asyncio.Queue[tuple[Step, asyncio.Future[Any]]] = asyncio.Queue()
        self._under_way = 0
        self.answered = 0
        """Number of steps that were given actions."""
        errors: Mapping[Any, Any] = {HTTPException: _refused, Exception: _failed}
        pages = [
            Route("/act", self._act, methods=["POST"]),
            Route("/health", self._health),
            Route("/metadata", self._metadata),
        ]
        self.asgi = Starlette(routes=pages, lifespan=self._working, exception_handlers=errors)
        self.asgi.router.redirect_slashes = False

    # ---- pages ---------------------------------------------------------------------------------

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _metadata(self, request: Request) -> Response:
        self._require_allowed(request)
        return JSONResponse({**self._facts, "clients": len(self._clients)})

    async def _act(self, request: Request) -> Response:
        self._require_allowed(request)
        if self._under_way >= _MOST_WAITING:
            raise HTTPException(503, f"{_MOST_WAITING} requests are waiting: try again.")
        self._under_way += 1
        try:
            step = self._step(await self._body(request))
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self._waiting.put_nowait((step, future))
            found = await future
        finally:
            self._under_way -= 1
        if isinstance(found, LitOffRLError):
            raise HTTPException(getattr(found, "status", 400), str(found))
        self.answered += 1
        return JSONResponse({"actions": found.tolist()})

    # ---- what is let in ------------------------------------------------------------------------

    def _require_allowed(self, request: Request) -> None:
        if self._token is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), self._token.encode())
            if scheme.lower() != "bearer" or not right:
                raise HTTPException(
                    401,
                    "give the server's token: Authorization: Bearer TOKEN.",
                    {"WWW-Authenticate": "Bearer"},
                )
        elif _host_name(request.headers.get("host", "")) not in _LOCAL:
            raise HTTPException(
                403, "without a token this server answers requests to 127.0.0.1 and localhost only."
            )

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != _JSON:  # which a foreign page in a browser cannot send unasked
            raise HTTPException(415, f"the body must be JSON: Content-Type: {_JSON}.")
        too_large = HTTPException(413, f"the body has more than {self._max_body} bytes.")
        said = request.headers.get("content-length", "0")
        if not (said.isdecimal() and len(said) < 20 and int(said) <= self._max_body):
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self._max_body:  # which need not have named its length
                        raise too_large
        except TimeoutError:
            late = f"the body was not there within {self._body_seconds:g} s."
            raise HTTPException(408, late, {"Connection": "close"}) from None
        except ClientDisconnect:
            raise HTTPException(400, "the client has gone.") from None
        return bytes(body)

    def _step(self, body: bytes) -> Step:
        try:
            given = StepBody.model_validate_json(body)
        except ValidationError as error:
            raise HTTPException(400, _line(error)) from None
        rows = len(given.observations)
        if rows > self._max_rows:
            raise HTTPException(413, f"'observations' has {rows} rows, more than {self._max_rows}.")
        for name, taken in (
            ("goals", self._clients.takes_goals),
            ("rewards", self._clients.takes_rewards),
        ):
            values = getattr(given, name)
            if values is not None and not taken:
                raise HTTPException(400, f"this policy takes no '{name}': leave them out.")
            if values is not None and len(values) != rows:
                raise HTTPException(400, _lengths(name, len(values), rows))
        if isinstance(given.reset, list) and len(given.reset) != rows:
            raise HTTPException(400, _lengths("reset", len(given.reset), rows))
        goals, rewards = given.goals, given.rewards
        return Step(
            observations=_array("observations", given.observations, self._width),
            client=given.client,
            reset=given.reset if isinstance(given.reset, bool) else np.array(given.reset, bool),
            goals=None if goals is None else _array("goals", goals, len(goals[0])),
            rewards=None if rewards is None else _array("rewards", [rewards], rows)[0],
        )

    # ---- acting --------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _working(self, app: Starlette) -> AsyncIterator[None]:
        with ThreadPoolExecutor(1, "acting") as thread:
            work = asyncio.create_task(self._work(thread))
            try:
                yield
            finally:
                work.cancel()

    async def _work(self, thread: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            taken = [await self._waiting.get()]
            rows = len(taken[0][0].observations)
            while not (self._clients.remembers or self._waiting.empty() or rows >= _MOST_ROWS):
                taken.append(self._waiting.get_nowait())
                rows += len(taken[-1][0].observations)
            steps = [step for step, _ in taken]
            found: list[Any]
            try:
                found = await loop.run_in_executor(thread, self._clients.act, steps)
            except Exception as error:  # a fault of the policy's: those who asked hear of it
                for _, future in taken:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), each in zip(taken, found, strict=True):
                if not future.done():  # a client's task may have been cancelled
                    future.set_result(each)


def _host_name(host: str) -> str:
    """Return the name in a ``Host`` header, without the port and an IPv6 address's brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _array(name: str, rows: list[list[float]], width: int) -> np.ndarray:
    """Return rows of numbers (E, width) as float32.

    Raises:
        HTTPException: A row has another size, or a number is too large.
    """
    for number, row in enumerate(rows):
        if len(row) != width:
            raise HTTPException(
                400, f"'{name}' row {number} has {len(row)} numbers: give {width} in each row."
            )
    with np.errstate(over="ignore"):
        array = np.array(rows, np.float32).reshape(len(rows), width)
    if not np.isfinite(array).all():
        row, column = np.argwhere(~np.isfinite(array))[0]
        raise HTTPException(400, f"'{name}' row {row} has a number too large: number {column}.")
    return array


def _lengths(name: str, found: int, rows: int) -> str:
    return f"'{name}' has {found} entries for {rows} observations: give one for each."


def _line(error: ValidationError) -> str:
    """Say the first thing that is wrong with a body."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"][:1] if first["type"] == "bool_type" else first["loc"]))
    if first["type"] == "extra_forbidden":
        known = list(StepBody.model_fields)
        hint = nearest(place[:64], known) or f" There are {', '.join(known)}."
        return f"there is no field '{place[:64]}'.{hint}"
    said = first["msg"].removesuffix(".")
    return f"'{place}': {said}." if place else f"{said}."


async def _refused(request: Request, error: HTTPException) -> Response:
    said = error.detail
    if error.status_code == 404:
        said = "there is no such page: POST /act, GET /health or GET /metadata."
    elif error.status_code == 405:
        said = "this page takes another method: POST /act, GET /health or GET /metadata."
    return JSONResponse({"error": said}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed at this request; its log says why."}, 500)
