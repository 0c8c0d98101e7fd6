"""What the load balancer writes down of requests, against what its client has seen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.support.eventually import eventually_async, never_async
from tests.support.loadbalancer.balancer_process import Balancer, balance
from tests.support.loadbalancer.http_clients import Caller, get, once, post
from tests.support.loadbalancer.running_balancer import run_scenario
from tests.support.loadbalancer.scripted_instance import (
    Exchange,
    Origin,
    answer,
    echo,
    responding,
    responding_after,
)
from twofold.loadbalancer import shared_memory
from twofold.telemetry import histograms

SIZE = 20_000_000  # more than the kernel takes


@asynccontextmanager
async def behind(origin: Origin, folder: Path, *options: str) -> AsyncIterator[Balancer]:
    await origin.start()
    try:
        async with balance(folder, *options, instances=[origin.url]) as lb:
            yield lb
    finally:
        await origin.stop()


def test_bytes_and_waits_for_bandwidth_are_counted(tmp_path: Path) -> None:
    async def scenario() -> None:
        origin = Origin(responding(answer(b"z" * 150_000)))
        async with behind(origin, tmp_path, "--bandwidth-mbps", "10") as lb:
            asked = post()
            async with Caller(lb.port) as caller:
                made = [await caller.ask(asked) for _ in range(2)]
            assert [len(one.body) for one in made] == [150_000] * 2
            await eventually_async(lambda: lb.total(0) == 2, "two requests answered 200")
            assert lb.total(shared_memory.BYTES_IN) == 2 * len(asked)
            assert 300_000 < lb.total(shared_memory.BYTES_OUT) < 301_500
            # 65,536 bytes are there from the start; the rest takes 0.8 us a byte.
            assert 150_000 <= lb.total(shared_memory.THROTTLE + histograms.SUM) <= 10_000_000
            assert lb.total(shared_memory.QUEUE + histograms.SUM) == 0

    run_scenario(scenario())


def test_the_next_request_of_a_pipeline_finds_the_credit_of_the_last_one(tmp_path: Path) -> None:
    """An exchange gives its credit back before its client goes on: nothing of a pipeline waits."""

    async def scenario() -> None:
        async with behind(Origin(echo), tmp_path, "--credits", "1") as lb, Caller(lb.port) as caller:
            await caller.ask(post())
            caller.send(post() * 10)
            for _ in range(10):
                assert (await caller.answer()).status == 200
            await eventually_async(lambda: lb.total(0) == 11, "the tick goes on")
            assert sum(lb.total(shared_memory.QUEUE + bucket) for bucket in range(histograms.BUCKETS)) == 0
            assert lb.total(shared_memory.QUEUE + histograms.SUM) == 0
            assert "bug" not in lb.printed()

    run_scenario(scenario())


def test_model_latency_is_recorded_for_every_kind_of_answer(tmp_path: Path) -> None:
    """The first answer of a connection, one in pieces, one that waits for bandwidth, and the usual one."""

    async def handler(exchange: Exchange) -> None:
        await exchange.whole()
        await asyncio.sleep(0.02)
        data = answer(b"z" * (150_000 if exchange.target == "/large" else 500))
        for piece in (data[:200], data[200:]) if exchange.target == "/pieces" else (data,):
            exchange.send(piece)
            await asyncio.sleep(0.003)

    async def scenario() -> None:
        async with behind(Origin(handler), tmp_path, "--bandwidth-mbps", "10") as lb:
            async with Caller(lb.port) as caller:
                for target in (b"/first", b"/usual", b"/pieces", b"/large", b"/waits", b"/usual"):
                    assert (await caller.ask(post(target=target))).status == 200
            await eventually_async(lambda: len(lb.access()) == 6, "six lines")
            spent = [line["data"]["modelLatency"] for line in lb.access()]
            assert all(20 <= one <= 5000 for one in spent), spent  # milliseconds
            assert lb.total(shared_memory.UPSTREAM + histograms.SUM) >= 120_000

    run_scenario(scenario())


def test_a_large_answer_after_a_delayed_one_is_read_no_faster_than_it_is_sent(
    tmp_path: Path,
) -> None:
    sent = 0

    async def handler(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.whole()
        if exchange.target != "/large":
            exchange.send(answer(b"z" * 3000))
            return
        exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (1 << 30))
        while not exchange.gone and sent < 100_000_000:
            if not exchange.connection.transport.get_write_buffer_size():
                exchange.send(b"z" * 65536)
                sent += 65536
            await asyncio.sleep(0)

    async def scenario() -> None:
        async with behind(Origin(handler), tmp_path, "--bandwidth-mbps", "4") as lb:
            before = lb.rss()
            async with Caller(lb.port) as caller:
                for _ in range(40):  # 64 KiB are there at first; then they wait
                    assert (await caller.ask(post())).status == 200
                assert lb.total(shared_memory.THROTTLE + histograms.SUM) > 0
                caller.send(post(target=b"/large"))
                await eventually_async(lambda: sent, "the beginning of the answer")
                await never_async(lambda: sent > 20_000_000, "more than what kernels hold", 1.5)
                assert lb.rss() - before < 8 << 10
            await lb.settled()

    run_scenario(scenario())


def test_faulty_requests_get_no_more_bandwidth_than_good_ones(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with behind(Origin(echo), tmp_path, "--bandwidth-mbps", "1") as lb:
            faulty = b"POST / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 1800 + b"\r\n\r\n"
            count = 0

            async def insist() -> None:
                nonlocal count
                async with Caller(lb.port) as caller:
                    while True:
                        assert (await caller.ask(faulty)).status == 411
                        count += 1

            tasks = [asyncio.create_task(insist()) for _ in range(4)]
            await asyncio.sleep(1)  # the bucket is empty by then
            before, count, began = count, 0, time.monotonic()
            await asyncio.sleep(2)
            passed = count * 2200 / (time.monotonic() - began)  # bytes a second, 2.2 KB each time
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert before > 20  # 64 KiB are there at first
            assert 60_000 <= passed <= 145_000, passed
            await lb.settled()

    run_scenario(scenario())


def test_delayed_interim_answers_do_not_follow_the_final_one(tmp_path: Path) -> None:
    """Interim answers wait for bandwidth when the time of their request is over."""

    async def handler(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 103 Hints\r\nlink: %b\r\n\r\n" % (b"z" * 3000) * 40)
        await exchange.abandoned()

    async def scenario() -> None:
        options, origin = (
            ("--bandwidth-mbps", "0.1", "--predict-timeout", "1", "--delay-budget", "9"),
            Origin(handler),
        )
        async with behind(origin, tmp_path, *options) as lb:
            async with Caller(lb.port) as caller:
                made = await caller.ask(post())
                assert made.status == 504 and set(made.interim) == {103}
                origin.handler = echo
                made = await caller.ask(post(b"[7]"))
                assert not made.interim and made.body == b"[7]"
            await lb.settled()

    run_scenario(scenario())


def test_waits_for_an_instance_are_counted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with behind(Origin(responding_after(0.1), workers=1), tmp_path, "--credits", "1") as lb:
            made = await asyncio.gather(*(once(lb.port, post()) for _ in range(3)))
            assert all(one.status == 200 for one in made)
            await eventually_async(lambda: lb.total(0) == 3, "three requests answered 200")
            waits = [lb.total(shared_memory.QUEUE + bucket) for bucket in range(histograms.BUCKETS)]
            assert sum(waits) == 2 and sum(waits[16:]) == 2  # 33 ms and more
            assert 200_000 <= lb.total(shared_memory.QUEUE + histograms.SUM) <= 10_000_000

    run_scenario(scenario())


def test_a_callers_bandwidth_counts_its_answers(tmp_path: Path) -> None:
    """A megabit for each: the first answer is worth 1.2 s of it, beyond the burst of one second."""

    async def scenario() -> None:
        origin = Origin(responding(answer(b"z" * 260_000)))
        limit = ("--caller-bandwidth-mbps", "1", "--caller-header", "x-tenant")
        async with behind(origin, tmp_path, *limit) as lb:
            mine, theirs = (post(fields=b"x-tenant: %b\r\n" % name) for name in (b"mine", b"theirs"))
            assert [(await once(lb.port, mine)).status for _ in range(2)] == [200, 429]
            assert (await once(lb.port, theirs)).status == 200
            await eventually_async(lambda: lb.total(shared_memory.REFUSED_CALLER) == 1, "one refused")

    run_scenario(scenario())


def test_requests_a_second_of_one_caller(tmp_path: Path) -> None:
    async def scenario() -> None:
        limit = ("--caller-requests-per-second", "1", "--caller-header", "x-tenant")
        async with behind(Origin(responding_after(0.0)), tmp_path, *limit) as lb:
            mine, theirs = (post(fields=b"x-tenant: %b\r\n" % name) for name in (b"mine", b"theirs"))
            async with Caller(lb.port) as caller:
                made = [await caller.ask(mine) for _ in range(3)]
                assert [one.status for one in made] == [200, 429, 429]
                assert made[2].fields["retry-after"] == "1"
                assert (await caller.ask(theirs)).status == 200

    run_scenario(scenario())


def test_the_body_of_a_refused_request_is_not_the_next_one(tmp_path: Path) -> None:
    """Head and body come in one read, so that the connection stays."""

    async def scenario() -> None:
        origin = Origin(responding_after(0.0))
        async with behind(origin, tmp_path, "--requests-per-second", "1") as lb, Caller(lb.port) as caller:
            body = get(b"/inside")
            made = [await caller.ask(post(body, b"x-number: %d\r\n" % n)) for n in range(4)]
            assert [one.status for one in made] == [200, 429, 429, 429]
            await eventually_async(lambda: lb.total(shared_memory.REFUSED_RATE) == 3, "three refused")
            assert not any(one.closes for one in made) and len(origin.exchanges) == 1
            await never_async(lambda: lb.total(shared_memory.REFUSED_RATE) != 3, "a fourth refusal", 0.1)

    run_scenario(scenario())


def test_a_client_leaves_while_the_end_of_its_answer_waits_for_bandwidth(tmp_path: Path) -> None:
    """The instance is through with it, and has been given other work."""

    async def scenario() -> None:
        origin = Origin(responding(answer(b"z" * 200_000)))
        async with behind(origin, tmp_path, "--bandwidth-mbps", "2", "--delay-budget", "5") as lb:
            for _ in range(3):
                async with Caller(lb.port) as caller:
                    caller.send(post())
                    await caller.head()
                    await asyncio.sleep(0.1)
                    caller.reset()
            await lb.settled()
            assert lb.cell(origin.url, shared_memory.OUTSTANDING) == 0 and lb.total(shared_memory.INSIDE) == 0
            lb.bucket().set_rate(0)
            assert (await once(lb.port, post())).status == 200

    run_scenario(scenario())


def test_slow_uploads_and_slow_readers_delay_no_other_request(tmp_path: Path) -> None:
    """Many times the credits of the only instance; each is answered when it is done."""

    async def scenario() -> None:
        large, body = answer(b"z" * SIZE), b"u" * 100_000

        async def handler(exchange: Exchange) -> None:
            if exchange.target == "/large":
                exchange.send(large)
            else:
                await echo(exchange)

        origin = Origin(handler, workers=1)
        async with behind(origin, tmp_path, "--credits", "2") as lb, AsyncExitStack() as stack:
            slow = [await stack.enter_async_context(Caller(lb.port)) for _ in range(26)]
            for caller in slow[20:]:  # the kernel takes some MiB, and the rest waits
                caller.send(post(target=b"/large"))
            for caller in slow[:20]:
                caller.send(post(body)[:-50_000])
            await eventually_async(
                lambda: lb.total(shared_memory.INSIDE) == 26, "all of them with the instance"
            )
            assert lb.total(shared_memory.WAITING) == 0
            quick = await asyncio.gather(*(once(lb.port, post(b"[7]"), timeout=2.0) for _ in range(10)))
            assert [one.body for one in quick] == [b"[7]"] * 10
            for caller in slow[:20]:
                caller.send(body[50_000:])
            made = await asyncio.gather(*(caller.answer() for caller in slow))
            assert [len(one.body) for one in made] == [100_000] * 20 + [SIZE] * 6
            await stack.aclose()
            await lb.settled()

    run_scenario(scenario())
