"""The admin API on a Unix socket with mode 0600, and the servers of the API and the status page.

    GET    /state                    the complete status
    PUT    /bandwidth                {"mbps": 20, "max_mbps": 40}; without max_mbps no autoscaling
    GET    /instances
    POST   /instances                {"url": "http://10.0.0.7:9001"}: add, or end a drain or removal
    POST   /instances/NAME/drain     send no more requests
    DELETE /instances/NAME           drain, then remove
    POST   /reload                   as SIGHUP

An error response is {"code", "message"}.  Read-only paths are served on the status address, too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from twofold.errors import AddressError, ResourceError, TwofoldError
from twofold.loadbalancer.config import default_admin_path
from twofold.loadbalancer.control import status_page
from twofold.loadbalancer.listeners import ListenerSet
from twofold.logs.console import say

if TYPE_CHECKING:
    from twofold.loadbalancer.control.controller import Controller

BACKLOG = 64
MAX_BODY = 65536
MAX_CONNECTIONS = 256
LEAVE_S = 1  # time for responses in flight at the stop
MEANINGS = {404: "there is no such path", 405: "method not allowed for this path"}
NOTHING: Set[str] = frozenset()
CODES = {404: "NotAuthorizedOrNotFound", 405: "MethodNotAllowed", 413: "PayloadTooLarge"}


# ---------------------------------------------------------------------- the API


class AdminApi:
    """The API's routes, which call the controller."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def routes(self) -> list[Route]:
        name = "/instances/{name:path}"  # a name has slashes
        return [
            Route("/bandwidth", self.set_bandwidth, methods=["PUT"]),
            Route("/instances", self.instances, methods=["GET"]),
            Route("/instances", self.add, methods=["POST"]),
            Route(name + "/drain", self.drain, methods=["POST"]),
            Route(name, self.remove, methods=["DELETE"]),
            Route("/reload", self.reload, methods=["POST"]),
        ]

    async def set_bandwidth(self, request: Request) -> Response:
        given = await _object(request, {"mbps"}, {"max_mbps"})
        most = given.get("max_mbps")
        mbps, maximum = _number(given["mbps"], "mbps"), 0.0 if most is None else _number(most, "max_mbps")
        self._controller.set_bandwidth(mbps, maximum)
        return _json(200, self._controller.status.state()["bandwidth"])

    async def instances(self, request: Request) -> Response:
        return _json(200, self._controller.status.state()["instances"])

    async def add(self, request: Request) -> Response:
        url = (await _object(request, {"url"}))["url"]
        if not isinstance(url, str):
            raise ValueError("url must be a text")
        return _json(201, self._one(self._controller.add(url).name))

    async def drain(self, request: Request) -> Response:
        return _json(202, self._one(self._controller.drain(request.path_params["name"]).name))

    async def remove(self, request: Request) -> Response:
        return _json(202, self._one(self._controller.remove(request.path_params["name"]).name))

    async def reload(self, request: Request) -> Response:
        self._controller.reload()
        return _json(
            202, {"message": "the new settings are checked; if they are good, they hold in a moment"}
        )

    def _one(self, name: str) -> dict[str, Any]:
        shown: list[dict[str, Any]] = self._controller.status.state()["instances"]
        return next(each for each in shown if each["name"] == name)


async def _object(request: Request, needed: Set[str], possible: Set[str] = NOTHING) -> dict[str, Any]:
    """The body, a JSON object. Raises ValueError for missing or unknown keys, HTTPException if too large."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"the body may have {MAX_BODY} bytes")
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the body is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise ValueError("the body must be a JSON object")
    for key in given:
        if key not in needed | possible:
            raise ValueError(f"{key!r} is unknown; there is {', '.join(sorted(needed | possible))}")
    for key in needed - given.keys():
        raise ValueError(f"{key} is missing")
    return given


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number")
    return float(value)


def _json(status: int, value: object) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


async def refuse(request: Request, error: Exception) -> Response:
    """The error response for an exception, in the format of the contract."""
    if isinstance(error, HTTPException):
        status = error.status_code
        message = MEANINGS.get(status, error.detail)
    elif isinstance(error, KeyError):
        status, message = 404, f"there is no instance {error.args[0]!r}; the state lists them"
    else:
        status, message = 400, str(error)
    return _json(status, {"code": CODES.get(status, "InvalidParameter"), "message": message})


def application(routes: list[Route]) -> Starlette:
    return Starlette(
        routes=routes, exception_handlers={HTTPException: refuse, KeyError: refuse, ValueError: refuse}
    )


# ---------------------------------------------------------------------- serving


class AdminServer(uvicorn.Server):
    """A server that leaves signals to the controller."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class SayHandler(logging.Handler):
    """Prints the server's log records, one line each, without blocking."""

    def emit(self, record: logging.LogRecord) -> None:
        why = f": {record.exc_info[1]!r}" if record.exc_info and record.exc_info[1] else ""
        say(record.levelname.lower(), f"admin API: {record.getMessage()}{why}")


class AdminServers:
    """The servers of the admin socket, and of the status address if one is set."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._watchers = status_page.Watchers(controller.status)
        self._sockets = ListenerSet()
        self._servers: list[AdminServer] = []

    async def serve(self) -> None:
        """Serve until `stop`. If the admin socket cannot be opened, report it and serve the status only."""
        logger = logging.getLogger("uvicorn.error")
        logger.handlers, logger.propagate = [SayHandler()], False
        logger.setLevel(logging.WARNING)
        read_only = self._watchers.routes()
        if self._controller.context.status is not None:
            self._servers.append(_server(application(read_only)))
        listeners = [] if self._controller.context.status is None else [self._controller.context.status]
        try:
            listeners.append(self._open())
            self._servers.append(_server(application([*AdminApi(self._controller).routes(), *read_only])))
        except TwofoldError as error:
            say("error", f"no admin API: {error}")
        serving = [server.serve([each]) for server, each in zip(self._servers, listeners, strict=True)]
        try:
            await asyncio.gather(*serving, self._watchers.run())
        finally:
            self._sockets.release()

    def stop(self) -> None:
        self._watchers.stop()
        for server in self._servers:
            server.should_exit = True

    def _open(self) -> socket.socket:
        """Open the admin socket. Raises ResourceError or AddressError."""
        path = self._controller.config.admin_path()
        _make_folder(path.parent, own=path == default_admin_path(os.environ))
        text = f"unix:{path}"
        mask = os.umask(0o177)  # the socket has mode 0600 from its creation
        try:
            self._sockets.bind([text], BACKLOG)
        except AddressError as error:
            raise AddressError(error.message, "another load balancer may have it: set admin_socket") from None
        finally:
            os.umask(mask)
        return self._sockets.held[text].dup()  # the server closes the duplicate; release() removes the file


def _server(app: Starlette) -> AdminServer:
    return AdminServer(uvicorn.Config(
        app, loop="none", http="h11", ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, limit_concurrency=MAX_CONNECTIONS, timeout_graceful_shutdown=LEAVE_S,
    ))  # fmt: skip


def _make_folder(folder: Path, own: bool) -> None:
    """Make the folder. Raises ResourceError; also, if `own`, when another user has access to it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.lstat()
    except OSError as error:
        raise ResourceError(
            f"cannot make the folder: {error.strerror}", "set admin_socket", str(folder)
        ) from None
    if own and (facts.st_uid != os.getuid() or facts.st_mode & 0o077):
        raise ResourceError("others may write there", "remove it, or set admin_socket", str(folder))
