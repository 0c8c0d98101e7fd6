"""Answers through the real load balancer: framing, streams, and what instances send that is no answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.eventually import eventually_async, never_async
from tests.support.loadbalancer.http_clients import Broken, Caller, get, once, post
from tests.support.loadbalancer.running_balancer import RunningBalancer
from tests.support.loadbalancer.scripted_instance import (
    STREAM,
    Exchange,
    Handler,
    Origin,
    answer,
    chunk,
    echo,
    responding,
    responding_and_closing,
)
from twofold.loadbalancer import shared_memory

JSON = b"content-type: application/json\r\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBalancer]:
    made = RunningBalancer(
        tmp_path_factory.mktemp("relaying"), "--predict-timeout", "1.5", "--body-timeout", "2"
    )
    yield made
    made.close()


@pytest.fixture(autouse=True)
def settled(running: RunningBalancer) -> Iterator[None]:
    """After every test the next client is served, and nothing is left in hand."""
    yield
    running.handle_with(echo)
    assert running.run(once(running.port, post(b"[7]"))).body == b"[7]"
    running.run(running.balancer.settled())


# ---------------------------------------------------------------------- fields and framing


def test_an_answer_is_written_anew(running: RunningBalancer) -> None:
    fields = (
        b"connection: X-Mine, Content-Length, keep-alive\r\nx-mine: 1\r\nkeep-alive: timeout=9\r\n"
        b"proxy-authenticate: Basic\r\nupgrade: h2c\r\nx-theirs: yes\r\n"
        b"set-cookie: a\r\nset-cookie: b\r\n"
    )
    running.handle_with(responding(answer(b"[1]", fields=fields)))

    async def read() -> None:
        async with Caller(running.port) as caller:
            for _ in range(3):  # the first is parsed, the others may be matched
                made = await caller.ask(post())
                assert made.body == b"[1]" and made.fields["opc-request-id"] == "A/B/C"
                assert made.fields["x-theirs"] == "yes" and made.fields["set-cookie"] == "a, b"
                gone = {"connection", "x-mine", "keep-alive", "proxy-authenticate", "upgrade"}
                assert not gone & made.fields.keys()

    running.run(read())


BAD_IDS = [b"opc-request-id: \r\n", b'opc-request-id: a","status":"200\r\n', b"opc-request-id: a\\\r\n"]


@pytest.mark.parametrize("fields", [b"", b"keep-alive: timeout=9\r\n", *BAD_IDS])
def test_an_answer_without_a_plain_id_is_given_one(running: RunningBalancer, fields: bytes) -> None:
    running.handle_with(responding(answer(b"[1]", fields=fields).replace(b"opc-request-id: A/B/C\r\n", b"")))

    async def read() -> None:
        async with Caller(running.port) as caller:
            ids = set()
            for named in (b"", b"opc-request-id: MINE/x/y\r\n") * 2:
                made = await caller.ask(post(fields=named))
                assert made.body == b"[1]" and "keep-alive" not in made.fields
                ids.add(made.fields["opc-request-id"])
                assert made.fields["opc-request-id"].startswith("MINE/") == bool(named)
                assert "," not in made.fields["opc-request-id"]
            assert len(ids) == 4
            await eventually_async(
                lambda: ids <= {one["data"]["opcRequestId"] for one in running.balancer.access()},
                "in the log",
            )

    running.run(read())


@pytest.mark.parametrize("fields", [b"", b"keep-alive: timeout=9\r\n"])
def test_answers_that_begin_as_the_last_one_did(running: RunningBalancer, fields: bytes) -> None:
    """Those are not looked at field by field. Same sizes, other heads and bodies, and the other way round."""
    dice = random.Random(20261123)
    bodies = [bytes(dice.choices(b"[]0123456789\r\n", k=dice.choice((9, 10, 10, 10)))) for _ in range(100)]
    made = [
        answer(body, 200, fields + b"x-kind: %d\r\n" % dice.choice((1, 1, 1, 2))).replace(
            b"opc-request-id: A/B/C\r\n", b""
        )
        for body in bodies
    ]
    left = iter(made)

    async def handler(exchange: Exchange) -> None:
        data = next(left)
        pieces = (data[:-4], data[-4:]) if dice.random() < 0.2 else (data,)
        for piece in pieces:
            exchange.send(piece)
            await asyncio.sleep(0.003 * (len(pieces) - 1))

    async def read() -> None:
        running.handle_with(handler)
        ids = set()
        async with Caller(running.port) as caller:
            for body, sent in zip(bodies, made, strict=True):
                got = await caller.ask(post())
                assert got.body == body and b"x-kind: %b\r\n" % got.fields["x-kind"].encode() in sent
                assert "keep-alive" not in got.fields
                ids.add(got.fields["opc-request-id"])
        assert len(ids) == len(made)

    running.run(read())


def test_a_small_answer_leaves_in_one_segment(running: RunningBalancer) -> None:
    async def read() -> None:
        running.handle_with(echo)
        async with Caller(running.port) as caller:
            for size in (10, 1000, 10, 8000):
                caller.send(post(b"x" * size))
                data = await caller.reader.read(1 << 20)  # one read, as the simplest of clients does
                assert data.endswith(b"\r\n\r\n" + b"x" * size)

    running.run(read())


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body(running: RunningBalancer, status: int) -> None:
    head = b"HTTP/1.1 %d None\r\netag: x\r\n\r\n" % status
    running.handle_with(responding(head))

    async def read() -> None:
        async with Caller(running.port) as caller:
            for _ in range(3):
                made = await caller.ask(get(), "GET")
                assert made.status == status and "transfer-encoding" not in made.fields

    running.run(read())


def test_a_length_where_no_body_can_be_is_not_passed_on(running: RunningBalancer) -> None:
    """RFC 9110, 8.6; and whatever follows is nobody's answer, for the connection is not used again."""
    said = b"HTTP/1.1 103 Hints\r\ncontent-length: 3\r\n\r\nHTTP/1.1 204 None\r\ncontent-length: 3\r\n\r\n"
    origin = running.handle_with(responding(said))

    async def read() -> None:
        async with Caller(running.port) as caller:
            caller.send(get())
            for status in (103, 204):
                made = await caller.head()
                assert made.status == status and "content-length" not in made.fields
        await eventually_async(lambda: all(one.gone for one in origin.exchanges), "the connection is closed")

    running.run(read())


def test_keep_alive_of_an_http_1_0_instance_is_not_forwarded(running: RunningBalancer) -> None:
    said = b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 3\r\n\r\n[1]"
    running.handle_with(responding(said))

    async def read() -> None:
        async with Caller(running.port) as caller:
            for _ in range(4):
                assert (await caller.ask(post())).body == b"[1]"
                assert caller.received.startswith(b"HTTP/1.1 200 OK\r\n")

    running.run(read())


def test_head_is_answered_with_a_length_and_no_body(running: RunningBalancer) -> None:
    async def handler(exchange: Exchange) -> None:
        whole = answer(b"x" * 1000)
        exchange.send(whole[:-1000] if exchange.head.startswith(b"HEAD") else whole)

    async def read() -> None:
        running.handle_with(handler)
        async with Caller(running.port) as caller:
            for method in ("GET", "HEAD", "HEAD", "GET", "HEAD", "GET"):
                made = await caller.ask(get(method=method.encode()), method)
                assert made.fields["content-length"] == "1000"
                assert len(made.body) == (1000 if method == "GET" else 0)
            running.handle_with(responding(answer(b"x" * 1000)))  # an instance that does not know HEAD
            assert (await caller.ask(get(method=b"HEAD"), "HEAD")).status == 200
            running.handle_with(echo)
            assert (await caller.ask(post(b"[2]"))).body == b"[2]"

    running.run(read())


def test_interim_answers_reach_http_1_1_clients(running: RunningBalancer) -> None:
    said = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: </a>\r\n\r\n" + answer(b"[1]")

    async def read() -> None:
        running.handle_with(responding(said))
        made = await once(running.port, post())
        assert (made.interim, made.status, made.body) == ([103], 200, b"[1]")
        made = await once(running.port, post(version=b"1.0"))
        assert (made.interim, made.status, made.body) == ([], 200, b"[1]")

    running.run(read())


def test_interim_answers_are_bounded(running: RunningBalancer) -> None:
    running.handle_with(responding(b"HTTP/1.1 103 Hints\r\nlink: </a>\r\n\r\n" * 200 + answer(b"[1]")))
    made = running.run(once(running.port, post()))
    assert made.status == 502 and len(made.interim) <= 100


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("old", [True, False], ids=["instance-1.0", "instance-1.1"])
def test_a_body_that_ends_with_its_connection(running: RunningBalancer, version: bytes, old: bool) -> None:
    said = b"HTTP/1.%d 200 OK\r\n%b\r\n" % (0 if old else 1, JSON) + b"y" * 100_000
    running.handle_with(responding_and_closing(said))
    made = running.run(once(running.port, post(version=version)))
    assert made.body == b"y" * 100_000
    assert ("transfer-encoding" in made.fields) == (version == b"1.1")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_chunked_body_and_its_trailers(running: RunningBalancer, version: bytes) -> None:
    """StreamFailure is how a stream that began well says that it did not end well."""
    trailers = b"StreamFailure: {}\r\ncontent-length: 3\r\nHost: evil\r\nAuthorization: x\r\n"
    said = STREAM + chunk(b"a" * 10) + b"5;ext=1\r\nbbbbb\r\n" + b"0\r\n" + trailers + b"\r\n"
    running.handle_with(responding(said))
    made = running.run(once(running.port, post(target=b"/predictWithResponseStream", version=version)))
    assert made.body == b"a" * 10 + b"b" * 5
    if version == b"1.1":
        assert made.trailers == {"streamfailure": "{}"} and made.fields["trailer"] == "streamfailure"
    else:
        assert made.closes and not made.trailers and "trailer" not in made.fields
    assert "streamfailure" not in made.fields


# ---------------------------------------------------------------------- streams


def test_each_chunk_is_passed_on_when_it_comes(running: RunningBalancer) -> None:
    """The next one is sent when the last has arrived; the bar of 5 ms is measured by the bench."""
    arrivals: asyncio.Queue[bytes] = asyncio.Queue()

    async def handler(exchange: Exchange) -> None:
        await exchange.whole()
        exchange.send(STREAM)
        for n in range(20):
            exchange.send(chunk(b"%d" % n))
            assert await arrivals.get() == b"%d" % n
        exchange.send(b"0\r\nStreamFailure: no\r\n\r\n")

    async def read() -> int:
        running.handle_with(handler)
        async with Caller(running.port) as caller:
            caller.send(post())
            await caller.head()
            count = 0
            while piece := await caller.chunk():
                arrivals.put_nowait(piece)
                count += 1
            assert await caller.trailers() == {"streamfailure": "no"}
            return count

    assert running.run(read()) == 20


def kernel_holds() -> int:
    """Most bytes on their way in the buffers of two TCP connections, which the kernel widens by itself."""
    ways = (Path("/proc/sys/net/ipv4", name).read_text() for name in ("tcp_rmem", "tcp_wmem"))
    return 2 * sum(int(way.split()[2]) for way in ways)


def test_a_slow_reader_slows_the_instance_down(running: RunningBalancer) -> None:
    slack = 16 << 20  # bytes
    enough = kernel_holds() + 2 * slack
    produced = 0

    async def handler(exchange: Exchange) -> None:
        nonlocal produced
        exchange.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
        while not exchange.gone and produced < enough:
            if exchange.connection.transport.get_write_buffer_size() < 65536:
                exchange.send(b"x" * 65536)
                produced += 65536
            await asyncio.sleep(0)
        exchange.close()

    async def read() -> None:
        running.handle_with(handler)
        before = running.balancer.rss()
        async with Caller(running.port) as caller:
            caller.send(get())
            await never_async(lambda: produced >= enough - slack, "more than buffers hold", 1.0)
            assert running.balancer.rss() - before < slack >> 10
            size = 0
            await caller.head()
            while piece := await caller.chunk():
                size += len(piece)
            assert size == produced >= enough

    running.run(read())


def test_a_slow_reader_keeps_no_connection_to_the_instance(running: RunningBalancer) -> None:
    """The answer that is too much for it is whole, and its connection others' from then on."""
    requests, size = 600, 40_000

    async def handler(exchange: Exchange) -> None:
        exchange.send(answer(b"x" * size))

    async def read() -> None:
        running.handle_with(handler)
        before = running.balancer.total(shared_memory.UPSTREAM_OPENED)
        async with Caller(running.port) as caller:
            caller.send(get() * requests)
            for number in range(requests):
                if number % 100 == 0:
                    await asyncio.sleep(0.3)  # meanwhile all fills up
                assert (await caller.answer("GET")).body == b"x" * size
        opened = running.balancer.total(shared_memory.UPSTREAM_OPENED) - before
        assert opened <= 2, opened  # for the next request is there before the last one's is free

    running.run(read())


# ---------------------------------------------------------------------- what is no answer

GARBAGE = [
    b"\x00\x01\x02 no HTTP at all\r\n\r\n",
    b"HTTP/2 200\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
    b"HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\ncontent-length: 3, 3\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nx : y\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nx: \x00\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nx: " + b"y" * 40_000 + b"\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
]


@pytest.mark.parametrize("said", GARBAGE, ids=[repr(said[:60]) for said in GARBAGE])
def test_garbage_is_502_and_closes_its_upstream_connection(running: RunningBalancer, said: bytes) -> None:
    origin = running.handle_with(responding(said))

    async def read() -> None:
        async with Caller(running.port) as caller:
            made = await caller.ask(post())
            assert made.status == 502 and b"BadGateway" in made.body
            spoilt = origin.exchanges[0].connection
            running.handle_with(echo)
            assert (await caller.ask(post(b"[3]"))).body == b"[3]"  # the client keeps its own
            assert origin.exchanges[0].connection is not spoilt
            await eventually_async(lambda: spoilt.lost, "the end of that connection")

    running.run(read())


TRUNCATED = [
    answer(b"x" * 100)[:-40],
    STREAM + chunk(b"a" * 10),
    STREAM + chunk(b"a" * 10) + b"a\r\nbbb",
    STREAM + chunk(b"a" * 10) + b"0\r\n",
]


@pytest.mark.parametrize("said", TRUNCATED, ids=["length", "chunk", "in-chunk", "trailers"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_truncated_body_is_never_a_whole_one(
    running: RunningBalancer, said: bytes, version: bytes, how: str
) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.whole()
        exchange.send(said)
        await asyncio.sleep(0.02)
        exchange.close() if how == "close" else exchange.reset()

    running.handle_with(handler)
    with pytest.raises(Broken):
        running.run(once(running.port, post(version=version)))


BAD_CHUNKS = [
    b"0x5\r\nhello\r\n",
    b"5_\r\nhello\r\n",
    b"+5\r\nhello\r\n",
    b" 5\r\nhello\r\n",
    b"5\nhello\r\n",
]
BAD_CHUNKS += [
    b"\r\nhello\r\n",
    b"fffffffffffffffff\r\nx",
    b"5\r\nhello!\r\n",
    b"5;" + b"e" * 5000 + b"\r\nhello\r\n",
]


@pytest.mark.parametrize("bad", BAD_CHUNKS, ids=[repr(bad[:20]) for bad in BAD_CHUNKS])
def test_an_ambiguous_chunk_ends_the_answer(running: RunningBalancer, bad: bytes) -> None:
    running.handle_with(responding(STREAM + chunk(b"good") + bad + b"0\r\n\r\n"))
    with pytest.raises(Broken) as broken:
        running.run(once(running.port, post()))
    assert b"hello\r\n" not in broken.value.received


def gone_from(origin: Origin) -> Callable[[], bool]:
    return lambda: all(exchange.gone for exchange in origin.exchanges)


POISON = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\npoisoned"


def poisoning(said: bytes, later: float = 0.0) -> Handler:
    async def handler(exchange: Exchange) -> None:
        await exchange.whole()
        if later:
            exchange.send(said)
            await asyncio.sleep(later)
            exchange.send(POISON)
        else:
            exchange.send(said + POISON)

    return handler


@pytest.mark.parametrize("later", [0.0, 0.02], ids=["at-once", "while-idle"])
@pytest.mark.parametrize(
    "said",
    [
        answer(b"[1]"),
        STREAM + chunk(b"[1]") + b"0\r\n\r\n",
        b"HTTP/1.1 204 None\r\nopc-request-id: x\r\n\r\n",
    ],
    ids=["length", "chunked", "empty"],
)
def test_extra_bytes_are_never_taken_for_an_answer(
    running: RunningBalancer, said: bytes, later: float
) -> None:
    """Response-queue poisoning: what follows an answer must not become the next one."""

    async def read() -> None:
        async with Caller(running.port) as victim:
            for _ in range(5):
                origin = running.handle_with(poisoning(said, later))
                assert (await once(running.port, post())).body in (b"[1]", b"")
                if later:
                    await eventually_async(gone_from(origin), "the end of the connection")
                running.handle_with(echo)
                assert (await victim.ask(post(b"[5]"))).body == b"[5]"

    running.run(read())


def test_an_idle_connection_that_the_instance_closes_is_not_used(running: RunningBalancer) -> None:
    """Closed while nothing was under way: no request may be lost to it."""

    async def handler(exchange: Exchange) -> None:
        exchange.send(answer(await exchange.whole()))
        asyncio.get_running_loop().call_later(0.005, exchange.close)

    async def read() -> None:
        running.handle_with(handler)
        async with Caller(running.port) as caller:
            for _ in range(20):
                assert (await caller.ask(post(b"[1]"))).body == b"[1]"
                await asyncio.sleep(0.03)

    running.run(read())


def test_no_answer_in_time_is_504_and_late_ones_are_dropped(running: RunningBalancer) -> None:
    async def handler(exchange: Exchange) -> None:
        await asyncio.sleep(2.7)
        exchange.send(answer(b"late"))

    async def read() -> None:
        origin = running.handle_with(handler)
        async with Caller(running.port) as caller:
            assert (await caller.ask(post())).status == 504
            await eventually_async(lambda: origin.exchanges[0].gone, "the end")
            running.handle_with(echo)
            assert (await caller.ask(post(b"[9]"))).body == b"[9]"

    running.run(read())
