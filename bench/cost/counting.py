"""Instructions per request of both sides: blocks of equal requests that alternate.

Touches loopback, and a temporary folder for callgrind's control pipes.  Counters are read before and
after each block, so that the start of a process does not count.  What a process does by the clock does:
a block that other processes delay has more of it, on both sides alike.  That is fitted and taken away.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.balance import wire
from bench.cost import instructions, pairs
from bench.cost.parts import Both, Part, Side, Way, started
from bench.cost.timing import Plan

READY_SECONDS = 300.0  # the start takes fifty times as long
LOOK_SECONDS = 0.5
ANSWER_SECONDS = 60
REQUESTS = 1000  # of a block
BLOCKS = 12
ONE_REPLICA = ("--replicas", "1")  # two share the work by chance


@dataclass(frozen=True)
class Block:
    seconds: float
    instructions: float  # per request


@dataclass(frozen=True)
class Counts:
    """The blocks of both sides."""

    this: list[Block]
    other: list[Block]

    @property
    def medians(self) -> tuple[float, float]:
        """Instructions per request, as if every block had been as short as the shortest."""
        this, other = ([(one.seconds, one.instructions) for one in side] for side in (self.this, self.other))
        slope = max(0.0, pairs.common_slope(this, other))  # time can only add
        shortest = min(seconds for seconds, _ in (*this, *other))
        mine, theirs = (
            statistics.median(count - slope * (seconds - shortest) for seconds, count in side)
            for side in (this, other)
        )
        return mine, theirs

    @property
    def ratio(self) -> float:
        this, other = self.medians
        return this / other


class Lockstep:
    """So many kept connections: one request on each, then one answer from each, and so on.

    Both sides get the same requests in the same groups, which a load in a closed loop would not give.
    """

    def __init__(self, port: int, connections: int, body: bytes) -> None:
        self.request = wire.request_head(len(body), json=True) + b"\r\n" + body
        self.sockets: list[socket.socket] = []
        try:
            for _ in range(connections):
                self.sockets.append(socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS))
        except OSError:
            self.close()
            raise

    def ask(self, rounds: int) -> int:
        """How many requests; raises RuntimeError for an answer other than 200."""
        for _ in range(rounds):
            for one in self.sockets:
                one.sendall(self.request)
            for one in self.sockets:
                self._answer(one)
        return rounds * len(self.sockets)

    def _answer(self, one: socket.socket) -> None:
        found, whole = b"", 0
        while not whole or len(found) < whole:
            data = one.recv(65536)
            if not data:
                raise RuntimeError("a connection was closed while instructions were counted")
            found += data
            end = found.find(wire.END)
            if end >= 0 and not whole:
                whole = end + 4 + wire.answer_length(found[: end + 2])
        if wire.status(found) != 200:
            raise RuntimeError(f"an answer other than 200 while instructions were counted: {found[:200]!r}")

    def close(self) -> None:
        for one in self.sockets:
            one.close()


def measure(part: Part, both: Both, plan: Plan) -> Counts:
    """Raises Unavailable where valgrind is missing or a side does not start.

    Raises RuntimeError, or OSError, where an answer or a counter is wrong.
    """
    instructions.find_tools()
    print("  counting instructions; under callgrind the start takes up to a minute ...", flush=True)
    body = part.body(plan.body)
    folder = Path(tempfile.mkdtemp(prefix="callgrind-"))
    prefix = folder / "vgdb"
    way = Way(
        lambda command: instructions.wrapped(command, prefix),
        instructions.VARIABLES,
        ONE_REPLICA,
        READY_SECONDS,
        LOOK_SECONDS,
    )
    counts = Counts([], [])
    try:
        with started(part, both, way, body) as sides:
            for number, turn in enumerate(pairs.turns(BLOCKS), 1):
                for index in turn:
                    block = _block(sides[index], prefix, plan.connections, body.content)
                    (counts.this, counts.other)[index].append(block)
                mine, theirs = counts.this[-1].instructions, counts.other[-1].instructions
                told = f"this {mine:8,.0f}  other {theirs:8,.0f}  ratio {mine / theirs:.3f}"
                print(f"  block {number}/{BLOCKS}: {told}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return counts


def _block(side: Side, prefix: Path, connections: int, body: bytes) -> Block:
    """Over new connections, because idle ones are closed while the other side has its turn."""
    rounds = -(-REQUESTS // connections)
    with contextlib.closing(Lockstep(side.asked.port, connections, body)) as client:
        client.ask(max(2, rounds // 10))  # imports and caches of the first requests
        pids = side.workers()
        before, began = instructions.read(pids, prefix), time.monotonic()
        requests = client.ask(rounds)
        seconds = time.monotonic() - began
        return Block(seconds, (instructions.read(pids, prefix) - before) / requests)
