"""An instance that does what a test tells it to, byte by byte: a server on the test's own event loop.

Loopback only. `GET /health` is answered as an instance of ours answers it; everything else by
`origin.handler`, which may be replaced at any time and holds for requests that come afterwards.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable

REMEMBERED = 10_000  # requests
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RESET = struct.pack("ii", 1, 0)


class Gone(Exception):
    """The load balancer has closed the connection."""


class Exchange:
    """One request, and the means to answer it."""

    def __init__(self, connection: Connection, head: bytes) -> None:
        self.connection = connection
        self.origin = connection.origin
        self.head = head
        found = _LENGTH.search(head)
        self.length = int(found[1]) if found else 0
        self.body = bytearray()
        self._change: asyncio.Future[None] | None = None

    @property
    def target(self) -> str:
        return self.head.split(b" ", 2)[1].decode("latin-1")

    def field(self, name: str) -> str | None:
        """The value of a field, or None; several are joined as RFC 9110, 5.3 says."""
        values = [
            value.strip()
            for line in self.head.decode("latin-1").split("\r\n")[1:]
            for label, _, value in [line.partition(":")]
            if label.lower() == name
        ]
        return ", ".join(values) if values else None

    @property
    def complete(self) -> bool:
        return len(self.body) >= self.length

    @property
    def gone(self) -> bool:
        return self.connection.lost

    async def changed(self) -> None:
        """Until more of the body has come, or the load balancer has gone."""
        if not self.gone:
            self._change = asyncio.get_running_loop().create_future()
            await self._change

    def notify(self) -> None:
        if self._change is not None and not self._change.done():
            self._change.set_result(None)

    async def whole(self) -> bytes:
        """The body, when all of it is here."""
        while not self.complete:
            if self.gone:
                raise Gone
            await self.changed()
        return bytes(self.body)

    async def abandoned(self) -> None:
        """Until the load balancer closes the connection."""
        while not self.gone:
            await self.changed()

    def send(self, data: bytes) -> None:
        self.connection.transport.write(data)

    def close(self) -> None:
        self.connection.transport.close()

    def reset(self) -> None:
        """Break the connection off with a RST."""
        reset(self.connection.transport)


class Connection(asyncio.Protocol):
    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.buffer = bytearray()
        self.exchange: Exchange | None = None
        self.lost = False
        self.transport: asyncio.Transport = None  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.origin.accepted += 1
        self.origin.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.origin.connections.discard(self)
        if self.exchange is not None:
            self.exchange.notify()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.step()

    def step(self) -> None:
        fresh = self.exchange is None
        if fresh:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self.exchange = Exchange(self, bytes(self.buffer[: end + 4]))
            del self.buffer[: end + 4]
        exchange = self.exchange
        assert exchange is not None
        missing = exchange.length - len(exchange.body)
        exchange.body += self.buffer[:missing]
        del self.buffer[:missing]
        exchange.notify()
        if fresh:
            self.origin.take(exchange)

    def done(self) -> None:
        """The handler has ended; what is missing of the body is not waited for."""
        self.exchange = None
        if self.buffer and not self.lost:
            self.step()


Handler = Callable[[Exchange], Awaitable[None]]


class Origin:
    """`workers`: as its health says, and as `responding_after` keeps busy. `exchanges`: all but probes."""

    def __init__(self, handler: Handler, workers: int = 2, port: int = 0) -> None:
        self.handler = handler
        self.workers = workers
        self.port = port
        self.healthy = True
        self.unix_socket = ""  # as its health tells
        self.accepted = 0
        self.probes = 0
        self.inside = 0
        self.most_inside = 0
        self.exchanges: deque[Exchange] = deque(maxlen=REMEMBERED)
        self.connections: set[Connection] = set()
        self.slots = asyncio.Semaphore(workers)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> Origin:
        """Listen, at the same port as before if there was one."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), "127.0.0.1", self.port, reuse_address=True, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def kill(self) -> None:
        """As if its process had been killed: nobody listens, and every connection is reset."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            reset(connection.transport)

    async def stop(self) -> None:
        self.kill()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def take(self, exchange: Exchange) -> None:
        if exchange.target == "/health":
            self._tell_health(exchange)
            return
        self.exchanges.append(exchange)
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        task = asyncio.get_running_loop().create_task(self._handle(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tell_health(self, exchange: Exchange) -> None:
        self.probes += 1
        told = {"replicas": [{"state": "ready"}] * self.workers, "socket": self.unix_socket}
        body = json.dumps(told).encode()
        exchange.send(answer(body, status=200 if self.healthy else 503))
        exchange.connection.transport.close()

    async def _handle(self, exchange: Exchange) -> None:
        try:
            await self.handler(exchange)
        except Gone:
            pass
        finally:
            self.inside -= 1
        exchange.connection.done()


def reset(transport: asyncio.WriteTransport) -> None:
    """Break it off with a RST."""
    known = transport.get_extra_info("socket")
    if known is None or known.fileno() < 0:
        return
    # A loop may hand out a socket that only looks like one.
    with socket.socket(fileno=os.dup(known.fileno())) as real:
        real.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


# ---------------------------------------------------------------------- answers, and handlers that give them


def answer(body: bytes = b'{"prediction":1}', status: int = 200, fields: bytes = b"") -> bytes:
    """As an instance of ours would say it; `fields` are whole lines."""
    return (
        b"HTTP/1.1 %d Said\r\ncontent-type: application/json\r\nopc-request-id: A/B/C\r\n"
        b"%bcontent-length: %d\r\n\r\n%b"
    ) % (status, fields, len(body), body)


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n"
    b"trailer: streamfailure\r\n\r\n"
)


def responding(data: bytes) -> Handler:
    """The same bytes for every request, when it is here whole."""

    async def handler(exchange: Exchange) -> None:
        await exchange.whole()
        exchange.send(data)

    return handler


def responding_and_closing(data: bytes) -> Handler:
    async def handler(exchange: Exchange) -> None:
        await exchange.whole()
        exchange.send(data)
        exchange.close()

    return handler


def responding_after(seconds: float, data: bytes | None = None) -> Handler:
    """Each request keeps a worker busy for so long."""
    said = answer() if data is None else data

    async def handler(exchange: Exchange) -> None:
        await exchange.whole()
        async with exchange.origin.slots:
            await asyncio.sleep(seconds)
        if not exchange.gone:
            exchange.send(said)

    return handler


async def echo(exchange: Exchange) -> None:
    """The body, back."""
    exchange.send(answer(await exchange.whole()))


async def never_responding(exchange: Exchange) -> None:
    """It takes the request, and that is all."""
    await exchange.abandoned()
