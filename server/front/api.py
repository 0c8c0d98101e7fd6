"""The HTTP surface as an ASGI application: health, metrics, pages, and predict for embedders.

    in a front        every route but predict comes here; predict takes the express lane
    somewhere else    `uvicorn twofold.server.app:app` starts an instance of its own and hands it predict

Touches its backend only.  Every answer carries opc-request-id and Server-Timing, every refusal is
`{"code", "message"}`; which request is refused is decided by `plan`, as for our own connections.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import orjson
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twofold.server.front import pages, responses, route
from twofold.server.front.asgi import EXTENSION
from twofold.server.front.route import RouteRules
from twofold.server.telemetry import metrics
from twofold.server.telemetry.instance_status import InstanceStatus, is_ready
from twofold.wire.refusal import Refusal
from twofold.wire.request_head import RequestHead
from twofold.wire.request_ids import RequestIds

CODES = {404: "NotAuthorizedOrNotFound", 405: "MethodNotAllowed"}
PROBES = {"live", "ready", "startup"}
STARTED = {"ready", "degraded", "draining"}

_CALLER_GROUP = re.compile(rb"[0-9A-Za-z._~-]{1,64}")  # as http1 has it for our own connections

_USERS_FAULT = re.compile(r"twofold\.errors\.\w+: (.*)")  # the last line of a traceback


class Answer(Protocol):
    """What predict came to: a whole HTTP answer, its own request id and Server-Timing included."""

    @property
    def status(self) -> int: ...
    @property
    def body(self) -> bytes: ...
    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]: ...


class Backend(Protocol):
    """The instance, as far as this application needs it."""

    def instance_status(self) -> InstanceStatus:
        """The status of the instance, as its supervisor published it."""

    def metrics_snapshot(self) -> metrics.Snapshot:
        """What the instance has counted."""

    async def predict(self, body: bytes, kind: int, request_id: bytes) -> Answer:
        """One predict; `request_id` is the first group of its id, or empty. Never raises."""


def create_app(backend: Backend, rules: RouteRules) -> Starlette:
    """The application over a backend that is there already."""
    app = _assemble(None)
    app.state.backend = backend
    app.state.rules = rules
    return app


def embedded() -> Starlette:
    """The application for another server; it starts an instance of its own when that server starts it."""
    return _assemble(_own_instance)


@asynccontextmanager
async def _own_instance(app: Starlette) -> AsyncIterator[None]:
    """Start an instance from the TWOFOLD_* variables, and stop it with the server around it."""
    from twofold.server import config
    from twofold.server.front import embedding

    settings = config.load("", None, os.environ, {})
    async with embedding.open_backend(settings) as backend:
        app.state.backend = backend
        app.state.rules = RouteRules(int(settings.http.max_body_mb * 2**20), settings.http.root_ocid)
        yield


def _assemble(lifespan: Callable[[Starlette], Any] | None) -> Starlette:
    predict = Predict()
    return Starlette(
        routes=[
            Route("/", about),
            Route("/health", health),
            Route("/health/{probe}", health),
            Route("/metrics", show_metrics),
            Route("/openapi.json", openapi),
            Route("/docs", docs),
            # Not functions: these take every method, so that plan decides what is refused, and how.
            Route("/predict", predict),
            Route("/{ocid}/predict", predict),
        ],
        middleware=[Middleware(Envelope)],
        exception_handlers={HTTPException: refuse, Exception: fail},
        lifespan=lifespan,
    )


class Envelope:
    """Puts on every answer what every answer has: the request's id, and its times."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.ids = RequestIds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, _without_traceback(send))
            return
        known = scope.get("extensions", {}).get(EXTENSION, {})
        request_id: bytes = known.get("request_id") or self.ids.mint(_head(scope).request_id)

        async def complete(message: Message) -> None:
            if message["type"] == "http.response.start":
                fields = MutableHeaders(scope=message)
                fields.setdefault("opc-request-id", request_id.decode("latin-1"))
                fields.setdefault("server-timing", responses.NO_TIMING.decode())
                fields.setdefault("x-content-type-options", "nosniff")
            await send(message)

        await self.app(scope, receive, complete)


def _without_traceback(send: Send) -> Send:
    """For the lifespan: a failure that the user can end is told to the server in one line."""

    async def tell(message: Message) -> None:
        if message["type"].endswith(".failed"):
            known = _USERS_FAULT.fullmatch(message["message"].strip().rpartition("\n")[2])
            message = {**message, "message": known[1]} if known else message
        await send(message)

    return tell


class Predict:
    """POST /predict and POST /{ocid}/predict, for servers that have no express lane."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope["app"].state
        chosen = route.make_plan(_head(scope), state.rules)
        if chosen.refusal is not None:
            await _refusal(chosen.refusal)(scope, receive, send)
            return
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            return
        if len(body) != chosen.length:
            short = Refusal(400, "InvalidParameter", "the body is not as long as its Content-Length")
            await _refusal(short)(scope, receive, send)
            return
        answer = await _unless_left(state.backend.predict(body, chosen.kind, chosen.head.request_id), receive)
        if answer is not None:
            response = Response(answer.body, answer.status)
            response.raw_headers.extend(answer.headers)
            await response(scope, receive, send)


async def _unless_left(predict: Any, receive: Receive) -> Answer | None:
    """The answer; or None, and the request is cancelled, if the client leaves before it comes."""
    working = asyncio.ensure_future(predict)
    leaving = asyncio.ensure_future(receive())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        answer: Answer | None = working.result() if working.done() else None
        return answer
    finally:
        for task in (working, leaving):
            task.cancel()


async def about(request: Request) -> Response:
    """What is served here: a page for people, JSON for programs."""
    shown = request.app.state.backend.instance_status()
    if "text/html" in request.headers.get("accept", ""):
        return _page(pages.about(shown))
    return _json(200, pages.summary(shown))


async def health(request: Request) -> Response:
    """200 if the probe's question is answered with yes, else 503; the body says why.

    Raises HTTPException (404) for a probe that does not exist.
    """
    probe = request.path_params.get("probe", "ready")
    if probe not in PROBES:
        raise HTTPException(404)
    shown = request.app.state.backend.instance_status()
    good = {
        "live": True,  # this very answer proves it
        "ready": is_ready(shown),
        "startup": shown.get("state") in STARTED,
    }[probe]
    return _json(200 if good else 503, shown)


async def show_metrics(request: Request) -> Response:
    """Prometheus. In a thread, because the first scrape imports a library while others wait."""
    backend: Backend = request.app.state.backend
    return await asyncio.to_thread(_exposition, backend.metrics_snapshot(), backend.instance_status())


def _exposition(counted: metrics.Snapshot, shown: InstanceStatus) -> Response:
    from twofold.server.telemetry import prometheus
    from twofold.telemetry.prometheus import CONTENT_TYPE

    return Response(prometheus.exposition(counted, shown), headers={"content-type": CONTENT_TYPE})


async def openapi(request: Request) -> Response:
    """OpenAPI 3.1 of this instance."""
    state = request.app.state
    return _json(200, pages.openapi(state.backend.instance_status(), state.rules.max_body))


async def docs(request: Request) -> Response:
    """A page to try predict with."""
    return _page(pages.docs(request.app.state.backend.instance_status()))


async def refuse(request: Request, error: Exception) -> Response:
    """What the router refuses, in the contract's words."""
    assert isinstance(error, HTTPException)
    code = CODES.get(error.status_code, "InvalidParameter")
    message = "nothing is served here; GET / lists what is" if error.status_code == 404 else error.detail
    return _json(error.status_code, {"code": code, "message": message}, error.headers)


async def fail(request: Request, error: Exception) -> Response:
    """A bug in twofold, in the contract's words; the server around logs it."""
    return _json(500, {"code": "InternalServerError", "message": "the server failed; its log says why"})


def _head(scope: Scope) -> RequestHead:
    """The request as `plan` wants it, from a scope that another server may have made."""
    fields: dict[bytes, bytes] = dict(scope["headers"])
    length = fields.get(b"content-length", b"")
    group = fields.get(b"opc-request-id", b"").partition(b"/")[0]
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    return RequestHead(
        method=scope["method"],
        target=raw_path,
        path=scope["path"],
        query=scope["query_string"],
        version=(1, 0) if scope["http_version"] == "1.0" else (1, 1),
        headers=tuple(scope["headers"]),
        content_length=int(length) if length.isdigit() and len(length) < 19 else None,
        chunked=b"transfer-encoding" in fields,
        keep_alive=True,
        expect_continue=False,
        content_type=fields.get(b"content-type", b""),
        request_id=group if _CALLER_GROUP.fullmatch(group) else b"",
    )


def _json(status: int, value: object, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, media_type="application/json")


def _page(page: pages.Page) -> Response:
    policy = {"content-security-policy": page.policy, "cache-control": "no-store"}
    return Response(page.html, 200, policy, media_type="text/html")


def _refusal(refusal: Refusal) -> Response:
    fields = dict(line.split(": ", 1) for line in refusal.headers.decode().splitlines())
    return Response(refusal.body(), refusal.status, fields, media_type="application/json")
