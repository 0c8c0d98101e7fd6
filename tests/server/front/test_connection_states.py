"""The table of a connection's states, against connections that are driven through all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.support.front_harness import FrontHarness, Socket, open_front
from tests.support.http1_corpus import cases
from twofold.server.front import exchange, http1, timeouts
from twofold.server.front.http1 import MOVES, Connection
from twofold.server.replica import slots

NAMES = ("IDLE", "HEAD", "SMALL", "BODY", "WAITING", "TASK", "SENDING", "FLUSHING", "LINGER", "CLOSED")
TABLE = {(NAMES[old], NAMES[new]) for old, moves in MOVES.items() for new in moves}
SMALL = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n[1]"
LARGE = http1.SMALL_BODY + 1
LATE_S = 1e6


def large(size: int = LARGE) -> bytes:
    return b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (size, b"x" * size)


def get(target: bytes, fields: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\nhost: x\r\n%b\r\n" % (target, fields)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """The moves that connections have made."""
    moves: set[tuple[str, str]] = set()
    place = Connection.__dict__["state"]  # the descriptor that __slots__ has made

    def put(connection: Connection, new: int) -> None:
        try:
            old = place.__get__(connection)
        except AttributeError:  # a connection begins
            old = new
        if old != new:
            moves.add((NAMES[old], NAMES[new]))
        place.__set__(connection, new)

    monkeypatch.setattr(Connection, "state", property(place.__get__, put))
    return moves


def test_the_table_has_every_state_and_every_state_ends() -> None:
    assert [getattr(http1, name) for name in NAMES] == list(range(len(NAMES))) == list(MOVES)
    assert not MOVES[http1.CLOSED]
    assert all(http1.CLOSED in moves for state, moves in MOVES.items() if state != http1.CLOSED)


@pytest.mark.parametrize("piece", [1 << 20, 1], ids=["whole", "bytes"])
def test_the_corpus_makes_no_other_moves(made: set[tuple[str, str]], piece: int) -> None:
    async def drive(harness: FrontHarness) -> None:
        for case in (*cases("valid"), *cases("invalid")):
            client = harness.connect()
            client.receive(case.data, max(piece, len(case.data) // 2048))
            while harness.serve():
                pass
            await harness.run_tasks()
            client.leave()
        harness.serve()
        assert harness.all_free()

    with open_front() as harness:
        asyncio.run(drive(harness))
    assert made <= TABLE, made - TABLE
    assert {("HEAD", "LINGER"), ("SMALL", "WAITING"), ("SMALL", "TASK"), ("WAITING", "IDLE")} <= made


# ---------------------------------------------------------------------- each move


def ask_twice(harness: FrontHarness, client: Socket) -> None:
    for _ in range(2):
        client.receive(SMALL)
        harness.serve()
    assert client.sent.count(b"HTTP/1.1 200 ") == 2
    client.leave()


def send_a_large_body(harness: FrontHarness, client: Socket) -> None:
    client.receive(large(), 20_000)
    harness.serve()
    assert client.sent.endswith(b"[1]")


def take_a_large_answer(harness: FrontHarness, client: Socket) -> None:
    for room in (http1.RECEIVE_SIZE, 1 << 30):
        client.room = room
        client.receive(SMALL)
        harness.serve(b"a" * (exchange.SMALL_ANSWER + 1))
        client.read()
    assert client.sent.count(b"HTTP/1.1 200 ") == 2


def leave_within_a_large_answer(harness: FrontHarness, client: Socket) -> None:
    client.room = 1000
    client.receive(SMALL)
    harness.serve(b"a" * (exchange.SMALL_ANSWER + 1))
    client.leave()


def read_slowly(harness: FrontHarness, client: Socket) -> None:
    client.room = 0
    client.receive(SMALL)
    harness.serve()
    assert not client.readable
    client.read()
    client.receive(SMALL)
    harness.serve()
    assert client.sent.count(b"HTTP/1.1 200 ") == 2
    client.room = 0
    client.receive(SMALL)
    harness.serve()
    client.leave()


def be_refused_and_stay(harness: FrontHarness, client: Socket) -> None:
    client.receive(get(b"/predict"))
    assert client.sent.startswith(b"HTTP/1.1 405 ")
    client.room = 0
    client.receive(get(b"/predict"))
    client.read()


def be_refused_and_close(harness: FrontHarness, client: Socket) -> None:
    client.receive(b"not http\r\n\r\n")
    assert client.sent.startswith(b"HTTP/1.1 400 ")
    timeouts.check(client.connection, LATE_S)
    assert client.ended == "abort"


def find_no_replica(harness: FrontHarness, client: Socket) -> None:
    memory = harness.pipes.memory
    slots.CONTROL.pack_into(memory, slots.UNAVAILABLE, 1)
    client.receive(SMALL)
    client.room = 0
    client.receive(SMALL)
    client.read()
    assert client.sent.count(b"HTTP/1.1 503 ") == 2
    slots.CONTROL.pack_into(memory, slots.UNAVAILABLE, 0)


def stop_within_a_body(harness: FrontHarness, client: Socket) -> None:
    client.receive(SMALL[:-1])
    timeouts.check(client.connection, LATE_S)
    assert client.sent.startswith(b"HTTP/1.1 408 ")


def stop_within_a_large_body(harness: FrontHarness, client: Socket) -> None:
    client.receive(large()[:-1])
    timeouts.check(client.connection, LATE_S)
    assert client.sent.startswith(b"HTTP/1.1 408 ") and harness.all_free()


def leaving_after(data: bytes) -> Callable[[FrontHarness, Socket], None]:
    def leave(harness: FrontHarness, client: Socket) -> None:
        client.receive(data)
        client.leave()

    return leave


def draining(harness: FrontHarness, client: Socket) -> None:
    harness.front.draining = True
    client.receive(SMALL)
    harness.serve()
    assert client.ended == "close"
    harness.front.draining = False


SCENARIOS = (
    ask_twice, send_a_large_body, take_a_large_answer, leave_within_a_large_answer, read_slowly,
    be_refused_and_stay, be_refused_and_close, find_no_replica, stop_within_a_body,
    stop_within_a_large_body, draining, leaving_after(b"GET"), leaving_after(SMALL[:-1]),
    leaving_after(large()[:-1]), leaving_after(SMALL), leaving_after(b"not http\r\n\r\n"),
)  # fmt: skip


async def ask_the_application(harness: FrontHarness) -> None:
    client = harness.connect()
    client.receive(get(b"/health/live"))
    await harness.run_tasks()
    assert client.sent.startswith(b"HTTP/1.1 200 ")
    client.room = 0
    client.receive(get(b"/health/live"))
    await harness.run_tasks()
    client.read()
    client.receive(get(b"/health/live", b"connection: close\r\n"))
    await harness.run_tasks()
    assert client.ended == "close" and client.sent.count(b"HTTP/1.1 200 ") == 3


def test_every_move_of_the_table_is_made_and_no_other(made: set[tuple[str, str]]) -> None:
    async def drive(harness: FrontHarness) -> None:
        for scenario in SCENARIOS:
            scenario(harness, harness.connect())
            harness.serve()
            assert harness.all_free(), scenario
        await ask_the_application(harness)

    with open_front() as harness:
        asyncio.run(drive(harness))
    assert made == TABLE, made ^ TABLE
