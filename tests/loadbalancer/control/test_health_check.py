"""Health: what one answer says, and what a row of them means."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from twofold.loadbalancer.control.health_check import NOT_ASKED, Health, Probe, ProbeResult
from twofold.net.address import Address

WELL, ILL = Health(True, workers=2), Health(False, "/health answered 503")

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


# ---------------------------------------------------------------------- a row of answers


@pytest.mark.parametrize(
    ("up", "was_up", "answers", "expected"),
    [
        (False, False, "w", "1"),  # a new one is let in by its first good answer
        (False, True, "ww", "01"),  # one that was down by its second
        (False, True, "wiww", "0001"),
        (True, True, "i", "1"),
        (True, True, "ii", "10"),
        (True, True, "iwii", "1110"),
        (False, False, "iiiw", "0001"),
        (True, True, "iiww", "1001"),
    ],
)
def test_two_answers_take_out_or_bring_back(up: bool, was_up: bool, answers: str, expected: str) -> None:
    verdict, seen = ProbeResult(up, was_up), ""
    for answer in answers:
        verdict.hear(WELL if answer == "w" else ILL)
        seen += str(int(verdict.up))
    assert seen == expected


def test_changes_are_reported_once() -> None:
    verdict = ProbeResult()
    assert verdict.why == NOT_ASKED
    steps = (  # the answer, whether it changes anything, workers and flapping afterwards
        (WELL, True, 2, False),
        (WELL, False, 2, False),
        (Health(True, workers=3), True, 3, False),
        (ILL, False, 3, True),
        (ILL, True, 3, False),
        (ILL, False, 3, False),
        (Health(True, "", 3, "@twofold-1"), True, 3, True),
        (Health(True, "", 3, "@twofold-1"), True, 3, False),
        (Health(True, "", 3, "@twofold-1"), False, 3, False),
    )
    for answer, changes, workers, flapping in steps:
        assert verdict.hear(answer) is changes
        assert (verdict.workers, verdict.flapping, verdict.why) == (workers, flapping, answer.why)


# ---------------------------------------------------------------------- one answer


def ask(answer: Answer, timeout: float = 0.3) -> Health:
    """What a question to an instance that answers so comes to."""

    async def put() -> Health:
        done = asyncio.Event()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.readuntil(b"\r\n\r\n")
                await answer(reader, writer)
            finally:
                writer.transport.abort()
                await asyncio.sleep(0)
                done.set()

        async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
            where = Address("127.0.0.1", server.sockets[0].getsockname()[1])
            health = await Probe("/health", timeout).put(where)
            await done.wait()
            return health

    return asyncio.run(put())


def says(text: bytes, close: bool = True) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        piece = max(7, len(text) // 20)
        for start in range(0, len(text), piece):
            writer.write(text[start : start + piece])
            await asyncio.sleep(0)
        if close:
            writer.write_eof()
        await reader.read()  # until the other side has had enough

    return answer


OURS = b'{"replicas": [{"state": "ready"}, {"state": "loading"}, {"state": "ready"}]}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n" + OURS, Health(True, workers=2)),
        (
            b"HTTP/1.1 200 OK\r\n\r\n" + OURS[:-1] + b', "socket": "@twofold-7-0f"}',
            Health(True, "", 2, "@twofold-7-0f"),
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n" + OURS[:-1] + b', "socket": "@other"}', Health(True, workers=2)),
        (b"HTTP/1.1 200 OK\r\n\r\n" + OURS[:-1] + b', "socket": "/run/a.sock"}', Health(True, workers=2)),
        (b"HTTP/1.1 200 OK\r\n\r\n" + OURS[:-1] + b', "socket": ["@twofold-7"]}', Health(True, workers=2)),
        (b"HTTP/1.0 200\r\n\r\nfine", Health(True)),
        (b'HTTP/1.1 200 OK\r\n\r\n{"replicas": 7}', Health(True)),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000, Health(True)),
        (b"HTTP/1.1 503 Busy\r\n\r\n", Health(False, "/health answered 503")),
        (b"HTTP/1.1 301 Moved\r\nlocation: /x\r\n\r\n", Health(False, "/health answered 301")),
        (b"SSH-2.0-OpenSSH\r\n", Health(False, "its answer is not HTTP")),
        (b"HTTP/1.1 OK\r\n\r\n", Health(False, "its answer is not HTTP")),
        (b"", Health(False, "closes connections without an answer")),
    ],
)
def test_health_from_an_answer(text: bytes, expected: Health) -> None:
    assert ask(says(text)) == expected


def test_an_instance_that_keeps_the_connection_is_not_waited_for() -> None:
    text = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(OURS), OURS)
    began = time.monotonic()
    assert ask(says(text, close=False), timeout=60.0) == Health(True, workers=2)
    assert time.monotonic() - began < 30


def test_no_answer_is_unhealthy() -> None:
    assert ask(says(b"HTTP/1.1 200", close=False)) == Health(False, "no answer within 0.3 s")


@pytest.mark.parametrize(
    ("line", "begins"),
    [("off", b"GET"), ("v1", b"PROXY UNKNOWN\r\nGET"), ("v2", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0GET")],
)
def test_the_request_of_a_probe(line: str, begins: bytes, tmp_path: Path) -> None:
    async def put() -> bytes:
        sent = asyncio.get_running_loop().create_future()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            sent.set_result(await reader.readuntil(b"localhost\r\n\r\n"))
            writer.close()
            await writer.wait_closed()

        async with await asyncio.start_unix_server(take, str(path)):
            await Probe("/health/ready?x=1", 1.0, line).put(Address(path=str(path)))
            return await sent  # type: ignore[no-any-return]

    path = tmp_path / "model.sock"
    asked = asyncio.run(put())
    assert asked == begins + b" /health/ready?x=1 HTTP/1.0\r\nhost: localhost\r\n\r\n"


def test_a_refused_connection_is_unhealthy(tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        where = Address("127.0.0.1", bound.getsockname()[1])
        assert asyncio.run(Probe("/health", 0.5).put(where)) == Health(False, "refuses connections")
    missing = asyncio.run(Probe("/health", 0.5).put(Address(path=str(tmp_path / "none.sock"))))
    assert missing == Health(False, "No such file or directory")
