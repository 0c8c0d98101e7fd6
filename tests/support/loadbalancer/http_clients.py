"""Clients on the test's own event loop: one that reads byte-exact answers, and many with an open loop.

Loopback only. `Caller` sends what it is told and forgives nothing in what it reads.  `offer` sends
requests at times that are fixed beforehand, whatever the answers do, and measures from those times.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.support.loadbalancer.scripted_instance import reset

_HEAD = re.compile(rb"HTTP/1\.1 (\d{3})[^\r\n]*\r\n((?:[!-9;-~]+:[^\r\n]*\r\n)*)\r\n")
TIMEOUT = 10.0  # seconds


class Broken(Exception):
    """The connection ended before the answer did. `received`: what had come of it."""

    def __init__(self, received: bytes) -> None:
        super().__init__(f"broke off after {received[:300]!r}")
        self.received = received


@dataclass
class Answer:
    status: int
    fields: dict[str, str]  # names in lower case; repeated ones joined
    body: bytes
    interim: list[int] = field(default_factory=list)
    trailers: dict[str, str] = field(default_factory=dict)

    @property
    def closes(self) -> bool:
        return self.fields.get("connection", "") == "close"


def post(
    body: bytes = b"[1]", fields: bytes = b"", target: bytes = b"/predict", version: bytes = b"1.1"
) -> bytes:
    """A request as bytes; `fields` are whole lines."""
    return (
        b"POST %b HTTP/%b\r\nhost: model\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b"
        % (target, version, len(body), fields, body)
    )


def get(target: bytes = b"/thing", fields: bytes = b"", method: bytes = b"GET") -> bytes:
    return b"%b %b HTTP/1.1\r\nhost: model\r\n%b\r\n" % (method, target, fields)


class Caller:
    """One connection to `port`. Every wait is bounded by `timeout`."""

    def __init__(self, port: int, timeout: float = TIMEOUT) -> None:
        self.port = port
        self.timeout = timeout
        self.reader: asyncio.StreamReader = None  # type: ignore[assignment]
        self.writer: asyncio.StreamWriter = None  # type: ignore[assignment]
        self.received = bytearray()  # of the answer that is being read

    async def __aenter__(self) -> Caller:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def drained(self) -> None:
        await asyncio.wait_for(self.writer.drain(), self.timeout)

    def reset(self) -> None:
        reset(self.writer.transport)

    def close(self) -> None:
        self.writer.close()

    async def ask(self, data: bytes, method: str = "POST") -> Answer:
        self.send(data)
        return await self.answer(method)

    async def answer(self, method: str = "POST") -> Answer:
        """The next final answer, whole; raises Broken or TimeoutError."""
        self.received.clear()
        interim: list[int] = []
        async with asyncio.timeout(self.timeout):
            while True:
                made = await self.head()
                if made.status >= 200:
                    break
                interim.append(made.status)
            made.interim = interim
            if method != "HEAD" and made.status not in (204, 304):
                await self._body(made)
            return made

    async def head(self) -> Answer:
        raw = await self._until(b"\r\n\r\n")
        match = _HEAD.fullmatch(raw)
        assert match is not None, raw
        fields: dict[str, str] = {}
        for line in match[2].decode("latin-1").split("\r\n")[:-1]:
            name, _, value = line.partition(":")
            name = name.lower()
            assert name not in fields or name not in ("content-length", "transfer-encoding"), raw
            fields[name] = f"{fields[name]}, {value.strip()}" if name in fields else value.strip()
        assert not ("content-length" in fields and "transfer-encoding" in fields), raw
        return Answer(int(match[1]), fields, b"")

    async def chunk(self) -> bytes:
        """The next piece of a chunked body; b"" is its end."""
        line = await self._until(b"\r\n")
        assert re.fullmatch(rb"[0-9a-f]+\r\n", line), line
        piece = await self._exactly(int(line, 16))
        if piece:
            assert await self._exactly(2) == b"\r\n"
        return piece

    async def trailers(self) -> dict[str, str]:
        found = {}
        while (line := await self._until(b"\r\n")) != b"\r\n":
            name, _, value = line.decode("latin-1").partition(":")
            found[name.lower()] = value.strip()
        return found

    async def at_end(self, seconds: float = 3.0) -> bool:
        """Whether it is closed, or reset, without another byte."""
        try:
            async with asyncio.timeout(seconds):
                return await self.reader.read(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    async def _body(self, made: Answer) -> None:
        if "transfer-encoding" in made.fields:
            assert made.fields["transfer-encoding"] == "chunked", made.fields
            while piece := await self.chunk():
                made.body += piece
            made.trailers = await self.trailers()
        elif "content-length" in made.fields:
            made.body = await self._exactly(int(made.fields["content-length"]))
        else:
            assert made.closes, made.fields
            made.body = await self._to_the_end()

    async def _to_the_end(self) -> bytes:
        try:
            return await self.reader.read(-1)
        except ConnectionError:
            raise Broken(bytes(self.received)) from None

    async def _until(self, end: bytes) -> bytes:
        try:
            data = await self.reader.readuntil(end)
        except asyncio.IncompleteReadError as error:
            raise Broken(bytes(self.received) + error.partial) from None
        except ConnectionError:
            raise Broken(bytes(self.received)) from None
        self.received += data
        return data

    async def _exactly(self, size: int) -> bytes:
        try:
            data = await self.reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise Broken(bytes(self.received) + error.partial) from None
        except ConnectionError:
            raise Broken(bytes(self.received)) from None
        self.received += data
        return data


async def once(port: int, data: bytes, method: str = "POST", timeout: float = TIMEOUT) -> Answer:
    """One request on a connection of its own."""
    async with Caller(port, timeout) as caller:
        return await caller.ask(data, method)


@dataclass
class Outcome:
    """`latencies` in seconds from the intended time, of 200s only; `failures` are not answers at all."""

    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)  # seconds that it took to refuse
    failures: Counter[str] = field(default_factory=Counter)
    at: list[tuple[float, int]] = field(default_factory=list)  # when answered, status

    @property
    def good(self) -> int:
        return self.statuses[200]

    @property
    def total(self) -> int:
        return sum(self.statuses.values()) + sum(self.failures.values())

    def bad(self) -> dict[str, int]:
        """Everything but 200."""
        return {str(key): n for key, n in self.statuses.items() if key != 200} | dict(self.failures)

    def quantile(self, share: float, of: list[float] | None = None) -> float:
        ordered = sorted(self.latencies if of is None else of)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Load:
    """An open loop: `rate` requests a second. Every tenth goes over a connection of its own."""

    def __init__(
        self,
        port: int,
        rate: float,
        body: bytes = b"x" * 1000,
        make: Callable[[int], bytes] | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self.port = port
        self.rate = rate
        self.outcome = Outcome()
        self.timeout = timeout
        plain, closing = post(body), post(body, b"connection: close\r\n")
        self._make = make or (lambda number: plain if number % 10 else closing)
        self._idle: list[Caller] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._sent = 0
        self._running: asyncio.Task[None] | None = None

    async def run(self, seconds: float) -> Outcome:
        await self.go(seconds)
        return await self.end()

    async def go(self, seconds: float) -> None:
        """Send for so long; the answers may still be on their way."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number in range(int(seconds * self.rate)):
            intended = start + number / self.rate
            delay = intended - loop.time()
            if delay > 0:
                await asyncio.sleep(delay)
            task = loop.create_task(self._one(self._make(self._sent), intended))
            self._sent += 1
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def end(self) -> Outcome:
        """Wait for all answers, and leave."""
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        for caller in self._idle:
            caller.writer.transport.abort()
        self._idle.clear()
        return self.outcome

    @asynccontextmanager
    async def going(self, seconds: float) -> AsyncIterator[Load]:
        """For so long, while the block does something else; the outcome is whole behind the block."""
        sending = asyncio.ensure_future(self.go(seconds))
        try:
            yield self
            await sending
        finally:
            if not sending.done():  # the block has failed: do not wait for what nobody will look at
                for task in (sending, *self._tasks):
                    task.cancel()
            await self.end()

    async def _one(self, data: bytes, intended: float) -> None:
        loop, outcome = asyncio.get_running_loop(), self.outcome
        caller = self._idle.pop() if self._idle else None
        try:
            if caller is not None and caller.reader.at_eof():
                caller.writer.transport.abort()
                caller = None
            if caller is None:
                caller = await Caller(self.port, self.timeout).__aenter__()
                caller.writer.transport.get_extra_info("socket").setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
                )
            answer = await caller.ask(data)
        except asyncio.CancelledError:
            if caller is not None:
                caller.writer.transport.abort()
            raise
        except (OSError, Broken, TimeoutError) as error:
            outcome.failures[f"{type(error).__name__}: {error}"[:120]] += 1
            if caller is not None:
                caller.writer.transport.abort()
            return
        took = loop.time() - intended
        outcome.statuses[answer.status] += 1
        outcome.at.append((loop.time(), answer.status))
        (outcome.latencies if answer.status == 200 else outcome.refused).append(took)
        if answer.closes:
            caller.writer.transport.abort()
        else:
            self._idle.append(caller)
