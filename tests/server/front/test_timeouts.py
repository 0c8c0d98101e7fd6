"""When a connection has been silent for too long, by its state; the clock is an argument."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.front_harness import FrontHarness, Socket, open_front
from twofold.server.front import exchange, http1, timeouts

HEAD_S, BODY_S, IDLE_S = 10.0, 30.0, 75.0
REQUEST = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n[1]"
LARGE_SIZE = 20 * http1.MIN_BODY_RATE // 4  # five seconds at the slowest rate
LARGE = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % LARGE_SIZE


@pytest.fixture
def harness() -> Iterator[FrontHarness]:
    with open_front(head_timeout=HEAD_S, body_timeout=BODY_S, idle_timeout=IDLE_S) as opened:
        yield opened


def check(harness: FrontHarness, client: Socket, now_s: float) -> None:
    harness.front.now_s = now_s
    timeouts.check(client.connection, now_s)


def test_an_idle_connection_closes_earlier_while_the_front_drains(harness: FrontHarness) -> None:
    idle, drained = harness.connect(), harness.connect()
    check(harness, idle, IDLE_S)
    assert idle.open
    check(harness, idle, IDLE_S + 0.1)
    assert idle.ended == "close"
    harness.front.draining = True
    check(harness, drained, timeouts.DRAIN_IDLE_S + 0.1)
    assert drained.ended == "close"


def test_a_head_has_its_time_from_its_first_byte_whatever_comes(harness: FrontHarness) -> None:
    client = harness.connect()
    client.receive(b"POST /pre")
    harness.front.now_s = HEAD_S - 1
    client.receive(b"dict HTTP")
    check(harness, client, HEAD_S)
    assert not client.sent
    check(harness, client, HEAD_S + 0.1)
    assert client.sent.startswith(b"HTTP/1.1 408 ") and b"the head did not arrive" in client.sent


def test_a_large_body_may_pause_but_not_trickle(harness: FrontHarness) -> None:
    client, now_s = harness.connect(), 0.0
    client.receive(LARGE)
    while not client.sent and now_s < 1000:
        now_s += BODY_S / 3
        harness.front.now_s = now_s
        client.receive(b"x")
        check(harness, client, now_s)
    assert client.sent.startswith(b"HTTP/1.1 408 ") and b"the body did not arrive" in client.sent
    assert BODY_S + LARGE_SIZE / http1.MIN_BODY_RATE < now_s < 2 * BODY_S
    assert harness.all_free()


def test_who_takes_nothing_of_an_answer_is_cut_off(harness: FrontHarness) -> None:
    client = harness.connect()
    client.room = 10
    client.receive(REQUEST)
    harness.serve()
    check(harness, client, 1.0)  # notes what is unsent
    check(harness, client, 1.0 + BODY_S)
    assert client.open
    check(harness, client, 1.1 + BODY_S)
    assert client.ended == "abort"


def test_who_takes_a_large_answer_in_drops_is_cut_off(harness: FrontHarness) -> None:
    """Its slot is needed by others."""
    client, now_s = harness.connect(), 0.0
    client.room = 0
    client.receive(REQUEST)
    harness.serve(b"a" * (exchange.SMALL_ANSWER + 1))
    while client.open and now_s < 1000:
        now_s += BODY_S / 3
        client.held[0] = client.held[0][1:]
        check(harness, client, now_s)
    assert client.ended == "abort" and BODY_S < now_s < 2 * BODY_S
    assert harness.all_free()


def test_a_small_answer_may_be_taken_in_drops(harness: FrontHarness) -> None:
    client, now_s = harness.connect(), 0.0
    client.room = 0
    client.receive(REQUEST)
    harness.serve()
    for _ in range(20):
        now_s += BODY_S / 3
        client.held[0] = client.held[0][1:]
        check(harness, client, now_s)
    assert client.open


def test_a_refused_client_has_a_moment_to_read(harness: FrontHarness) -> None:
    client = harness.connect()
    client.receive(b"not http\r\n\r\n")
    check(harness, client, timeouts.LINGER_S)
    assert client.open
    check(harness, client, timeouts.LINGER_S + 0.1)
    assert client.ended == "abort"


def test_a_refused_client_that_goes_on_sending_is_cut_off(harness: FrontHarness) -> None:
    client = harness.connect()
    client.receive(b"not http\r\n\r\n")
    client.receive(b"x" * http1.MAX_DROPPED)
    assert client.open
    client.receive(b"x")
    assert client.ended == "abort"


def test_bodies_that_arrive_are_inside(harness: FrontHarness) -> None:
    client = harness.connect()
    client.receive(LARGE + b"x")
    assert harness.front.dispatch.table.in_use == 1 and not harness.front.dispatch.pending


def test_only_bodies_are_counted_as_bytes_out(harness: FrontHarness) -> None:
    client = harness.connect()
    client.receive(REQUEST)
    harness.serve(b'"an answer"')
    client.receive(b"GET /predict HTTP/1.1\r\nhost: x\r\n\r\n")
    answered, refused = (entry[-1] for entry in harness.front.journal)
    assert answered == len(b'"an answer"')
    assert refused == len(client.sent.rpartition(b"\r\n\r\n")[2]) > 0
