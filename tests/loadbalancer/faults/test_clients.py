"""Clients that do their worst to a load balancer: what the others see, and what is left of it."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.support.http1_corpus import cases
from tests.support.loadbalancer.balancer_process import Balancer
from tests.support.loadbalancer.http_clients import Broken, Caller, Load, Outcome, get, once, post
from tests.support.loadbalancer.running_balancer import balanced_pool, run_scenario
from tests.support.loadbalancer.scripted_instance import Exchange, Handler, answer
from twofold.loadbalancer.proxy.connection_limit import QUIET_S

pytestmark = pytest.mark.alone

HALF = 400.0  # requests a second: half of what four instances with two workers do at 10 ms
NOTICED = 0.5  # seconds; 0.02 where nothing else runs, and whole timeouts if one client could hold up another


def unharmed(outcome: Outcome) -> None:
    """All were answered, and soon. The machine may be busy with other things for a moment."""
    assert not outcome.bad()
    assert outcome.quantile(0.95) <= NOTICED


async def flood(port: int, data: list[bytes], rate: float, seconds: float) -> int:
    """Send each of `data` in turn on a connection of its own; how many of them got a 2xx."""
    good = 0

    async def one(bad: bytes) -> None:
        nonlocal good
        try:
            async with Caller(port, 3.0) as caller:
                caller.send(bad)
                caller.writer.write_eof()
                good += (await caller.answer()).status < 300
        except (OSError, Broken, TimeoutError, AssertionError):
            pass

    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            group.create_task(one(data[number % len(data)]))
            await asyncio.sleep(1 / rate)
    return good


def test_10_malformed_requests_by_the_hundred(tmp_path: Path) -> None:
    async def scenario(seconds: float = 2.0) -> None:
        bad = [case.data for case in cases("invalid") if len(case.answers) == 1 and case.data]
        async with balanced_pool(tmp_path) as pool:
            await flood(pool.lb.port, bad, 300.0, 0.5)
            before = pool.lb.rss()
            async with Load(pool.lb.port, 100.0).going(seconds) as load:
                good = await flood(pool.lb.port, bad, 300.0, seconds - 0.2)
            assert good == 0
            unharmed(load.outcome)
            assert pool.lb.rss() - before <= 8 << 10
            assert len(pool.lb.printed().splitlines()) <= 30
            await pool.lb.settled()

    run_scenario(scenario())


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))


async def keep_asking(caller: Caller, seconds: float, statuses: set[int]) -> None:
    until = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < until:
        statuses.add((await caller.ask(post())).status)
        await asyncio.sleep(0.1)


def test_12_no_descriptor_is_left(tmp_path: Path) -> None:
    """Connected clients go on, nothing spins, and it is over as soon as the others have gone."""

    async def scenario() -> None:
        async with balanced_pool(tmp_path, limit=few_descriptors) as pool, AsyncExitStack() as stack:
            lb = pool.lb
            old = [await stack.enter_async_context(Caller(lb.port)) for _ in range(20)]
            for caller in old:
                assert (await caller.ask(post())).status == 200
            statuses = set[int]()
            asking = [asyncio.ensure_future(keep_asking(caller, 2.0, statuses)) for caller in old]
            connection_limit = await asyncio.gather(
                *(Caller(lb.port).__aenter__() for _ in range(400)), return_exceptions=True
            )
            cpu = lb.cpu()
            await asyncio.gather(*asking)
            assert statuses == {200}
            assert lb.cpu() - cpu <= 0.2 * 2.0 + 0.1
            for one in connection_limit:
                if isinstance(one, Caller):
                    one.writer.transport.abort()
            gone = asyncio.get_running_loop().time()
            assert (await once(lb.port, post(), timeout=1.0)).status == 200
            assert asyncio.get_running_loop().time() - gone <= 1.0
            assert not any(lb.ejected(origin.url) for origin in pool.origins)
            await stack.aclose()
            await lb.settled()

    run_scenario(scenario())


def test_12_idle_clients_make_room_for_new_ones(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with balanced_pool(tmp_path, limit=few_descriptors) as pool, AsyncExitStack() as stack:
            for _ in range(300):
                await stack.enter_async_context(Caller(pool.lb.port))
            await asyncio.sleep(QUIET_S)
            for _ in range(20):
                assert (await once(pool.lb.port, post(), timeout=2.0)).status == 200
            await stack.aclose()
            await pool.lb.settled()

    run_scenario(scenario())


async def slow_head(port: int) -> int:
    """A byte now and then; the status that it gets."""
    async with Caller(port) as caller:
        answered = asyncio.ensure_future(caller.answer())
        for byte in post():
            if (await asyncio.wait({answered}, timeout=0.3))[0]:
                break
            caller.send(bytes([byte]))
        return (await answered).status


async def slow_body(port: int, size: int) -> int:
    async with Caller(port) as caller:
        return (await caller.ask(post(b"z" * size)[: 300 - size])).status


async def slow_reader(port: int) -> int:
    """It asks, and reads only when its time is over: 0 if most of the answer is lost."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", port))
        await loop.sock_sendall(client, get(b"/large"))
        await asyncio.sleep(4.0)
        received = 0
        with suppress(ConnectionError):
            while piece := await loop.sock_recv(client, 65536):
                received += len(piece)
        return int(received > LARGE // 2)


LARGE = 6_000_000  # more than the kernel takes
SLOW = {"head": 400, "body": 400, "upload": 170, "reader": 30}


def test_13_slow_heads_bodies_and_readers(tmp_path: Path) -> None:
    """A thousand of them, and the service answers as ever; each is closed when its time is over."""

    async def scenario() -> None:
        patience = ("--head-timeout", "1", "--body-timeout", "1")
        async with balanced_pool(tmp_path, *patience) as pool:
            port, before = pool.lb.port, pool.lb.rss()
            for origin in pool.origins:
                origin.handler = either(origin.handler)
            kinds: dict[str, Callable[[int], Coroutine[Any, Any, int]]] = {
                "head": slow_head,
                "body": partial(slow_body, size=1000),
                "upload": partial(slow_body, size=200_000),
                "reader": slow_reader,
            }
            slow = {
                kind: [asyncio.ensure_future(kinds[kind](port)) for _ in range(many)]
                for kind, many in SLOW.items()
            }
            await asyncio.sleep(0.7)  # a thousand callers cost this process something, too
            async with Load(port, 20.0).going(3.3) as load:
                await asyncio.sleep(1.3)
                grown = pool.lb.rss() - before
            made = {kind: set(await asyncio.gather(*tasks)) for kind, tasks in slow.items()}
            assert made == {"head": {408}, "body": {408}, "upload": {408}, "reader": {0}}
            unharmed(load.outcome)
            assert grown <= 64 << 10, grown
            await pool.lb.settled()

    run_scenario(scenario())


def test_13_a_client_pipelines_bad_requests_and_never_reads(tmp_path: Path) -> None:
    """Pipelined refusals fill its connection; what it asks for behind them is not fetched for it."""
    sent = 0

    async def huge(exchange: Exchange) -> None:
        nonlocal sent
        piece = b"z" * 65536
        exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (1 << 30))
        while not exchange.gone and sent < 400 << 20:
            if exchange.connection.transport.get_write_buffer_size() < 1 << 20:
                exchange.send(piece)
                sent += len(piece)
            await asyncio.sleep(0)

    async def scenario() -> None:
        faulty = b"POST / HTTP/1.1\r\nhost: a\r\n\r\n"
        async with balanced_pool(tmp_path) as pool:
            for origin in pool.origins:
                origin.handler = huge
            before = pool.lb.rss()
            with ExitStack() as clients:
                for refused in range(0, 8000, 500):
                    client = clients.enter_context(socket.socket())
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    client.connect(("127.0.0.1", pool.lb.port))
                    client.setblocking(False)
                    with suppress(BlockingIOError):
                        client.send(faulty * refused + get(b"/huge"))
                await asyncio.sleep(1.5)
                assert pool.lb.rss() - before <= 48 << 10
            await pool.lb.settled(10)

    run_scenario(scenario())


def test_13_a_client_pipelines_faster_than_it_is_answered(tmp_path: Path) -> None:
    """What it asks for waits in the kernel, and not here, however many answers it takes."""
    request = post(b"[1]")

    async def handler(exchange: Exchange) -> None:
        await asyncio.sleep(0.002)
        exchange.send(answer(await exchange.whole()))

    async def scenario() -> None:
        async with balanced_pool(tmp_path) as pool:
            for origin in pool.origins:
                origin.handler = handler
            before = pool.lb.rss()
            async with Caller(pool.lb.port) as caller:
                caller.send(request * ((32 << 20) // len(request)))
                for _ in range(400):
                    assert (await caller.answer()).body == b"[1]"
                grown = pool.lb.rss() - before
            assert grown <= 4 << 10, grown
            await pool.lb.settled(10)

    run_scenario(scenario())


def test_13_clients_flood_with_bad_requests_and_never_read(tmp_path: Path) -> None:
    """A refusal is ten times as long as what it refuses, and made at once. Others go in between."""
    waits: list[float] = []

    async def idle(lb: Balancer) -> bool:
        before = lb.cpu()
        await asyncio.sleep(0.2)
        return lb.cpu() - before <= 0.05

    async def scenario() -> None:
        faulty = b"POST / HTTP/1.1\r\nhost: a\r\n\r\n" * 20000
        async with balanced_pool(tmp_path) as pool:
            before = pool.lb.rss()
            with ExitStack() as clients:
                for _ in range(20):
                    client = clients.enter_context(socket.socket())
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    client.connect(("127.0.0.1", pool.lb.port))
                    client.setblocking(False)
                    with suppress(BlockingIOError):
                        client.send(faulty)
                async with Caller(pool.lb.port) as other, asyncio.timeout(20):
                    while not await idle(pool.lb):
                        start = monotonic()
                        assert (await other.ask(post())).status == 200
                        waits.append(monotonic() - start)
                grown = pool.lb.rss() - before
                # Of each client HIGH_WATER of answers and a read of 256 KiB are held, which is 8 MB for all,
                # and the first requests of a proxy leave some. All the answers would be 120 MB.
                assert grown <= 16 << 10
                assert max(waits) < 0.5, waits
            await pool.lb.settled(10)

    run_scenario(scenario())


def either(usual: Handler) -> Handler:
    large = answer(b"x" * LARGE)

    async def handler(exchange: Exchange) -> None:
        if exchange.target == "/large":
            exchange.send(large)
        else:
            await usual(exchange)

    return handler


def test_13_memory_of_a_closed_connection_is_freed_at_once(tmp_path: Path) -> None:
    """The collector is rare in a proxy: what one holds of many that have left must not wait for it."""

    async def never_responding(exchange: Exchange) -> None:
        await exchange.changed()

    async def scenario() -> None:
        async with balanced_pool(tmp_path) as pool:
            for origin in pool.origins:
                origin.handler = never_responding
            grown = []
            for _ in range(2):
                before = pool.lb.rss()
                for _ in range(200):
                    async with Caller(pool.lb.port) as caller:
                        caller.send(get() + post(b"x" * 60_000)[:-1])
                        await asyncio.sleep(0.005)
                await pool.lb.settled(10)
                grown.append(pool.lb.rss() - before)
            assert grown[1] <= 4 << 10, grown  # of 12 MB that were held

    run_scenario(scenario())
