"""A front without its process: real connections and slots; socket, client and replica are the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from tests.support.dispatch_harness import FakeReplicas, ManualLoop, open_channels, queue_pipes
from twofold.server.config import Config, HttpSettings
from twofold.server.front.http1 import Connection
from twofold.server.front.listeners import Listeners
from twofold.server.front.process import Front, FrontContext
from twofold.server.replica import frame
from twofold.server.supervision.channels import Channels

ROOM = 1 << 30  # bytes that a socket takes at once, unless a test says less


class Socket(asyncio.Transport):
    """A transport whose socket takes `room` bytes and then waits for the client to read."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection
        self.room = ROOM
        self.sent = bytearray()  # what the client can read
        self.held: list[bytes] = []
        self.reading = True
        self.ended = ""  # how: close, abort, lost
        self._closing = False
        connection.connection_made(self)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert (high, low) == (0, 0)

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.held))

    def write(self, data: Any) -> None:
        taken, rest = bytes(data[: self.room]), bytes(data[self.room :])
        self.sent += taken
        self.room -= len(taken)
        if rest:
            waited = bool(self.held)
            self.held.append(rest)
            if not waited:
                self.connection.pause_writing()

    def read(self) -> None:
        """The client reads all that was written for it, and will read on."""
        self.room = ROOM
        held, self.held = self.held, []
        self.sent += b"".join(held)
        if held:
            self.connection.resume_writing()
        if self._closing:
            self._lose("close")

    @property
    def open(self) -> bool:
        return not self.ended

    @property
    def readable(self) -> bool:
        """Whether the connection takes what the client sends."""
        return self.reading and self.open

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self._closing = True
        if not self.held:
            self._lose("close")

    def abort(self) -> None:
        self._lose("abort")

    def leave(self) -> None:
        """The client closes its side."""
        assert not self.connection.eof_received()
        self._lose("lost")

    def _lose(self, how: str) -> None:
        if self.open:
            self.ended = how
            self.connection.connection_lost(None)

    def receive(self, data: bytes, piece: int = 1 << 20) -> None:
        """The client's bytes, at most `piece` of them in each read, while the connection reads."""
        while data and self.readable:
            buffer = self.connection.get_buffer(-1)
            part = data[: min(piece, len(buffer))]
            buffer[: len(part)] = part
            self.connection.buffer_updated(len(part))
            data = data[len(part) :]


@dataclass
class FrontHarness:
    pipes: Channels
    front: Front
    replicas: FakeReplicas
    turns: ManualLoop = field(default_factory=ManualLoop)

    def connect(self) -> Socket:
        return Socket(Connection(self.front))

    def serve(self, answer: bytes = b"[1]", outcome: int = frame.ANSWERED) -> int:
        """Have all that was handed in answered; how many requests that were."""
        served = 0
        self.turns.turn()
        while (claim := self.replicas.claim()) is not None:
            self.replicas.complete(claim, outcome, answer)
            served += 1
        self.turns.turn()
        return served

    async def run_tasks(self) -> None:
        """Until the ASGI application has answered all that it was asked."""
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(tasks)
            await asyncio.sleep(0)

    def all_free(self) -> bool:
        return self.front.dispatch.table.in_use == 0


@contextmanager
def open_front(count: int = 8, size: int = 262144, **settings: Any) -> Iterator[FrontHarness]:
    """A front of `count` slots with room for `size` bytes of body and of answer; `settings` are of HTTP."""
    with open_channels(count, size, size) as pipes:
        context = FrontContext(
            number=0,
            listeners=cast(Listeners, None),
            memory=pipes.memory,
            layout=pipes.layout,
            queue_pipes=queue_pipes(pipes),
            access_log=-1,
            config=Config(http=HttpSettings(**settings)),
        )
        harness = FrontHarness(pipes, Front(context), FakeReplicas(pipes))
        harness.turns.start(harness.front.dispatch)
        yield harness
