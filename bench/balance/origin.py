"""`python -m bench.balance.origin --port N`: an instance whose work is a sleep, so that two cores are enough.

It has so many workers and one queue before them.  The request says what it costs and what it gets:
`x-work` is microseconds of one worker, `x-answer` the bytes of the answer's body.  /health tells the
workers as an instance of ours does.  With --record, the time of every arrival of body bytes is kept
and given out at /samples: that is the far end's view of what a proxy let pass.
"""

from __future__ import annotations

import argparse
import heapq
import json
import signal
import socket
import sys
from array import array
from collections import deque
from dataclasses import dataclass, field
from time import monotonic_ns

from bench.balance import wire
from bench.balance.reactor import READ, WRITE, Reactor, be_exact

PIECE = 262144
FILLER = memoryview(bytes(1 << 20))
NEVER = 1 << 62


@dataclass
class Workers:
    """Every request waits here for one of the workers, then for its end."""

    number: int
    slow: float  # factor on all work
    busy: int = 0
    queue: deque[Connection] = field(default_factory=deque)
    ends: list[tuple[int, int, Connection]] = field(default_factory=list)
    order: int = 0

    def take(self, connection: Connection) -> None:
        if not connection.work:
            connection.answer()
        elif self.busy < self.number:
            self._begin(connection, monotonic_ns())
        else:
            self.queue.append(connection)

    def _begin(self, connection: Connection, now: int) -> None:
        self.busy += 1
        self.order += 1
        heapq.heappush(self.ends, (now + int(connection.work * 1000 * self.slow), self.order, connection))

    def next_end(self) -> int:
        return self.ends[0][0] if self.ends else NEVER

    def finish(self, now: int) -> None:
        """Answer what is done.  The next one began when its worker became free, not when we looked."""
        while self.ends and self.ends[0][0] <= now:
            end, _, connection = heapq.heappop(self.ends)
            self.busy -= 1
            if self.queue:
                self._begin(self.queue.popleft(), end)
            connection.answer()


class Connection:
    """One connection: requests in order, one in hand."""

    def __init__(self, sock: socket.socket, origin: Origin) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.origin = origin
        self.head = b""
        self.partial = b""
        self.left = -1  # bytes of body still to come; -1: a head is awaited
        self.work = 0
        self.out: list[memoryview] = []
        origin.reactor.watch(sock.fileno(), self.handle)

    def handle(self, events: int) -> None:
        try:
            if events & WRITE:
                self._flush()
            if events & ~WRITE:
                self._read()
        except OSError:
            self.close()

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            self.origin.reactor.forget(self.sock.fileno())
            self.sock.close()

    def _read(self) -> None:
        data = self.sock.recv(PIECE)
        if not data:
            self.close()
            return
        now, heads = monotonic_ns(), 0
        body = len(data)
        if self.left < 0:
            self.partial += data
            head, found, rest = self.partial.partition(wire.END)
            if not found:
                return
            self.head, self.partial, heads, body = head, b"", 1, len(rest)
            self.left, self.work = wire.content_length(head), wire.work_us(head)
        self.left -= body
        if head_is_post(self.head):
            self.origin.record(now, body, heads)
        if self.left <= 0:
            self.left = -1
            self.origin.workers.take(self)

    def answer(self) -> None:
        """To a request that is done; its client may have left meanwhile."""
        if self.sock.fileno() < 0:
            return
        if head_is_post(self.head):
            length = wire.answer_bytes(self.head)
            head = wire.answer_head(length, self.origin.name)
            self.out = [memoryview(head + bytes(min(length, 4096)))]
            for begin in range(4096, length, len(FILLER)):
                self.out.append(FILLER[: min(len(FILLER), length - begin)])
        else:
            self.out = [memoryview(self.origin.told(self.head))]
        try:
            self._flush()
        except OSError:
            self.close()

    def _flush(self) -> None:
        while self.out:
            try:
                sent = self.sock.send(self.out[0])
            except BlockingIOError:
                self.origin.reactor.want(self.sock.fileno(), READ | WRITE)
                return
            if sent == len(self.out[0]):
                self.out.pop(0)
            else:
                self.out[0] = self.out[0][sent:]
        self.origin.reactor.want(self.sock.fileno(), READ)
        if b"HTTP/1.0" in self.head[:64] or self.origin.stopping:
            self.close()


def head_is_post(head: bytes) -> bool:
    return head.startswith(b"POST")


class Origin:
    def __init__(self, name: str, workers: Workers, recording: bool) -> None:
        self.name = name
        self.workers = workers
        self.reactor = Reactor()
        self.samples = array("q")  # monotonic ns, bytes of body, heads; and so on
        self.recording = recording
        self.stopping = False

    def record(self, now: int, body: int, heads: int) -> None:
        if self.recording:
            self.samples.extend((now, body, heads))

    def told(self, head: bytes) -> bytes:
        """The whole answer to a GET."""
        if head.startswith(b"GET /samples"):
            content = self.samples.tobytes()
            self.samples = array("q")
        else:
            ready = [{"index": index, "state": "ready"} for index in range(self.workers.number)]
            content = json.dumps({"state": "ready", "replicas": ready}).encode()
        return wire.answer_head(len(content), self.name) + content

    def serve(self, listener: socket.socket) -> None:
        listener.setblocking(False)

        def accept(_events: int) -> None:
            while True:
                try:
                    Connection(listener.accept()[0], self)
                except BlockingIOError:
                    return

        self.reactor.watch(listener.fileno(), accept)
        while not self.stopping:
            self.reactor.turn(self.workers.next_end())
            self.workers.finish(monotonic_ns())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", default="origin")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--slow", type=float, default=1.0)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    be_exact()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    origin = Origin(options.name, Workers(options.workers, options.slow), options.record)
    with socket.create_server(("127.0.0.1", options.port), backlog=4096) as listener:
        origin.serve(listener)
    return 0


if __name__ == "__main__":
    sys.exit(main())
