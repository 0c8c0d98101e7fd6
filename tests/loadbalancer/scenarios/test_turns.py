"""Turns for bandwidth through the real load balancer: how an answer arrives must not decide what it gets."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.support.loadbalancer.balancer_process import balance
from tests.support.loadbalancer.http_clients import Caller, once, post
from tests.support.loadbalancer.running_balancer import run_scenario
from tests.support.loadbalancer.scripted_instance import Exchange, Origin, answer, responding_after
from twofold.loadbalancer import shared_memory

pytestmark = pytest.mark.alone

BODY = b"x" * 2500


async def as_asked(exchange: Exchange) -> None:
    """Whole, or head and body apart, as many instances of others send it."""
    await exchange.whole()
    data = answer(BODY)
    head = data.index(b"\r\n\r\n") + 4
    if exchange.target == "/apart":
        exchange.send(data[:head])
        await asyncio.sleep(0.001)
        exchange.send(data[head : head + 1000])
        await asyncio.sleep(0.001)
        exchange.send(data[head + 1000 :])
    else:
        exchange.send(data)


def test_a_small_answer_in_pieces_waits_no_longer_than_a_whole_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        origin = await Origin(as_asked, workers=16).start()
        counts: Counter[bytes] = Counter()

        async def call(port: int, target: bytes) -> None:
            async with Caller(port) as caller:
                while True:
                    made = await caller.ask(post(BODY, target=target))
                    assert made.status == 200 and made.body == BODY
                    counts[target] += 1

        try:
            async with balance(tmp_path, "--bandwidth-mbps", "5", instances=[origin.url]) as lb:
                tasks = [asyncio.create_task(call(lb.port, target)) for target in (b"/apart", b"/whole") * 4]
                await asyncio.sleep(1)
                counts.clear()
                await asyncio.sleep(3)
                for task in tasks:
                    task.cancel()
                done = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(isinstance(one, asyncio.CancelledError) for one in done), done
        finally:
            await origin.stop()
        assert counts[b"/whole"] > 50
        assert counts[b"/apart"] >= 0.85 * counts[b"/whole"], counts

    run_scenario(scenario())


def test_a_request_that_waited_for_bandwidth_may_wait_for_an_instance(tmp_path: Path) -> None:
    """The last ones are held back for 2 s, and then wait for one: for less than --queue-wait."""
    options = ("--bandwidth-mbps", "1", "--delay-budget", "10", "--queue-wait", "1.5")

    async def scenario() -> None:
        origin = await Origin(responding_after(0.08), workers=1).start()
        try:
            async with balance(tmp_path, *options, instances=[origin.url]) as lb:
                answers = await asyncio.gather(
                    *(once(lb.port, post(b"x" * 8000), timeout=20) for _ in range(40))
                )
                assert [one.status for one in answers] == [200] * 40
                requests, total_us = (
                    lb.cell(origin.url, word)
                    for word in (shared_memory.REQUESTS, shared_memory.LATENCY_SUM_US)
                )
                assert total_us / requests < 500_000  # the instance is not charged for the wait
        finally:
            await origin.stop()

    run_scenario(scenario())
