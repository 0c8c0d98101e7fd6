"""Requests through the real load balancer: framing, fields, connections, bodies, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator

import pytest

from tests.support.eventually import eventually_async
from tests.support.loadbalancer.http_clients import Broken, Caller, get, once, post
from tests.support.loadbalancer.running_balancer import RunningBalancer
from tests.support.loadbalancer.scripted_instance import Exchange, answer, echo, never_responding, responding
from twofold.loadbalancer import shared_memory

BIG = 400_000  # bytes of a body that flows, rather than being gathered


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBalancer]:
    options = ("--body-timeout", "0.6", "--head-timeout", "0.6", "--trusted-proxies", "10.1.2.3")
    made = RunningBalancer(tmp_path_factory.mktemp("proxying"), *options)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def settled(running: RunningBalancer) -> Iterator[None]:
    """After every test nothing is left in hand, and the next one begins with a good instance."""
    yield
    running.handle_with(echo)
    running.run(running.balancer.settled())


# ---------------------------------------------------------------------- fields


def test_a_request_is_written_anew(running: RunningBalancer) -> None:
    origin = running.handle_with(echo)
    fields = (
        b"connection: X-Mine, Host, Content-Length, authorization, keep-alive\r\nX-Mine: secret\r\n"
        b"keep-alive: timeout=5\r\nproxy-connection: keep-alive\r\nproxy-authorization: Basic x\r\n"
        b"te: gzip, trailers\r\nupgrade: websocket\r\nauthorization: Bearer t\r\nX-Theirs: yes\r\n"
        b"x-forwarded-for: 6.6.6.6\r\nx-forwarded-proto: https\r\nx-real-ip: 6.6.6.6\r\nx-twofold-x: 1\r\n"
    )
    assert running.run(once(running.port, post(b"[1, 2]", fields, b"/predict?a=%20b"))).body == b"[1, 2]"
    (asked,) = origin.exchanges
    assert asked.head.startswith(b"POST /predict?a=%20b HTTP/1.1\r\n")
    assert asked.field("host") == "model" and asked.field("authorization") == "Bearer t"
    assert asked.field("content-length") == "6" and asked.field("x-theirs") == "yes"
    assert asked.field("te") == "trailers" and asked.field("connection") == "te"
    for gone in ("x-mine", "keep-alive", "proxy-connection", "proxy-authorization", "upgrade", "x-real-ip"):
        assert asked.field(gone) is None, gone
    assert asked.field("x-twofold-x") is None and asked.field("transfer-encoding") is None
    assert asked.field("x-forwarded-for") == "127.0.0.1" and asked.field("x-forwarded-proto") == "http"
    assert asked.field("x-forwarded-host") == "model"
    assert re.fullmatch(r"1\.1 twofold-[0-9a-f]{12}", asked.field("via") or "")


def test_a_looping_request_is_refused(running: RunningBalancer) -> None:
    origin = running.handle_with(echo)

    async def round_again() -> int:
        await once(running.port, post())
        via = (origin.exchanges[-1].field("via") or "").encode()
        return (await once(running.port, post(fields=b"via: %b\r\n" % via))).status

    assert running.run(round_again()) in (400, 502, 508)
    assert len(origin.exchanges) == 1


def test_a_request_id_is_kept_as_the_first_group_or_made(running: RunningBalancer) -> None:
    plain = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    origin = running.handle_with(responding(plain))
    kept = running.run(once(running.port, post(fields=b"opc-request-id: MINE\r\n")))
    made = [running.run(once(running.port, post())).fields["opc-request-id"] for _ in range(2)]
    assert kept.fields["opc-request-id"].split("/")[0] == "MINE"
    assert origin.exchanges[0].field("opc-request-id") == "MINE"
    assert made[0] != made[1] and all(re.fullmatch(r"[0-9A-F]{32}(/[0-9A-F]{32}){2}", one) for one in made)


@pytest.mark.parametrize(
    "target, asked_for",
    [
        (b"/a//b/../c%2f%00?q=1&r=a%20b", b"/a//b/../c%2f%00?q=1&r=a%20b"),
        (b"http://model/x?y", b"/x?y"),
        (b"http://model", b"/"),
        (b"http://model?y", b"/?y"),
    ],
)
def test_a_target_goes_on_as_it_came(running: RunningBalancer, target: bytes, asked_for: bytes) -> None:
    origin = running.handle_with(echo)
    if b"%00" in target:  # what a path may not hold is refused, not mended
        target, asked_for = target.replace(b"%00", b""), asked_for.replace(b"%00", b"")
    assert running.run(once(running.port, get(target), "GET")).status == 200
    assert origin.exchanges[0].head.split(b" ")[1] == asked_for


# ---------------------------------------------------------------------- framing

LENGTHS = [
    (b"content-length: 3\r\ntransfer-encoding: chunked\r\n", {400}),
    (b"content-length: 3\r\ncontent-length: 3\r\n", {400}),
    (b"content-length: 3, 3\r\n", {400}),
    (b"content-length: +3\r\n", {400}),
    (b"content-length: 3_0\r\n", {400}),
    (b"content-length: 0x3\r\n", {400}),
    (b"content-length: -3\r\n", {400}),
    (b"content-length: 3 3\r\n", {400}),
    (b"content-length: \xb2\r\n", {400}),
    (b"content-length: \r\n", {400}),
    (b"content-length: 9999999999999999999\r\n", {400, 413}),
    (b"transfer-encoding: gzip\r\n", {400, 501}),
    (b"transfer-encoding: chunked, gzip\r\n", {400, 501}),
    (b"transfer-encoding: chunked, chunked\r\n", {400}),
    (b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", {400}),
    (b"transfer-encoding: xchunked\r\n", {400, 501}),
    (b"transfer-encoding : chunked\r\n", {400}),
    (b"transfer-encoding: chunked\r\n", {411}),
    (b"", {411}),
    (b"content-length: 99999999\r\n", {413}),
]


@pytest.mark.parametrize("fields, statuses", LENGTHS, ids=[repr(fields) for fields, _ in LENGTHS])
def test_a_body_of_ambiguous_length_reaches_no_instance(
    running: RunningBalancer, fields: bytes, statuses: set[int]
) -> None:
    origin = running.handle_with(echo)

    async def smuggle() -> None:
        async with Caller(running.port) as caller:
            behind = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: model\r\n\r\n"
            made = await caller.ask(b"POST /predict HTTP/1.1\r\nhost: model\r\n%b\r\n%b" % (fields, behind))
            assert made.status in statuses and json.loads(made.body).keys() == {"code", "message"}
            # Without a body there is nothing to misread.
            assert made.closes == bool(fields) and (not fields or await caller.at_end())

    running.run(smuggle())
    assert not any(b"smuggled" in exchange.head for exchange in origin.exchanges if fields)


REFUSED = [
    (b"GET / HTTP/1.1\r\n\r\n", {400}),
    (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", {400}),
    (b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n", {400}),
    (b"GET / HTTP/1.1\r\nhost: a\r\nx : y\r\n\r\n", {400}),
    (b"GET / HTTP/1.1\r\nhost: a\r\n: y\r\n\r\n", {400}),
    (b"GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n z\r\n\r\n", {400}),
    (b"GET / HTTP/1.1\r\nhost: a\r\nx: \x00\r\n\r\n", {400}),
    (b"GET / HTTP/1.1\r\nhost: a\r\nx: a\rb\r\n\r\n", {400}),
    (b"GET / HTTP/1.1\nhost: a\n\n", {400}),
    (b"GET /a b HTTP/1.1\r\nhost: a\r\n\r\n", {400}),
    (b"GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n", {400}),
    (b"GET http://u:p@a/ HTTP/1.1\r\nhost: a\r\n\r\n", {400}),
    (b"GET * HTTP/1.1\r\nhost: a\r\n\r\n", {400}),
    (b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", {400, 405, 501}),
    (b"TRACE / HTTP/1.1\r\nhost: a\r\n\r\n", {405, 501}),
    (b"GET /\r\n\r\n", {400, 505}),
    (b"GET / HTTP/1.2\r\nhost: a\r\n\r\n", {505}),
    (b"GET / HTTP/2.0\r\nhost: a\r\n\r\n", {505}),
    (b"G\xc3T / HTTP/1.1\r\nhost: a\r\n\r\n", {400}),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400}),
    (b"GET / HTTP/1.1\r\nhost: a\r\nexpect: wonders\r\n\r\n", {417}),
    (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 40000 + b"\r\n\r\n", {431}),
    (b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 200 + b"\r\n", {431}),
]


@pytest.mark.parametrize("data, statuses", REFUSED, ids=[repr(data[:50]) for data, _ in REFUSED])
def test_invalid_requests_reach_no_instance(
    running: RunningBalancer, data: bytes, statuses: set[int]
) -> None:
    origin = running.handle_with(echo)

    async def refused() -> None:
        async with Caller(running.port) as caller:
            made = await caller.ask(data)
            assert made.status in statuses and made.fields["opc-request-id"]
            assert json.loads(made.body).keys() == {"code", "message"}
            assert made.closes and await caller.at_end()

    running.run(refused())
    assert not origin.exchanges


# ---------------------------------------------------------------------- connections


def test_pipelined_requests_are_answered_in_order_and_asked_one_by_one(running: RunningBalancer) -> None:
    origin = running.handle_with(echo)

    async def pipelined() -> None:
        async with Caller(running.port) as caller:
            sizes = [1, 5, 60_000, 2, BIG, 3]
            bodies = [bytes([97 + n]) * size for n, size in enumerate(sizes)]
            caller.send(b"".join(post(body) for body in bodies))
            assert [(await caller.answer()).body for _ in bodies] == bodies

    running.run(pipelined())
    assert len(origin.exchanges) == 6 and origin.most_inside == 1


def test_both_sides_may_close(running: RunningBalancer) -> None:
    async def closing() -> None:
        running.handle_with(echo)
        async with Caller(running.port) as caller:
            assert (await caller.ask(post(fields=b"connection: close\r\n"))).closes
            assert await caller.at_end()
        running.handle_with(
            responding(answer(fields=b"connection: close\r\n"))
        )  # the instance's affair, not the client's
        async with Caller(running.port) as caller:
            for _ in range(3):
                assert not (await caller.ask(post())).closes
        assert all(one.field("connection") is None for one in running.origin.exchanges)

    running.run(closing())


@pytest.mark.parametrize("fields, stays", [(b"", False), (b"connection: keep-alive\r\n", True)])
def test_a_client_of_http_1_0(running: RunningBalancer, fields: bytes, stays: bool) -> None:
    async def old() -> None:
        origin = running.handle_with(echo)
        async with Caller(running.port) as caller:
            made = await caller.ask(post(b"[1]", fields, version=b"1.0"))
            assert (made.status, made.body) == (200, b"[1]")
            assert made.fields["connection"] == ("keep-alive" if stays else "close")
            assert stays or await caller.at_end()
        assert origin.exchanges[0].head.startswith(b"POST /predict HTTP/1.1\r\n")

    running.run(old())


# ---------------------------------------------------------------------- bodies


def test_100_continue_is_sent_only_if_the_request_is_admitted(running: RunningBalancer) -> None:
    async def expecting() -> None:
        origin = running.handle_with(echo)
        async with Caller(running.port) as caller:
            head, _, body = post(b"x" * 1000, b"expect: 100-continue\r\n").partition(b"\r\n\r\n")
            caller.send(head + b"\r\n\r\n")
            assert (await caller.head()).status == 100
            made = await caller.ask(body)
            assert (made.status, len(made.body), made.interim) == (200, 1000, [])
            assert origin.exchanges[0].field("expect") is None
            made = await caller.ask(
                b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 99999999\r\n\r\n"
            )
            assert (made.status, made.interim) == (413, []) and made.closes

    running.run(expecting())


def test_a_large_body_is_streamed(running: RunningBalancer) -> None:
    """The instance has the first byte while the client still has the last one."""

    async def flowing() -> None:
        origin = running.handle_with(echo)
        async with Caller(running.port) as caller:
            data = post(b"z" * BIG)
            caller.send(data[: BIG // 2])
            await eventually_async(
                lambda: origin.exchanges and len(origin.exchanges[0].body) > BIG // 4, "the first half"
            )
            assert not origin.exchanges[0].complete
            caller.send(data[BIG // 2 :])
            assert len((await caller.answer()).body) == BIG

    running.run(flowing())


def test_an_early_answer_is_passed_on_and_read_by_the_client(running: RunningBalancer) -> None:
    """RFC 9112, 9.3 and 9.6: the client still sends, so the answer must not be lost in a reset."""

    async def hasty(exchange: Exchange) -> None:
        exchange.send(answer(b'{"enough":1}', status=413))

    async def early() -> None:
        running.handle_with(hasty)
        async with Caller(running.port) as caller:
            data = post(b"z" * BIG)
            caller.send(data[:100_000])
            made = await caller.answer()
            assert (made.status, made.body) == (413, b'{"enough":1}') and made.closes
            caller.send(data[100_000:])
            assert await caller.at_end()
        await eventually_async(lambda: not running.origin.connections, "the end of the connection")

    running.run(early())


# ---------------------------------------------------------------------- clients that leave


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_leaves_ends_the_instances_work(running: RunningBalancer, how: str) -> None:
    origin = running.handle_with(never_responding)

    async def leave() -> None:
        async with Caller(running.port) as caller:
            origin.exchanges.clear()
            caller.send(post())
            await eventually_async(lambda: len(origin.exchanges) == 1, "the request")
            if how == "close":
                caller.close()
            else:
                caller.reset()
            await eventually_async(lambda: origin.exchanges[0].gone, "the end")

    before = running.balancer.total(shared_memory.STATUS_CELL[499])
    for _ in range(10):
        running.run(leave())
    running.run(
        eventually_async(
            lambda: running.balancer.total(shared_memory.STATUS_CELL[499]) == before + 10, "499s"
        )
    )


def test_an_incomplete_body_closes_its_upstream_connection(running: RunningBalancer) -> None:
    async def half() -> None:
        origin = running.handle_with(echo)
        async with Caller(running.port) as caller:
            caller.send(post(b"z" * BIG)[: BIG // 2])
            await eventually_async(lambda: origin.exchanges and origin.exchanges[0].body, "half of it")
        await eventually_async(lambda: origin.exchanges[0].gone, "the end")
        assert not origin.exchanges[0].complete

    running.run(half())


def test_a_late_body_is_408_and_never_taken_for_a_request(running: RunningBalancer) -> None:
    async def late(size: int) -> None:
        origin = running.handle_with(echo)
        async with Caller(running.port) as caller:
            caller.send(post(b"z" * size)[: -size // 2] + b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n")
            made = await caller.answer()
            assert made.status == 408 and made.closes
            assert await caller.at_end()
        assert not any(b"smuggled" in one.head for one in origin.exchanges)

    async def both() -> None:
        await asyncio.gather(late(1000), late(BIG))

    running.run(both())


def test_a_late_head_is_408(running: RunningBalancer) -> None:
    async def late() -> None:
        async with Caller(running.port) as caller:
            caller.send(post()[:30])
            made = await caller.answer()
            assert made.status == 408 and made.closes and await caller.at_end()

    running.run(late())


def test_a_client_that_leaves_in_the_middle_gets_no_result(running: RunningBalancer) -> None:
    async def leaving() -> None:
        origin = running.handle_with(echo)
        for data in (post()[:10], post()[:-1], post(b"z" * BIG)[:-1]):
            async with Caller(running.port) as caller:
                caller.send(data)
                caller.writer.write_eof()
                with pytest.raises(Broken):
                    await caller.answer()
        await eventually_async(lambda: all(one.gone for one in origin.exchanges), "all of them")

    running.run(leaving())
