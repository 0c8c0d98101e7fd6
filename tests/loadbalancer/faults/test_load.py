"""Too much of everything: clients that leave or idle by the thousand, requests and bytes that do not fit."""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.eventually import eventually_async
from tests.support.loadbalancer.balancer_process import Balancer
from tests.support.loadbalancer.http_clients import Caller, Load, get, once, post
from tests.support.loadbalancer.running_balancer import BalancedPool, balanced_pool, run_scenario
from tests.support.loadbalancer.scripted_instance import Exchange, answer
from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.cli.balance_ctl import AdminClient

pytestmark = pytest.mark.alone

SEED = 20261123


# ---------------------------------------------------------------------- 14: clients that leave


async def leave(port: int, dice: random.Random) -> None:
    """Somewhere in a request, or while the answer is awaited."""
    data = post(b"z" * dice.choice((10, 1000, 100_000)))
    how_much = dice.choice((len(data), dice.randrange(len(data))))
    async with Caller(port) as caller:
        caller.send(data[:how_much])
        if dice.random() < 0.7:
            await asyncio.sleep(dice.random() * 0.015)
        if dice.random() < 0.5:
            caller.reset()
        else:
            caller.close()


def leaving(folder: Path, many: int) -> None:
    """Nothing is left of them, and 499 is noted for those whose head was complete."""

    async def scenario() -> None:
        dice = random.Random(SEED)
        async with balanced_pool(folder, service=0.005) as pool:
            async with Load(pool.lb.port, 50.0).going(many / 800) as load:
                for _ in range(many // 20):
                    await asyncio.gather(*(leave(pool.lb.port, dice) for _ in range(20)))
            assert not load.outcome.bad(), SEED
            assert load.outcome.quantile(0.5) <= 0.2
            assert pool.lb.total(shared_memory.STATUS_CELL[499]) >= many // 10
            await eventually_async(lambda: not any(one.inside for one in pool.origins), "instances are idle")
            await pool.lb.settled()

    run_scenario(scenario())


def test_14_clients_leave_in_the_middle(tmp_path: Path) -> None:
    leaving(tmp_path, 800)


@pytest.mark.soak
def test_14_five_thousand_of_them(tmp_path: Path) -> None:
    leaving(tmp_path, 5000)


# ---------------------------------------------------------------------- 15: idle connections


async def idle(port: int, many: int, stack: ExitStack) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(many):
        client = stack.enter_context(socket.socket())
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", port))


async def throughput(pool: BalancedPool) -> float:
    """Of three rounds the best: the machine has slow seconds of its own."""
    return max([await one_round(pool) for _ in range(3)])


async def one_round(pool: BalancedPool, seconds: float = 1.0) -> float:
    """Requests a second of eight clients that do nothing else."""
    loop, done = asyncio.get_running_loop(), 0
    until = loop.time() + seconds

    async def ask() -> None:
        nonlocal done
        async with Caller(pool.lb.port) as caller:
            while loop.time() < until:
                assert (await caller.ask(post())).status == 200
                done += 1

    await asyncio.gather(*(ask() for _ in range(8)))
    return done / seconds


def idling(folder: Path, many: int, drop: float, late: float) -> None:
    """`drop`: part of the throughput that may be lost. `late`: seconds to an answer on a new connection."""

    async def scenario() -> None:
        async with balanced_pool(folder, service=0.001) as pool:
            with ExitStack() as stack:
                clock, took = asyncio.get_running_loop().time, []
                alone, before = await throughput(pool), pool.lb.rss()
                await idle(pool.lb.port, many, stack)
                await eventually_async(
                    lambda: pool.lb.total(shared_memory.OPEN_CONNECTIONS) == many, "all of them", 5
                )
                each = (pool.lb.rss() - before) / many
                beside = await throughput(pool)
                for _ in range(100):
                    began = clock()
                    assert (await once(pool.lb.port, post())).status == 200
                    took.append(clock() - began)
                p99 = sorted(took)[98]
                print(
                    f"{many} idle: {each:.1f} KiB each, {alone:.0f} -> {beside:.0f}/s, p99 {p99 * 1e3:.1f} ms"
                )
                assert each <= 10.0
                assert beside >= (1 - drop) * alone
                assert p99 <= late
            await pool.lb.settled()

    run_scenario(scenario())


def test_15_idle_connections(tmp_path: Path) -> None:
    idling(tmp_path, 2000, drop=0.4, late=0.1)


@pytest.mark.soak
def test_15_ten_thousand_idle_connections(tmp_path: Path) -> None:
    idling(tmp_path, 10_000, drop=0.05, late=0.015)


# ---------------------------------------------------------------------- 27: overload


def overloading(folder: Path, seconds: float, goodput: float, at_once: float) -> None:
    """Thrice what four instances do with two workers each, at 50 ms: who is let in is served in time."""

    async def scenario() -> None:
        async with balanced_pool(folder, service=0.05) as pool:
            capacity = 8 / 0.05
            outcome = await Load(pool.lb.port, 3 * capacity).run(seconds)
            assert not outcome.failures and set(outcome.statuses) <= {200, 503}, outcome.bad()
            share = outcome.good / (capacity * (seconds + 1.0))  # the last wait a second at most
            p99, refused = outcome.quantile(0.99), outcome.quantile(0.5, outcome.refused)
            print(f"goodput {share:.3f}, p99 {p99:.3f} s, refused in {refused * 1e3:.1f} ms (p50)")
            assert share >= goodput
            assert p99 <= 1.0 + 0.05 + 0.3
            assert refused <= at_once
            after = await Load(pool.lb.port, capacity / 2).run(1.0)
            assert not after.bad() and after.quantile(0.5) <= 0.2
            await pool.lb.settled()

    run_scenario(scenario())


def test_27_three_times_what_fits(tmp_path: Path) -> None:
    overloading(tmp_path, 3.0, goodput=0.75, at_once=0.1)


@pytest.mark.soak
def test_27_for_a_minute(tmp_path: Path) -> None:
    overloading(tmp_path, 60.0, goodput=0.9, at_once=0.01)


# ---------------------------------------------------------------------- 28: bandwidth


PIECE = 250_000  # bytes of an answer


class Reader:
    """Fetches large answers one after the other, and keeps when how many bytes came."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.received: list[tuple[float, int]] = []
        self.answers = 0
        self.ended = False

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        async with Caller(self.port, 20.0) as caller:
            while not self.ended:
                caller.send(get(b"/large"))
                made = await caller.head()
                assert made.status == 200
                left = int(made.fields["content-length"])
                while left:
                    piece = await caller.reader.read(min(left, 16384))
                    assert piece, "broke off"
                    left -= len(piece)
                    self.received.append((loop.time(), len(piece)))
                self.answers += 1


async def change(lb: Balancer, mbps: int) -> None:
    admin = AdminClient(str(lb.folder / "admin.sock"))
    await asyncio.to_thread(admin.call, "PUT", "/bandwidth", {"mbps": mbps})


def test_28_the_bandwidth_is_used_up_and_changed(tmp_path: Path) -> None:
    """It holds again within 150 ms, without a burst, and no answer that has begun is broken off."""

    async def large(exchange: Exchange) -> None:
        await exchange.whole()
        exchange.send(answer(b"x" * PIECE))

    async def scenario() -> None:
        async with balanced_pool(tmp_path, "--bandwidth-mbps", "40") as pool:
            for origin in pool.origins:
                origin.handler = large
            clock = asyncio.get_running_loop().time
            readers = [Reader(pool.lb.port) for _ in range(4)]
            tasks = [asyncio.ensure_future(reader.run()) for reader in readers]
            await asyncio.sleep(0.8)
            for mbps in (80, 20, 40):
                await change(pool.lb, mbps)
                began = clock()
                await asyncio.sleep(1.2)
                came = [(at, n) for reader in readers for at, n in reader.received if at > began + 0.2]
                rate = 8 * sum(n for _, n in came) / (clock() - began - 0.2) / 1e6
                print(f"{mbps} Mbps: {rate:.1f}")
                assert 0.7 * mbps <= rate <= 1.05 * mbps + 8 * 65536 / 1e6, (mbps, rate)
            for reader in readers:
                reader.ended = True
            await asyncio.gather(*tasks)
            assert all(reader.answers for reader in readers)
            await pool.lb.settled()

    run_scenario(scenario())
