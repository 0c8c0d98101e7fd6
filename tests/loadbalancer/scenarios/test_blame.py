"""Whose fault it is that a request takes long: its client's, the bandwidth's, or its instance's.

Only what is an instance's own may make it look slow, or cost it its place in the pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.support.eventually import eventually_async, never_async
from tests.support.loadbalancer.balancer_process import Balancer, balance
from tests.support.loadbalancer.http_clients import Caller, once, post
from tests.support.loadbalancer.running_balancer import run_scenario
from tests.support.loadbalancer.scripted_instance import (
    STREAM,
    Exchange,
    Handler,
    Origin,
    answer,
    chunk,
    echo,
    responding,
)
from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.config import TimeoutSettings
from twofold.loadbalancer.proxy import timeouts

BODY = b"u" * 100_000  # more than is gathered
LAST = b"0\r\n\r\n"
BLAME = (shared_memory.TIMEOUTS, shared_memory.BROKEN, shared_memory.FIVEXX, shared_memory.EJECTIONS)
OWN_TIME = 500_000  # microseconds: more than an instance that answers at once can need, even here


class OneInstance:
    """A load balancer before one instance."""

    def __init__(self, lb: Balancer, origin: Origin) -> None:
        self.lb = lb
        self.url = origin.url

    def blamed(self) -> list[int]:
        return [self.lb.cell(self.url, word) for word in BLAME]

    async def blameless(self) -> None:
        """It has been found neither at fault nor slow."""
        await self.lb.settled()
        await never_async(lambda: any(self.blamed()), "blame", 0.1)  # its figures are shown every 40 ms
        assert self.lb.cell(self.url, shared_memory.LATENCY_SUM_US) < OWN_TIME


@asynccontextmanager
async def one_instance(handler: Handler, folder: Path, *options: str) -> AsyncIterator[OneInstance]:
    origin = Origin(handler)
    await origin.start()
    try:
        async with balance(folder, *options, instances=[origin.url]) as lb:
            yield OneInstance(lb, origin)
    finally:
        await origin.stop()


async def duplex(exchange: Exchange) -> None:
    """Answers while the body is still coming."""
    exchange.send(STREAM)
    exchange.send(chunk(b"%d" % len(await exchange.whole())) + LAST)


async def pour(exchange: Exchange) -> None:
    """More than the kernel takes, of no length that is known before."""
    exchange.send(STREAM + 200 * chunk(BODY) + LAST)


async def never_read(exchange: Exchange) -> None:
    exchange.connection.transport.pause_reading()
    await exchange.abandoned()


def test_clients_that_stop_within_their_bodies(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with one_instance(echo, tmp_path, "--body-timeout", "0.5") as one:
            async with AsyncExitStack() as stack:
                callers = [await stack.enter_async_context(Caller(one.lb.port)) for _ in range(4)]
                for caller in callers:
                    caller.send(post(BODY)[:-1000])
                assert [(await caller.answer()).status for caller in callers] == [408] * 4
            await one.blameless()
            assert (await once(one.lb.port, post(BODY))).body == BODY

    run_scenario(scenario())


def test_a_body_with_pauses_longer_than_the_time_of_an_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        options = ("--predict-timeout", "1", "--body-timeout", "5")
        async with one_instance(echo, tmp_path, *options) as one:
            async with Caller(one.lb.port) as caller:
                data = post(BODY)
                for part in (data[:50_000], data[50_000:90_000]):
                    caller.send(part)
                    await asyncio.sleep(2.1)
                assert (await caller.ask(data[90_000:])).body == BODY
            await one.blameless()

    run_scenario(scenario())


def test_an_early_answer_to_a_body_with_a_pause(tmp_path: Path) -> None:
    async def scenario() -> None:
        options = ("--predict-timeout", "1", "--body-timeout", "5")
        async with one_instance(duplex, tmp_path, *options) as one:
            async with Caller(one.lb.port) as caller:
                caller.send(post(BODY)[:-1000])
                assert (await caller.head()).status == 200
                await asyncio.sleep(2.1)
                caller.send(BODY[-1000:])
                assert await caller.chunk() == b"%d" % len(BODY)
            await one.blameless()

    run_scenario(scenario())


def test_bodies_that_wait_for_bandwidth_longer_than_both_limits(tmp_path: Path) -> None:
    """Twelve flows share it, so that each piece, the last one too, waits 0.4 s for those of the others."""

    async def scenario() -> None:
        options = ("--bandwidth-mbps", "1", "--delay-budget", "60", "--predict-timeout", "0.3")
        async with one_instance(responding(answer()), tmp_path, *options, "--body-timeout", "0.3") as one:
            flows = [once(one.lb.port, post(BODY[: 50_000 + 300 * n]), timeout=20.0) for n in range(12)]
            assert [one.status for one in await asyncio.gather(*flows)] == [200] * 12
            await one.blameless()

    run_scenario(scenario())


def test_a_client_that_reads_a_stream_slowly(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with one_instance(pour, tmp_path) as one:
            async with Caller(one.lb.port) as caller:
                caller.send(post())
                await caller.head()
                await asyncio.sleep(1.5)
                read = 0
                while piece := await caller.chunk():
                    read += len(piece)
                assert read == 200 * len(BODY)
            await one.blameless()

    run_scenario(scenario())


def test_an_instance_that_stops_reading_a_body_is_to_blame(tmp_path: Path) -> None:
    """The client would go on at once; its own time for the body does not run meanwhile."""

    async def scenario() -> None:
        options = ("--predict-timeout", "1.5", "--body-timeout", "0.5", "--max-body-mb", "50")
        async with one_instance(never_read, tmp_path, *options) as one:
            async with Caller(one.lb.port) as caller:
                caller.send(post(b"u" * 40_000_000))
                assert (await caller.answer()).status == 504
            await one.lb.settled()
            await eventually_async(lambda: one.blamed() == [1, 0, 0, 0], one.blamed)

    run_scenario(scenario())


def test_connections_are_checked_rarely_unless_a_timeout_is_short() -> None:
    assert timeouts.pause_s(TimeoutSettings()) == 1.0
    assert timeouts.pause_s(TimeoutSettings(predict_timeout=0.5)) == 0.05
    assert timeouts.pause_s(TimeoutSettings(head_timeout=2.0, idle_timeout=30.0)) == 0.2
