"""Instances that die, hang, fail or vanish behind a load balancer under load: what its callers see.

The load is an open loop at half of what four instances can do, every tenth request on a connection of
its own.  After each fault nothing may be left in hand.
"""

from __future__ import annotations

import asyncio
import json
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.support.eventually import eventually_async, never_async
from tests.support.instance_process import kill, serve
from tests.support.loadbalancer.balancer_process import accepting, balance
from tests.support.loadbalancer.http_clients import Load, Outcome, once, post
from tests.support.loadbalancer.running_balancer import BalancedPool, balanced_pool, run_scenario
from tests.support.loadbalancer.scripted_instance import Exchange, answer, never_responding, responding
from twofold.loadbalancer import shared_memory

pytestmark = pytest.mark.alone

EXAMPLES = Path(__file__).parents[3] / "examples"
HALF = 400.0  # requests a second: half of what four instances with two workers do at 10 ms
BASELINE = 0.2  # seconds: what a busy machine may add; who waited for a lost instance, waited longer


async def unharmed(pool: BalancedPool, outcome: Outcome, lost: int = 0, seconds: float = 5.0) -> None:
    """All were answered 200 but at most `lost`, which were told so; and the accounts are even."""
    assert not outcome.failures, outcome.bad()
    assert set(outcome.statuses) <= {200, 500, 502, 504}, outcome.bad()
    assert outcome.total - outcome.good <= lost, (outcome.bad(), lost)
    await pool.lb.settled(seconds)


def test_2_an_instance_is_killed_again_and_again(tmp_path: Path) -> None:
    """Unsent requests are asked of others; of those it had in hand, each is told 502."""

    async def scenario() -> None:
        async with balanced_pool(tmp_path) as pool:
            lost = 0
            async with Load(pool.lb.port, HALF).going(3.0) as load:
                for n in range(5):
                    await asyncio.sleep(0.4)
                    victim = pool.origins[n % 4]
                    lost += len(victim.connections)  # those that answered at this very moment, too
                    victim.kill()
                    await asyncio.sleep(0.1)
                    await victim.start()
            outcome = load.outcome
            await unharmed(pool, outcome, lost)
            assert outcome.good >= 0.97 * outcome.total
            assert all(origin.exchanges for origin in pool.origins)

    run_scenario(scenario())


def test_2_and_20_real_instances_lose_a_front_and_stop(tmp_path: Path) -> None:
    """One front is killed: only what it had in hand is lost. Then the other stops, and nobody notices."""

    async def scenario(urls: list[str], front: int, leaving: int) -> None:
        async with balance(tmp_path / "lb", instances=urls) as lb:
            async with Load(lb.port, 100.0, body=b"[1, 2, 3]").going(1.5) as load:
                await asyncio.sleep(0.5)
                kill(front)
            assert not load.outcome.failures and set(load.outcome.statuses) <= {200, 502}, load.outcome.bad()
            assert load.outcome.statuses[502] <= 4, load.outcome.bad()
            async with Load(lb.port, 150.0, body=b"[1, 2, 3]").going(2.0) as load:
                await asyncio.sleep(0.5)
                kill(leaving, signal.SIGTERM)
            assert not load.outcome.bad()
            await lb.settled()

    echo = EXAMPLES / "echo"
    one = ("--replicas", "1")
    with serve(echo, tmp_path / "a", *one) as a, serve(echo, tmp_path / "b", *one) as b:
        (front,) = accepting(a.port, a.descendants())
        run_scenario(scenario([a.url, b.url], front, b.process.pid))
        assert b.process.wait(5) == 0


def test_22_an_instance_is_cut_off_from_the_network(tmp_path: Path) -> None:
    """Nothing passes, SYNs are not answered. Only what was on its way there is lost."""

    async def scenario() -> None:
        async with balanced_pool(tmp_path, "--predict-timeout", "3", with_chaos=True) as pool:
            (network,) = pool.chaos
            clock = asyncio.get_running_loop().time
            async with Load(pool.lb.port, HALF).going(7.0) as load:
                await asyncio.sleep(0.7)
                inside = pool.origins[0].inside
                network.partition()
                requests = partial(pool.lb.cell, pool.url, shared_memory.REQUESTS)
                await eventually_async(lambda: pool.lb.state(pool.url) == "down", pool.lb.table)
                asked = requests()
                await never_async(lambda: requests() != asked, "a request to what is down", 0.5)
                network.heal()
                healed = clock()
                await eventually_async(lambda: requests() > asked + 3, "its return")
                back = clock() - healed
            print(f"inside {inside}; back after {back:.2f} s; {load.outcome.bad()}")
            await unharmed(pool, load.outcome, lost=inside + 8)

    run_scenario(scenario())


def test_23_an_instance_takes_requests_and_never_answers(tmp_path: Path) -> None:
    """Its health path is well, so that nothing but missed deadlines can tell."""

    async def scenario() -> None:
        async with balanced_pool(tmp_path, "--predict-timeout", "0.5") as pool:
            quiet = (await Load(pool.lb.port, HALF).run(1.0)).quantile(0.99)
            pool.origins[0].handler = never_responding
            async with Load(pool.lb.port, HALF).going(2.5) as load:
                await eventually_async(lambda: pool.lb.ejected(pool.url), "its ejection", 2.5)
            outcome = load.outcome
            assert outcome.statuses[504] <= 12, outcome.bad()
            assert outcome.quantile(0.99) <= max(1.5 * quiet, BASELINE)
            await unharmed(pool, outcome, lost=12)

    run_scenario(scenario())


def test_24_an_instance_fails_faster_than_others_serve(tmp_path: Path) -> None:
    """500 in no time makes it look idle. It must not draw traffic, and come back when it is well."""

    async def scenario() -> None:
        async with balanced_pool(tmp_path) as pool:
            await sink_and_recover(pool)

    run_scenario(scenario())


@pytest.mark.soak
def test_24_it_fails_again_and_again(tmp_path: Path) -> None:
    """It is let in again after a while, found wanting, and left out for longer each time."""

    async def scenario() -> None:
        async with balanced_pool(tmp_path) as pool:
            for seconds in (6.0, 11.0, 16.0):
                await sink_and_recover(pool, seconds)

    run_scenario(scenario())


async def sink_and_recover(pool: BalancedPool, seconds: float = 0.0) -> None:
    """With `seconds`: until its ejection is over, and it is trusted again."""
    good, sink = pool.origins[0].handler, responding(answer(b'{"code":"x","message":"y"}', status=500))
    async with Load(pool.lb.port, HALF).going(1.5) as load:
        await asyncio.sleep(0.5)
        pool.origins[0].handler = sink
    assert not load.outcome.failures and set(load.outcome.statuses) <= {200, 500}
    assert load.outcome.statuses[500] <= 10, load.outcome.bad()
    assert pool.lb.ejected(pool.url)
    pool.origins[0].handler = good
    before = pool.lb.cell(pool.url, shared_memory.REQUESTS)
    if seconds:
        async with Load(pool.lb.port, HALF).going(seconds) as load:
            await eventually_async(
                lambda: pool.lb.cell(pool.url, shared_memory.REQUESTS) > before + 5, "back", seconds
            )
    await unharmed(pool, load.outcome, lost=10)


def test_25_no_instance_is_left(tmp_path: Path) -> None:
    """503 at once, with the time to try again; and served again as soon as the first one is back."""

    async def scenario() -> None:
        async with balanced_pool(tmp_path) as pool:
            clock = asyncio.get_running_loop().time
            async with Load(pool.lb.port, HALF).going(2.8) as load:
                await asyncio.sleep(0.5)
                for origin in pool.origins:
                    origin.kill()
                await asyncio.sleep(0.8)
                refused = await once(pool.lb.port, post())
                assert refused.status == 503 and int(refused.fields["retry-after"]) >= 1
                assert json.loads(refused.body)["code"] == "ServiceUnavailable"
                assert pool.lb.total(shared_memory.WAITING) == 0
                await pool.origins[2].start()
                first = clock()
            outcome = load.outcome
            assert not outcome.failures and set(outcome.statuses) <= {200, 502, 503}, outcome.bad()
            assert outcome.statuses[502] <= 16, outcome.bad()
            assert min(at for at, status in outcome.at if status == 200 and at > first) - first <= 1.0
            assert outcome.quantile(0.5, outcome.refused) <= 0.01
            assert pool.origins[2].most_inside <= 8  # the herd waits at the door
            await pool.lb.settled()

    run_scenario(scenario())


def test_26_retries_do_not_become_the_load(tmp_path: Path) -> None:
    """Half of the instances break off, under twice the load that the others can take."""

    async def breaking(exchange: Exchange) -> None:
        await exchange.whole()
        exchange.reset()

    async def scenario() -> None:
        async with balanced_pool(tmp_path) as pool:
            for origin in pool.origins[:2]:
                origin.handler = breaking
            again = post(b"x" * 1000, b"idempotency-key: k\r\n")
            outcome = await Load(pool.lb.port, 2 * HALF, make=lambda _: again).run(2.0)
            assert not outcome.failures and set(outcome.statuses) <= {200, 502, 503}
            attempts = sum(len(origin.exchanges) for origin in pool.origins)
            assert attempts <= 1.2 * outcome.total + 3
            assert outcome.good >= 0.85 * HALF * 2, outcome.bad()
            await pool.lb.settled()

    run_scenario(scenario())


GARBAGE = {
    "garbage": b"\x00\x16garbage\r\n\r\n",
    "truncated": answer(b"x" * 100)[:-50],
    "too-long": answer(b"[1]") + b"x" * 1000,
    "unframed": b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
}


@pytest.mark.parametrize("said", GARBAGE.values(), ids=GARBAGE)
def test_30_an_instance_sends_garbage(tmp_path: Path, said: bytes) -> None:
    """502, or a connection cut off; never a wrong answer, and soon nobody asks it any more."""

    async def scenario() -> None:
        async with balanced_pool(tmp_path) as pool:
            good = json.loads(answer().partition(b"\r\n\r\n")[2])

            async def rubbish(exchange: Exchange) -> None:
                await exchange.whole()
                exchange.send(said)
                exchange.close()

            pool.origins[0].handler = rubbish
            outcome = await Load(pool.lb.port, HALF).run(1.0)
            lost = outcome.total - outcome.good
            assert lost <= 10 and set(outcome.statuses) <= {200, 502}, outcome.bad()
            assert all(failure.startswith("Broken") for failure in outcome.failures)
            # What comes behind a whole answer is thrown away, and the answer is one.
            assert json.loads((await once(pool.lb.port, post())).body) in (good, [1])
            await pool.lb.settled()

    run_scenario(scenario())


def test_a_slow_network_to_one_instance_slows_no_other(tmp_path: Path) -> None:
    """Latency, small pieces and slow closes on the way to one of four: all are answered."""

    async def scenario() -> None:
        async with balanced_pool(tmp_path, with_chaos=True) as pool:
            (network,) = pool.chaos
            network.down.latency, network.down.jitter, network.down.slice, network.down.slow_close = (
                0.03,
                0.01,
                7,
                0.2,
            )
            network.up.slice, network.up.bandwidth = 100, 100_000.0
            outcome = await Load(pool.lb.port, HALF).run(1.5)
            await unharmed(pool, outcome)
            assert outcome.quantile(0.5) <= BASELINE
            network.down.limit = 3000  # and now each of its connections ends within some answer
            outcome = await Load(pool.lb.port, HALF).run(1.5)
            assert outcome.good >= 0.95 * outcome.total, outcome.bad()
            await pool.lb.settled()

    run_scenario(scenario())
