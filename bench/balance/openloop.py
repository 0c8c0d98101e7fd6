"""`python -m bench.balance.openloop < SPEC`: requests at given times, whatever the answers do.

Latency counts from the time at which a request was meant to be sent, so that a request that had to
wait for a connection, or for this process, is charged for it (else a stall would be counted once and
not for each of those who would have met it).  How late this process itself was is reported, too.

SPEC and the result are JSON; see Spec and Result.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from time import monotonic_ns, process_time
from typing import Any

from bench.balance import wire
from bench.balance.reactor import Reactor, be_exact
from bench.balance.traffic import Request, Work, percentile, poisson
from bench.servers import PROJECT

PATIENCE_NS = 10_000_000_000  # for answers, after the last request
GRACE_SECONDS = 30
NO_WORK = Work()


@dataclass(frozen=True)
class Spec:
    port: int
    rate: float  # requests/s
    seconds: float
    work: Work = NO_WORK
    seed: int = 1
    connections: int = 64  # at most; a request that finds none free waits for one, and is charged
    body: int = 1024
    answer: int = -1  # asked of a scripted origin; -1: whatever it gives
    json: bool = False
    text: str = ""  # of the body, otherwise zeros
    skip: float = 0.5  # seconds at the start that are not counted

    def requests(self) -> list[Request]:
        return poisson(self.rate, self.seconds, self.work, self.seed)


@dataclass
class Result:
    latencies_us: list[int] = field(default_factory=list)  # of answers with 200, by request; -1: none
    statuses: dict[str, int] = field(default_factory=dict)  # 0: no answer
    instances: dict[str, int] = field(default_factory=dict)
    good_bytes: int = 0  # both ways, of exchanges that ended with 200
    other_bytes: int = 0
    counted: int = 0  # index of the first request that counts
    late_p50_us: float = 0.0
    late_p99_us: float = 0.0
    late_max_us: float = 0.0
    busy: float = 0.0  # part of a core that this process used

    def good(self) -> list[int]:
        return [one for one in self.latencies_us[self.counted :] if one >= 0]

    @property
    def errors(self) -> int:
        return sum(count for status, count in self.statuses.items() if status != "200")

    def summary(self) -> dict[str, Any]:
        good = self.good()
        told = {key: value for key, value in asdict(self).items() if key not in ("latencies_us", "counted")}
        return {**told, "p50_us": percentile(good, 0.5), "p99_us": percentile(good, 0.99), "good": len(good)}


class Connection:
    """Carries one request at a time."""

    __slots__ = ("index", "owner", "partial", "sent", "sock", "whole")

    def __init__(self, owner: Generator) -> None:
        self.owner = owner
        self.index = -1  # of the request in hand
        self.sent = 0  # bytes of the request in hand
        self.partial = b""
        self.whole = 0  # bytes of the answer, once its head is here
        self.sock = socket.create_connection(("127.0.0.1", owner.spec.port))
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        owner.reactor.watch(self.sock.fileno(), self.handle)

    def ask(self, index: int, data: bytes) -> None:
        self.index = index
        try:
            sent = self.sock.send(data)
        except OSError:
            self.lost()
            return
        self.sent = sent
        if sent < len(data):
            raise RuntimeError(f"{len(data)} bytes do not fit into a socket: use a smaller body")

    def handle(self, _events: int) -> None:
        try:
            data = self.sock.recv(262144)
        except OSError:
            data = b""
        if not data:
            self.lost()
            return
        self.partial += data
        if not self.whole:
            end = self.partial.find(wire.END)
            if end < 0:
                return
            self.whole = end + 4 + wire.answer_length(self.partial[: end + 2])
        if len(self.partial) >= self.whole:
            self._answered()

    def _answered(self) -> None:
        head, size = self.partial.partition(wire.END)[0] + b"\r\n", self.sent + self.whole
        index, self.index, self.partial, self.whole = self.index, -1, b"", 0
        self.owner.answered(index, wire.status(head), wire.instance(head), size)
        if wire.closes(head):
            self.lost()
        else:
            self.owner.free(self)

    def lost(self) -> None:
        index, self.index = self.index, -1
        self.owner.reactor.forget(self.sock.fileno())
        self.sock.close()
        self.owner.gone(self, index)


class Generator:
    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.reactor = Reactor()
        self.requests = spec.requests()
        self.result = Result([-1] * len(self.requests))
        self.statuses: Counter[int] = Counter()
        self.instances: Counter[str] = Counter()
        self.idle: list[Connection] = []
        self.opened = 0
        self.waiting: deque[int] = deque()
        self.lateness: list[int] = []
        self.begin = 0
        self.ended = 0
        self._head = wire.request_head(spec.body, spec.answer, json=spec.json)
        self._body = spec.text.encode() or bytes(spec.body)

    def run(self) -> Result:
        for _ in range(min(8, self.spec.connections)):
            self._open()
        self.begin = monotonic_ns() + 50_000_000
        used = process_time()
        for index, request in enumerate(self.requests):
            due = self.begin + request.at_us * 1000
            while (now := monotonic_ns()) < due:
                self.reactor.turn(due)
            self.lateness.append(now - due)
            self.waiting.append(index)
            self._send()
        patience = monotonic_ns() + PATIENCE_NS
        while self.ended < len(self.requests) and monotonic_ns() < patience:
            self.reactor.turn(patience)
        return self._told(process_time() - used)

    def _open(self) -> None:
        self.opened += 1
        self.idle.append(Connection(self))

    def _send(self) -> None:
        while self.waiting:
            if not self.idle:
                if self.opened >= self.spec.connections:
                    return
                self._open()
            index = self.waiting.popleft()
            work = self.requests[index].work_us
            cost = b"x-work: %d\r\n" % work if work else b""
            self.idle.pop().ask(index, b"".join((self._head, cost, b"\r\n", self._body)))

    def free(self, connection: Connection) -> None:
        self.idle.append(connection)
        if self.waiting:
            self._send()

    def gone(self, connection: Connection, index: int) -> None:
        self.opened -= 1
        if connection in self.idle:
            self.idle.remove(connection)
        if index >= 0:
            self.answered(index, 0, "", 0)

    def answered(self, index: int, status: int, instance: str, size: int) -> None:
        """`size`: bytes of the whole exchange."""
        now, at = (monotonic_ns() - self.begin) // 1000, self.requests[index].at_us
        self.ended += 1
        if status == 200:
            self.result.latencies_us[index] = now - at
        if at >= self.spec.skip * 1e6:
            self.statuses[status] += 1
            self.instances[instance] += 1
        if self.spec.skip * 1e6 <= now < self.spec.seconds * 1e6:
            if status == 200:
                self.result.good_bytes += size
            else:
                self.result.other_bytes += size

    def _told(self, used: float) -> Result:
        result, skip = self.result, self.spec.skip * 1e6
        self.statuses[0] += len(self.requests) - self.ended
        result.counted = sum(request.at_us < skip for request in self.requests)
        result.statuses = {str(status): count for status, count in self.statuses.items() if count}
        result.instances = {name: count for name, count in self.instances.items() if name}
        result.late_p50_us = percentile(self.lateness, 0.5) / 1000
        result.late_p99_us = percentile(self.lateness, 0.99) / 1000
        result.late_max_us = max(self.lateness, default=0) / 1000
        result.busy = used / self.spec.seconds
        return result


def generate(spec: Spec) -> Result:
    """In a process of its own; raises RuntimeError with what it said when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.balance.openloop"],
        input=json.dumps(asdict(spec)),
        capture_output=True,
        text=True,
        cwd=PROJECT,
        timeout=spec.seconds + GRACE_SECONDS,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the generator failed: {done.stderr.strip()[-500:]}")
    return Result(**json.loads(done.stdout))


def main() -> int:
    given = json.load(sys.stdin)
    be_exact()
    print(json.dumps(asdict(Generator(Spec(**{**given, "work": Work(**given["work"])})).run())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
