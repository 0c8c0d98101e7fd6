"""`python -m bench.balance.streams < SPEC`: streams of exchanges through a limiter, and what passed when.

Each stream is one connection with one exchange in hand, either again and again (it is backlogged) or
at given times.  Both ends keep their own clock, the system's monotonic one: bytes to the client count
when recv() returns them here, bytes to the origin when recv() returns them there.  So a byte counts
when it has passed, not when it was put into a socket's buffer.

SPEC and the result are JSON; see Spec and Told.  The origin must run with --record.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from time import monotonic_ns
from typing import Any

from bench.balance import control, curves, wire
from bench.balance.curves import SECOND, Sample
from bench.balance.reactor import READ, WRITE, Reactor, be_exact
from bench.balance.traffic import percentile
from bench.servers import PROJECT

PIECE = 262144
BIN = 100_000_000
FINE = 10_000_000
WINDOW = 50_000_000
LEFT_OVER = 3 * SECOND  # how long the last exchanges may take
GRACE_SECONDS = 40


@dataclass(frozen=True)
class Group:
    """So many alike streams. With a `period`, one exchange each so many seconds, evenly spread."""

    streams: int
    up: int  # bytes of the request's body
    down: int  # bytes of the answer's body
    period: float = 0.0


@dataclass(frozen=True)
class Spec:
    port: int
    origin: int
    groups: tuple[Group, ...]
    seconds: float  # after the first, which is dropped
    mbps: float
    idle: int = 0  # connections that have asked once and stay
    edits: tuple[tuple[float, float], ...] = ()  # (seconds after the first, Mbps)
    edit: str = ""  # how: the path of an admin socket, or "tbf"


@dataclass
class Told:
    rate: float = 0.0  # bit/s
    up: float = 0.0  # of it, to the origin
    excess: float = 0.0  # bytes beyond the rate: see curves.excess
    within: float = 0.0  # part of 100 ms bins within 10 % of the rate
    steady: float = 0.0  # and within 10 % of what was measured
    largest: int = 0  # bytes of the fullest 100 ms bin
    settled_ms: list[float] = field(default_factory=list)  # of each edit
    trace: list[float] = field(default_factory=list)  # Mbit/s in 10 ms bins
    groups: list[dict[str, Any]] = field(default_factory=list)
    stall_ms: float = 0.0  # the longest that this process did not look at its sockets


class Stream:
    """One connection."""

    def __init__(self, owner: Reader, group: int, number: int) -> None:
        self.owner, self.group = owner, group
        chosen = owner.spec.groups[group]
        self.period = int(chosen.period * SECOND)
        self.request = wire.request_head(chosen.up, chosen.down) + b"\r\n" + bytes(chosen.up)
        self.head_size = len(self.request) - chosen.up
        self.next = owner.begin + (number * self.period // chosen.streams if self.period else 0)
        self.since = 0  # intended begin of the exchange in hand; 0: none
        self.out = memoryview(b"")
        self.partial = b""
        self.left = -1  # bytes of the answer still to come; -1: its head is awaited
        self.status = 0
        self.passed = 0  # bytes of exchanges that ended in time
        self.sock = self._connect()

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.owner.spec.port))
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.owner.reactor.watch(sock.fileno(), self.handle)
        return sock

    def begin(self, due: int) -> None:
        self.since = due
        self.out = memoryview(self.request)
        self._push()

    def _push(self) -> None:
        try:
            sent = self.sock.send(self.out)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._again()
            return
        self.out = self.out[sent:]
        self.owner.reactor.want(self.sock.fileno(), READ | WRITE if self.out else READ)

    def handle(self, events: int) -> None:
        if events & WRITE and self.out:
            self._push()
        if events & ~WRITE:
            try:
                self._take(self.sock.recv(PIECE))
            except BlockingIOError:
                pass
            except OSError:
                self._take(b"")

    def _take(self, data: bytes) -> None:
        if not data:
            self._again()
            return
        self.owner.arrived(len(data))
        body = len(data)
        if self.left < 0:
            self.partial += data
            head, found, rest = self.partial.partition(wire.END)
            if not found:
                return
            self.partial, body = b"", len(rest)
            self.left, self.status = wire.answer_length(head + b"\r\n"), wire.status(head)
        self.left -= body
        if self.left <= 0:
            self.left = -1
            self._done()

    def _done(self) -> None:
        since, self.since = self.since, 0
        chosen = self.owner.spec.groups[self.group]
        if self.owner.ended(self.group, self.status, since):
            self.passed += chosen.up + chosen.down
        if self.out:  # refused before the body was sent: the connection is of no more use
            self._again()

    def _again(self) -> None:
        """A new connection in place of this one."""
        if self.since:
            self.owner.ended(self.group, 0, self.since)
        self.owner.reactor.forget(self.sock.fileno())
        self.sock.close()
        self.since, self.out, self.partial, self.left = 0, memoryview(b""), b"", -1
        self.sock = self._connect()

    def look(self, now: int) -> None:
        """Begin what is due."""
        if not self.since:
            if not self.period:
                self.begin(now)
            elif now >= self.next:
                due, self.next = self.next, self.next + self.period
                self.begin(due)


class Reader:
    def __init__(self, spec: Spec, change: Callable[[float], None]) -> None:
        self.spec = spec
        self.change = change
        self.reactor = Reactor()
        self.samples: list[Sample] = []
        self.told = Told()
        self.latencies: list[list[int]] = [[] for _ in spec.groups]
        self.statuses: list[Counter[str]] = [Counter() for _ in spec.groups]
        self.idle = [self._ask_once() for _ in range(spec.idle)]
        self.begin = monotonic_ns() + SECOND // 20
        self.first = self.begin + SECOND
        self.end = self.first + int(spec.seconds * SECOND)
        self.streams = [
            Stream(self, group, number)
            for group, chosen in enumerate(spec.groups)
            for number in range(chosen.streams)
        ]

    def _ask_once(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.spec.port))
        sock.sendall(wire.request_head(1, 1) + b"\r\n" + bytes(1))
        if not sock.recv(PIECE).startswith(b"HTTP/1.1 200"):
            raise RuntimeError("an idle connection's only request was not answered with 200")
        return sock

    def arrived(self, size: int) -> None:
        self.samples.append((monotonic_ns(), size))

    def ended(self, group: int, status: int, since: int) -> bool:
        """One exchange; True if it counts as passed in time."""
        now = monotonic_ns()
        counts = self.first <= now < self.end
        if counts:
            self.statuses[group][str(status)] += 1
            if status == 200:
                self.latencies[group].append((now - since) // 1000)
        return counts and status == 200

    def run(self) -> Told:
        self._fetch()  # what the origin saw until now is of no interest
        edits = [(self.first + int(at * SECOND), mbps) for at, mbps in self.spec.edits]
        made: list[tuple[int, float]] = []
        last, stall = 0, 0
        while (now := monotonic_ns()) < self.end:
            if last and now > self.first:
                stall = max(stall, now - last)
            if edits and now >= edits[0][0]:
                made.append((monotonic_ns(), edits[0][1]))
                self.change(edits.pop(0)[1])
            if now >= self.begin:
                for stream in self.streams:
                    stream.look(now)
            last = monotonic_ns()
            self.reactor.turn(min(self._next_due(), last + FINE))
        self.told.stall_ms = stall / 1e6
        return self._tell(made)

    def _next_due(self) -> int:
        return min((one.next for one in self.streams if one.period and not one.since), default=self.end)

    def _fetch(self) -> array[int]:
        connection = http.client.HTTPConnection("127.0.0.1", self.spec.origin, timeout=30)
        connection.request("GET", "/samples")
        samples = array("q", connection.getresponse().read())
        connection.close()
        return samples

    # ------------------------------------------------------------------ telling

    def _tell(self, made: Sequence[tuple[int, float]]) -> Told:
        if self.spec.edit == "tbf":
            control.no_tbf()
        far, head = self._fetch(), max(one.head_size for one in self.streams)
        up = [
            (at, body + heads * head) for at, body, heads in zip(far[::3], far[1::3], far[2::3], strict=True)
        ]
        inside = [one for one in up if self.first <= one[0] < self.end]
        samples = sorted(inside + [one for one in self.samples if self.first <= one[0] < self.end])
        told, bits = self.told, self.spec.mbps * 1e6
        told.rate = curves.rate(samples, self.first, self.end)
        told.up = curves.rate(inside, self.first, self.end)
        told.excess = curves.excess(samples, bits)
        coarse = curves.bins(samples, self.first, self.end, BIN)
        told.within, told.steady = (curves.within(coarse, mean / 80, 0.1) for mean in (bits, told.rate))
        told.largest = max(coarse)
        before = self.spec.mbps * 1e6
        for at, mbps in made:
            told.settled_ms.append(curves.settled(samples, at, before, mbps * 1e6, WINDOW))
            before = mbps * 1e6
        if made:
            told.trace = curves.trace(samples, self.first, self.end, FINE)
        told.groups = [self._of_group(number) for number in range(len(self.spec.groups))]
        return told

    def _of_group(self, number: int) -> dict[str, Any]:
        shares = [stream.passed for stream in self.streams if stream.group == number]
        latencies = self.latencies[number]
        return {
            "statuses": dict(self.statuses[number]),
            "p50_us": percentile(latencies, 0.5),
            "p99_us": percentile(latencies, 0.99),
            "max_us": max(latencies, default=0),
            "jain": curves.jain(shares),
            "spread": max(shares) / min(shares) if min(shares) else 0.0,
        }


def parsed(text: str) -> Spec:
    given = json.loads(text)
    given["groups"] = tuple(Group(**one) for one in given["groups"])
    given["edits"] = tuple((at, mbps) for at, mbps in given["edits"])
    return Spec(**given)


def observe(spec: Spec, *namespace: str) -> Told:
    """In a process of its own; raises RuntimeError with what it said when it fails."""
    done = subprocess.run(
        [*namespace, sys.executable, "-m", "bench.balance.streams"],
        input=json.dumps(asdict(spec)),
        capture_output=True,
        text=True,
        cwd=PROJECT,
        timeout=spec.seconds + GRACE_SECONDS,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the reader failed: {done.stderr.strip()[-800:]}")
    return Told(**json.loads(done.stdout))


def main() -> int:
    spec = parsed(sys.stdin.read())
    be_exact()
    if spec.edit == "tbf":
        with control.behind_tbf(spec.mbps, spec.origin):
            told = Reader(spec, control.set_tbf).run()
    else:
        told = Reader(spec, lambda mbps: control.set_bandwidth(spec.edit, mbps)).run()
    print(json.dumps(asdict(told)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
