"""One request through an ASGI application, over a connection of a front: bytes out, no sockets.

Pure of I/O: what should be sent goes to `write`, and `drained` is awaited before more is produced.
The body was read before, whole; it is small on every route that comes here.

A response that is complete in its first message leaves in one write, head and body together.  A
streamed one without content-length is chunked on HTTP/1.1 and ends with the connection on 1.0.  An
application that breaks its own promise (content-length, or no end at all) costs its connection: the
client must be able to see that the answer is not whole.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

from twofold.logs.console import say
from twofold.server.front.responses import NO_TIMING
from twofold.wire.refusal import error_body
from twofold.wire.request_head import STATUS_LINES, RequestHead

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

EXTENSION = "twofold"  # of the scope: what this server knows beyond the ASGI specification

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
# Fields of the connection, not of the answer (RFC 9110, 7.6.1): they are written here.
_OURS = frozenset((b"connection", b"keep-alive", b"transfer-encoding", b"content-length"))


@dataclass(frozen=True, slots=True)
class AsgiRequest:
    """One request, and the addresses of its two ends."""

    head: RequestHead
    body: bytes
    request_id: bytes
    client: tuple[str, int] | None = None
    server: tuple[str, int] | None = None
    scheme: str = "http"
    close: bool = False  # the connection ends with this answer, whatever the application says


@dataclass(frozen=True, slots=True)
class AsgiOutcome:
    """What became of it: for the log, and whether the connection may go on."""

    status: int
    sent: int  # bytes, the head included
    body: int  # bytes of the body as the application gave it, before chunking
    close: bool


class BrokenApplication(Exception):
    """The application does not keep to the ASGI specification."""


async def _at_once() -> None:
    """For a `write` that never has to wait."""


async def serve(
    app: Application,
    call: AsgiRequest,
    write: Callable[[bytes], object],
    drained: Callable[[], Awaitable[None]] = _at_once,
) -> AsgiOutcome:
    """Let `app` answer. Never raises but for cancellation, which means that the client has left."""
    response = _Response(call, write, drained)
    try:
        await app(build_scope(call), response.receive, response.send)
        if not response.complete:
            raise BrokenApplication("it returned before its answer was complete")
    except Exception as error:
        if not response.complete:
            response.fail()
        say("error", f"{call.head.method} {call.head.path}: {_place(error)}{type(error).__name__}: {error}")
    return AsgiOutcome(response.status, response.sent, response.body, response.close)


def build_scope(call: AsgiRequest) -> dict[str, Any]:
    """The connection scope of the ASGI specification, HTTP part."""
    head = call.head
    raw = head.target.partition(b"?")[0]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": f"{head.version[0]}.{head.version[1]}",
        "method": head.method,
        "scheme": call.scheme,
        "path": head.path,
        # An absolute target (RFC 9112, 3.2.2) has more than a path in it.
        "raw_path": raw if raw.startswith(b"/") else quote(head.path, safe="/*").encode(),
        "query_string": head.query,
        "root_path": "",
        "headers": list(head.headers),
        "client": call.client,
        "server": call.server,
        "state": {},
        "extensions": {EXTENSION: {"request_id": call.request_id}},
    }


class _Response:
    """Takes the application's messages and writes the answer."""

    def __init__(
        self, call: AsgiRequest, write: Callable[[bytes], object], drained: Callable[[], Awaitable[None]]
    ) -> None:
        self._call = call
        self._write = write
        self._drained = drained
        self._body_given = False
        self._ended = asyncio.Event()
        self._head = b""  # until the first byte of the body is known
        self._framed: int | None = None  # bytes still owed of a promised content-length
        self._chunked = False
        self._bodiless = False
        self.status = 0
        self.sent = 0
        self.body = 0
        self.close = call.close or not call.head.keep_alive
        self.complete = False

    async def receive(self) -> Message:
        if not self._body_given:
            self._body_given = True
            return {"type": "http.request", "body": self._call.body, "more_body": False}
        await self._ended.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Raises BrokenApplication, into the application, for a message that is not allowed now."""
        kind = message["type"]
        if kind == "http.response.start" and not self.status:
            self._start(message["status"], message.get("headers", ()))
        elif kind == "http.response.body" and self.status and not self.complete:
            self._send_body(bytes(message.get("body", b"")), not message.get("more_body", False))
            await self._drained()
        else:
            raise BrokenApplication(f"{kind} is out of place here")

    def fail(self) -> None:
        """The application has failed: 500 if nothing was sent yet, else the end of the connection."""
        self.close = True
        if not self.sent:
            body = error_body("InternalServerError", "the server failed; its log says why")
            fields = (
                (b"content-type", b"application/json"),
                (b"opc-request-id", self._call.request_id),
                (b"server-timing", NO_TIMING),
            )
            self._start(500, fields)
            self._send_body(body, last=True)
        self._finish()

    def _start(self, status: int, fields: Any) -> None:
        if not 200 <= status <= 599:
            raise BrokenApplication(f"{status} is not a final status")
        length: int | None = None
        lines = [STATUS_LINES[status]]
        present = set()
        for name, value in fields:
            name = bytes(name).lower()
            if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
                raise BrokenApplication(f"field {name!r} has bytes that a field cannot have")
            if name == b"content-length":
                length = int(value)
            elif name == b"connection":
                self.close = self.close or b"close" in value.lower()
            if name not in _OURS:
                present.add(name)
                lines.append(b"%b: %b\r\n" % (name, value))
        if b"date" not in present:
            lines.append(b"date: %b\r\n" % formatdate(time.time(), usegmt=True).encode())
        if b"server" not in present:
            lines.append(b"server: twofold\r\n")
        self.status, self._framed, self._head = status, length, b"".join(lines)
        # RFC 9112, 6.3: these have no body, whatever their fields say.
        self._bodiless = self._call.head.method == "HEAD" or status in (204, 304)

    def _send_body(self, part: bytes, last: bool) -> None:
        head = self._finish_head(part, last) if self._head else b""
        if self._bodiless:
            part = b""
        elif self._framed is not None:
            if len(part) > self._framed or (last and len(part) < self._framed):
                raise BrokenApplication("the body is not as long as its content-length")
            self._framed -= len(part)
        self.body += len(part)
        if self._chunked:
            part = (b"%x\r\n%b\r\n" % (len(part), part) if part else b"") + (b"0\r\n\r\n" if last else b"")
        if head or part:
            self.sent += len(head) + len(part)
            self._write(head + part)
        if last:
            self._finish()

    def _finish_head(self, part: bytes, last: bool) -> bytes:
        """The fields that depend on how long the body is and how it ends."""
        head, self._head = self._head, b""
        if self._framed is None and last:
            self._framed = len(part)
        if self._framed is not None:
            if self.status != 204:  # RFC 9110, 8.6
                head += b"content-length: %d\r\n" % self._framed
        elif self._call.head.version == (1, 1):
            self._chunked = not self._bodiless
            head += b"transfer-encoding: chunked\r\n" if self.status not in (204, 304) else b""
        else:
            self.close = self.close or not self._bodiless
        if self.close:
            head += b"connection: close\r\n"
        elif self._call.head.version == (1, 0):
            head += b"connection: keep-alive\r\n"
        return head + b"\r\n"

    def _finish(self) -> None:
        self.complete = True
        self._ended.set()


def _place(error: BaseException) -> str:
    """Where an exception came from, for one line of the log."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}: " if trace else ""
